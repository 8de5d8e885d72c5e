"""A kept study, read: which of its jobs is which, and what came of fine-tuning in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rift.report import stability
from rift.report.cells import MISSING, interval_ends, mean_and_std, number
from rift.report.experiments import filled_cells, load_experiment
from rift.report.results import Job, read_jobs
from rift.report.verdicts import over_seeds

ROW = "cifar10_two_cores"


@dataclass(frozen=True)
class Kept:
    """The files of one kept study, read."""

    jobs: list[Job]
    training: dict[str, Any]
    curve: pd.DataFrame

    @property
    def held_out(self) -> int:
        """How many images every choice was made on."""
        return self.training["data"]["counts"]["holdout"]

    def of(self, study: str) -> list[Job]:
        """Its jobs that were run under this study, by seed."""
        found = [job for job in self.jobs if job.summary.get("study") == study]
        return sorted(found, key=lambda job: (job.summary["seed"], str(job.folder)))


def read_kept(folder: Path) -> Kept:
    """Reads what `rift.report.kept` wrote."""
    training = json.loads((folder / "training.json").read_text("utf-8"))
    return Kept(read_jobs([folder / "jobs"])[0], training, pd.read_csv(folder / "training.csv"))


def row_jobs(kept: Kept) -> list[Job]:
    """One job per seed of the row itself: of several that differ in what was measured, the fullest."""
    best: dict[int, Job] = {}
    for job in kept.of(ROW):
        if "rift" in job.summary and len(job.summary["rift"]) > len(_measured(best.get(job.summary["seed"]))):
            best[job.summary["seed"]] = job
    return [best[seed] for seed in sorted(best)]


def _measured(job: Job | None) -> Mapping[str, Any]:
    return job.summary["rift"] if job else {}


def difference(jobs: Sequence[Job], which: str, metric: str) -> str:
    """`+0.42 (0.10 … 0.75)` of one job, by its test images; mean ± deviation over several."""
    deltas = _deltas(jobs, metric)
    if not deltas:
        return MISSING
    if len(deltas) > 1:
        return mean_and_std(pd.Series(deltas), expected=len(deltas), signed=True)
    interval = jobs[0].summary["intervals"].get(which)
    if interval is None:
        return number(deltas[0], signed=True)
    return f"{number(deltas[0], signed=True)} ({interval_ends(interval)})"


def seen(jobs: Sequence[Job], which: str, metric: str) -> str:
    """The verdict: of one job by its test images, of three seeds or more by their spread."""
    deltas = _deltas(jobs, metric)
    if len(deltas) == 1:
        return (jobs[0].summary["intervals"].get(which) or {}).get("verdict", MISSING)
    return over_seeds(deltas) if deltas else "not run"


def _deltas(jobs: Sequence[Job], metric: str) -> list[float]:
    pairs = [(job.summary.get("at") or {}, job.summary.get("rift") or {}) for job in jobs]
    return [100 * (rift[metric] - at[metric]) for at, rift in pairs if metric in at and metric in rift]


def metric_row(name: str, metric: str, which: str, jobs: Sequence[Job]) -> dict[str, str]:
    """A row of a table: θ_AT and θ* in one accuracy, over the seeds of these jobs."""
    jobs = [job for job in jobs if metric in (job.summary.get("rift") or {})]
    if not jobs:
        return dict.fromkeys(("", "n", "AT", "RiFT", "Δ", "seen"), MISSING) | {"": name, "seen": "not run"}
    before, after = (pd.Series([100 * job.summary[side][metric] for job in jobs]) for side in ("at", "rift"))
    return {
        "": name,
        "n": str(len(jobs)),
        "AT": number(before.mean()),
        "RiFT": mean_and_std(after, expected=len(after)),
        "Δ": difference(jobs, which, metric),
        "seen": seen(jobs, which, metric),
    }


def outcome(label: str, jobs: Sequence[Job]) -> dict[str, str]:
    """A row of a table: what came of fine-tuning, at α* (test images) and at α = 1 (where α* was chosen)."""
    row = {"fine-tuned": label, "n": str(len(jobs))}
    if not jobs:
        return row | {"Δ clean": "not run"}
    for name in ("clean", "robust"):
        row[f"Δ {name}"] = difference(jobs, name, f"{name}_accuracy")
        row[f"{name}: seen"] = seen(jobs, name, f"{name}_accuracy")
    alphas = pd.Series([job.summary["alpha"] for job in jobs])
    row["α*"] = mean_and_std(alphas, expected=len(alphas), decimals=1)
    for name in ("clean", "robust"):
        ends = [_end(job.summary["sweep"], f"{name}_accuracy") for job in jobs]
        row[f"α = 1: Δ {name}"] = mean_and_std(pd.Series(ends), expected=len(ends), signed=True)
    return row


def _end(sweep: Sequence[Mapping[str, float]], metric: str) -> float:
    points = sorted(sweep, key=lambda point: point["alpha"])
    return 100 * (points[-1][metric] - points[0][metric])


OUTCOME_CAPTION = (
    "Differences from θ_AT in points. At α*: on the 10 000 test images, of one seed with its 95 % interval "
    "(paired bootstrap) and the verdict of a paired test, of several seeds mean ± standard deviation and the "
    "verdict of a t interval. At α = 1: on the 1000 held-out images that α* was chosen on."
)


def gains_job(kept: Kept) -> Job | None:
    """The job that fine-tuned every module alone."""
    return next((job for job in kept.of("mrc_stability") if job.summary.get("gains")), None)


def gains_relation(job: Job) -> pd.DataFrame:
    """How MRC and what each module brought go together in that job, see `stability.relation_frame`."""
    return stability.relation_frame(filled_cells(load_experiment("mrc_stability"), [job]))
