"""How far an experiment is: which of its jobs are done, running, failed, stopped, or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from rift.job_state import STATE_FILE, JobState, job_state
from rift.report.cells import MISSING
from rift.report.experiments import Experiment, filled_cells, fits
from rift.report.results import SUMMARY_FILE, Job, job_files, read_files

_ORDER = ("done", "running", "failed", "stopped")  # the best of several attempts is told


@dataclass(frozen=True)
class Survey:
    """What lies under some folders.

    Attributes:
        jobs: those with a summary that can be read, ordered by folder.
        states: every job that says what it is of, finished or not, and how it stands; a job's `written` is
            here the time of its newest file.
        warnings: one for each summary that could not be understood.
    """

    jobs: list[Job]
    states: list[tuple[Job, JobState]]
    warnings: list[str]


def survey(paths: Iterable[Path]) -> Survey:
    """Reads the jobs under some folders, which are walked once.

    Raises:
        UserError: a path does not exist.
    """
    found = Survey([], [], [])
    files = job_files(paths, (SUMMARY_FILE, STATE_FILE))
    for folder, group in groupby(files, key=lambda file: file.parent):
        own = list(group)
        summaries = [file for file in own if file.name != STATE_FILE]
        jobs, warnings = read_files(summaries)
        found.jobs.extend(jobs)
        found.warnings.extend(warnings)
        # A summary that cannot be understood is no job that has none.
        about = jobs[0].summary if jobs else None if summaries else _about(folder / STATE_FILE)
        if about is not None:
            newest = max(file.stat().st_mtime for file in own)
            found.states.append((Job(folder, about, newest), job_state(folder)))
    return found


def collect(experiment: Experiment, found: Sequence[tuple[Job, JobState]]) -> pd.DataFrame:
    """One row per job that the experiment has: `cell`, `seed`, `state`, `since`, `where`, `reason`.

    Args:
        experiment: whose jobs.
        found: jobs of whatever experiment, finished or not, as `survey` returns them.
    """
    rows = []
    for cell in filled_cells(experiment, [job for job, state in found if state.state == "done"]):
        fill = set(cell.jobs["folder"])
        for seed in cell.seeds:
            own = [
                (job, state)
                for job, state in found
                if job.summary["seed"] == seed
                and fits(job.summary, cell)
                and (state.state != "done" or str(job.folder) in fill)
            ]
            row = {"cell": cell.label, "seed": seed, "state": "missing"}
            if own:
                job, state = min(own, key=lambda pair: (_ORDER.index(pair[1].state), -pair[0].written))
                row |= {"state": state.state, "since": state.ended or state.began, "where": str(job.folder)}
                row |= {"reason": state.reason}
            rows.append(row)
    columns = ["cell", "seed", "state", "since", "where", "reason"]
    return pd.DataFrame(rows, columns=columns).astype(object).where(lambda frame: frame.notna(), None)


def collect_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """`collect` as finished cells; a reason stands under where the job is."""
    rows = []
    for row in frame.to_dict("records"):
        where = "\n".join(part for part in (row["where"], row["reason"]) if part)
        rows.append(
            {
                "cell": row["cell"],
                "seed": str(row["seed"]),
                "state": row["state"],
                "since": (row["since"] or MISSING).removesuffix("+00:00").replace("T", " "),
                "where": where or MISSING,
            }
        )
    return pd.DataFrame(rows)


def counts_text(frame: pd.DataFrame) -> str:
    """`7 of 27 done, 1 running, 1 failed, 18 missing.`"""
    counts = frame["state"].value_counts()
    states = [f"{counts[state]} {state}" for state in (*_ORDER[1:], "missing") if state in counts]
    return ", ".join([f"{counts.get('done', 0)} of {len(frame)} done", *states]) + "."


def _about(file: Path) -> dict[str, Any] | None:
    """What an unfinished job is of, as it noted when it began; None if that cannot be understood."""
    try:
        about = json.loads(file.read_text(encoding="utf-8")).get("about")
    except (OSError, ValueError, AttributeError):
        return None
    if not (isinstance(about, dict) and isinstance(about.get("seed"), int)):
        return None
    readable = isinstance(about.get("options") or {}, dict) and isinstance(about.get("target") or "", str)
    return about if readable else None
