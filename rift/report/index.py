"""The index of jobs: `python -m rift.report --list`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pandas as pd

from rift.job_state import JobState
from rift.report.cells import MISSING, number
from rift.report.results import Job
from rift.report.texts import device_hours

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def index_frame(jobs: Sequence[tuple[Job, JobState]], now: float) -> pd.DataFrame:
    """One row per job, newest first: name, study, state, age (seconds since it ended or began), device hours.

    Args:
        jobs: finished or not.
        now: seconds since the epoch.
    """
    rows = []
    for job, state in jobs:
        since = _seconds(state.ended or state.began) or job.written
        rows.append(
            {
                "job": job.folder.name,
                "study": str(job.summary.get("study") or MISSING),
                "state": state.state,
                "age_seconds": max(0.0, now - since),
                "device_hours": device_hours(job.summary),
                "reason": state.reason,
                "folder": str(job.folder),
            }
        )
    columns = ["job", "study", "state", "age_seconds", "device_hours", "reason", "folder"]
    return pd.DataFrame(rows, columns=columns).sort_values("age_seconds", kind="stable", ignore_index=True)


def index_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """`index_frame` as finished cells; the reason of a failure stands under its job."""
    return pd.DataFrame(
        {
            "job": "\n".join(part for part in (row["job"], row["reason"]) if part),
            "study": row["study"],
            "state": row["state"],
            "age": age_text(row["age_seconds"]),
            "device hours": number(row["device_hours"], 3),
        }
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    )


def age_text(seconds: float) -> str:
    """The largest unit that fits: `3 d`, `5 h`, `12 min`."""
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), _UNITS[-1])
    return f"{int(seconds // size)} {unit}"


def _seconds(text: str | None) -> float | None:
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
