"""The index of jobs: `python -m rift.report --list`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from rift.job_state import JobState
from rift.report.cells import MISSING, number
from rift.report.paper import canonical_target
from rift.report.results import Job
from rift.report.settings import telling_texts
from rift.report.texts import device_hours

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def index_frame(jobs: Sequence[tuple[Job, JobState]], now: float) -> pd.DataFrame:
    """One row per job, newest first: name, study, settings, state, age and device hours, reason, folder.

    `settings` are the options that tell a job from the others here of its network, data and method;
    `age_seconds` count from its end, or else from its beginning.

    Args:
        jobs: finished or not.
        now: seconds since the epoch.
    """
    rows = []
    summaries = [job.summary for job, _ in jobs]
    settings = telling_texts([_group(summary) for summary in summaries], [_told(one) for one in summaries])
    for (job, state), text in zip(jobs, settings, strict=True):
        since = _seconds(state.ended or state.began) or job.written
        rows.append(
            {
                "job": job.folder.name,
                "study": str(job.summary.get("study") or MISSING),
                "settings": text,
                "state": state.state,
                "age_seconds": max(0.0, now - since),
                "device_hours": device_hours(job.summary),
                "reason": state.reason,
                "folder": str(job.folder),
            }
        )
    columns = ["job", "study", "settings", "state", "age_seconds", "device_hours", "reason", "folder"]
    return pd.DataFrame(rows, columns=columns).sort_values("age_seconds", kind="stable", ignore_index=True)


def index_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """`index_frame` as finished cells; the reason of a failure stands under its job.

    Without the column of settings where nothing differs.
    """
    cells = pd.DataFrame(
        {
            "job": "\n".join(part for part in (row["job"], row["reason"]) if part),
            "study": row["study"],
            "differs in": row["settings"] or MISSING,
            "state": row["state"],
            "age": age_text(row["age_seconds"]),
            "device hours": number(row["device_hours"], 3),
        }
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    )
    return cells if frame["settings"].any() else cells.drop(columns="differs in", errors="ignore")


def _group(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """What the name of a job's folder says anyway, without its seed."""
    return tuple(str(summary.get(name)) for name in ("model", "dataset", "method"))


def _told(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What may tell a job from others, what people say first standing first."""
    options = summary.get("options")
    named = {"protocol": summary.get("protocol"), "target": canonical_target(summary)}
    found = {name: value for name, value in named.items() if value is not None}
    return found | (dict(sorted(options.items())) if isinstance(options, dict) else {})


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
