"""How far an experiment is: which of its jobs are done, running, failed, stopped, or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rift.errors import UserError
from rift.job_state import STATE_FILE, JobState, job_state
from rift.report.cells import MISSING
from rift.report.experiments import Experiment, filled_cells, fits
from rift.report.results import SUMMARY_FILE, Job, read_summary

_ORDER = ("done", "running", "failed", "stopped")  # the best of several attempts is told


def collect(experiment: Experiment, paths: Iterable[Path], smoke: bool) -> pd.DataFrame:
    """One row per job that the experiment has: `cell`, `seed`, `state`, `since`, `where`, `reason`.

    Args:
        experiment: whose jobs.
        paths: folders that hold jobs, searched to any depth.
        smoke: whether smoke runs count.
    """
    found = [(job, state) for job, state in found_jobs(paths) if smoke or not job.summary.get("smoke")]
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


def found_jobs(paths: Iterable[Path]) -> list[tuple[Job, JobState]]:
    """Every job under the folders, finished or not, that says what it is of."""
    folders: dict[Path, None] = {}
    for path in paths:
        for name in (SUMMARY_FILE, STATE_FILE):
            folders |= dict.fromkeys(file.parent for file in path.rglob(name))
    found = []
    for folder in sorted(folders):
        about = _about(folder)
        if about is not None:
            newest = max(file.stat().st_mtime for file in _files(folder))
            found.append((Job(folder, about, newest), job_state(folder)))
    return found


def _files(folder: Path) -> Sequence[Path]:
    return [file for name in (SUMMARY_FILE, STATE_FILE) if (file := folder / name).is_file()]


def _about(folder: Path) -> dict[str, Any] | None:
    """What the job is of: its summary, or what it noted when it began; None if neither can be understood."""
    if (folder / SUMMARY_FILE).is_file():
        try:
            return read_summary(folder / SUMMARY_FILE)
        except UserError:
            return None
    try:
        about = json.loads((folder / STATE_FILE).read_text(encoding="utf-8")).get("about")
    except (OSError, ValueError, AttributeError):
        return None
    return about if isinstance(about, dict) and isinstance(about.get("seed"), int) else None
