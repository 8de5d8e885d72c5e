"""Which jobs an experiment of `conf/experiment` consists of, and which finished jobs fill its cells.

A job belongs to a cell by what it ran, not by how it was started: the paper's main row is a cell of Table 1,
of Table 3 and of Table 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rift.conf_files import CONF, flat
from rift.report.paper import paper_target
from rift.report.results import Job
from rift.report.study import jobs_frame, one_job_per_seed

NAMES = ("model", "dataset", "method", "protocol")
_TARGET = "stage.finetune.target"
_TOP_K = "stage.finetune.top_k"


@dataclass(frozen=True)
class Experiment:
    """A file of `conf/experiment`.

    Attributes:
        name: of the file.
        about: its first comment.
        axes: what it sweeps: option or group, and its values as text.
        setting: model, data set, method and protocol where they are not swept.
        target: what is fine-tuned where that is not swept.
        evaluates: whether its jobs end with accuracies.
    """

    name: str
    about: str
    axes: Mapping[str, tuple[str, ...]]
    setting: Mapping[str, str]
    target: str
    evaluates: bool


@dataclass(frozen=True)
class Cell:
    """One entry of an experiment, over its seeds.

    Attributes:
        setting: model, data set, method, protocol.
        target: as `paper_target` says it, or None where an arm decides it.
        arm: of an ablation, if it is one.
        seeds: that the experiment has.
        jobs: the finished jobs that fill it, as a jobs' frame; of all seeds the same options.
        others: how many finished jobs of other options were left out.
    """

    setting: Mapping[str, str]
    target: str | None
    arm: str | None
    seeds: tuple[int, ...]
    jobs: pd.DataFrame
    others: int = 0

    @property
    def label(self) -> str:
        """What tells it from other cells, in words."""
        parts = [*self.setting.values(), self.arm or self.target]
        return " ".join(part for part in parts if part)


def experiment_names() -> list[str]:
    """Those that sweep something: the others are single runs."""
    found = {path.stem: _read(path) for path in sorted((CONF / "experiment").glob("*.yaml"))}
    return [name for name, tree in found.items() if _axes(tree)]


def load_experiment(name: str) -> Experiment:
    """Reads `conf/experiment/<name>.yaml`."""
    path = CONF / "experiment" / f"{name}.yaml"
    tree, lines = _read(path), path.read_text(encoding="utf-8").splitlines()
    comment = next(line for line in lines if line.startswith("# ") and "@package" not in line)
    choices = dict(entry for entry in map(_choice, _read(CONF / "config.yaml")["defaults"]) if entry)
    choices |= dict(entry for entry in map(_choice, tree.get("defaults", [])) if entry)
    axes = _axes(tree)
    target = tree.get("stage", {}).get("finetune", {}).get("target", "least_critical")
    setting = {group: str(choices[group]) for group in NAMES}
    about = comment.removeprefix("# ").split(": rift", 1)[0].rstrip(".:")
    runs = [tree, *(_read(CONF / "arm" / f"{arm}.yaml") for arm in axes.get("arm", ()))]
    stages = [run for part in runs if (run := part.get("stage", {}).get("run"))]
    evaluates = not stages or any("evaluate" in run for run in stages)
    return Experiment(name, about, axes, setting, target, evaluates)


def filled_cells(experiment: Experiment, jobs: Sequence[Job]) -> list[Cell]:
    """The experiment's cells with the jobs that fill them, in the order of its sweep.

    Besides the setting of its file, each other setting is shown in which jobs of a study of the
    experiment's name were run: another network, another data set.
    """
    settings = [dict(experiment.setting)]
    for job in jobs:
        own = {name: str(job.summary.get(name)) for name in NAMES}
        own |= {name: experiment.setting[name] for name in NAMES if name in experiment.axes}
        if job.summary.get("study") == experiment.name and own not in settings:
            settings.append(own)
    first, *others = [list(_cells(experiment, setting, jobs)) for setting in settings]
    # The file's own setting, "not run" throughout, would only fill the page if something else was run.
    shown = [first] if not others or any(len(cell.jobs) for cell in first) else []
    return [cell for cells in [*shown, *others] for cell in cells]


def _cells(experiment: Experiment, setting: Mapping[str, str], jobs: Sequence[Job]) -> Iterator[Cell]:
    axes = {name: values for name, values in experiment.axes.items() if name != "seed"}
    seeds = tuple(int(seed) for seed in experiment.axes.get("seed", ("0",)))
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        own = {name: chosen.get(name, setting[name]) for name in NAMES}
        arm = chosen.get("arm")
        target = paper_target(
            {
                "model": own["model"],
                "dataset": own["dataset"],
                "target": chosen.get(_TARGET, experiment.target),
                "options": {_TOP_K: chosen.get(_TOP_K)},
            }
        )
        if arm is not None and _TARGET in arm_options(arm):
            target = None
        yield _fill(Cell(own, target, arm, seeds, jobs_frame([])), jobs, experiment.name)


def _fill(cell: Cell, jobs: Sequence[Job], study: str) -> Cell:
    fitting = [job for job in jobs if fits(job.summary, cell)]
    if not fitting:
        return cell
    groups: dict[str, list[Job]] = {}
    for job in fitting:
        options = job.summary.get("options") or {}
        groups.setdefault(repr(sorted(options.items(), key=lambda item: item[0])), []).append(job)
    best = max(groups.values(), key=lambda group: _preference(group, study, ablation=cell.arm is not None))
    frame, _ = one_job_per_seed(jobs_frame(best))
    return Cell(
        cell.setting, cell.target, cell.arm, cell.seeds, frame.sort_values("seed"), len(fitting) - len(best)
    )


def _preference(jobs: Sequence[Job], study: str, *, ablation: bool) -> tuple[float, ...]:
    """Nearest to the paper first, then the experiment's own, more seeds, the newest.

    The arms of an ablation must fit each other, so there the experiment's own come first.
    """
    near = -len(jobs[0].summary.get("differences") or [])
    own = any(job.summary.get("study") == study for job in jobs)
    seeds, newest = len({job.summary["seed"] for job in jobs}), max(job.written for job in jobs)
    return (own, near, seeds, newest) if ablation else (near, own, seeds, newest)


def fits(summary: Mapping[str, Any], cell: Cell) -> bool:
    """Whether what a job ran is what the cell is of."""
    if any(str(summary.get(name)) != value for name, value in cell.setting.items()):
        return False
    if cell.target is not None and paper_target(summary) != cell.target:
        return False
    options = summary.get("options") or {}
    arm = arm_options(cell.arm) if cell.arm else {}
    return all(options.get(name) == value for name, value in arm.items())


def arm_options(arm: str) -> dict[str, Any]:
    """What an arm of an ablation sets, by dotted names; not which stages run nor on how many images."""
    found = flat(_read(CONF / "arm" / f"{arm}.yaml"))
    return {name: value for name, value in found.items() if name not in ("stage.run", "stage.mrc.max_images")}


def arm_about(arm: str) -> str:
    """An arm's comment: what it stands for."""
    lines = (CONF / "arm" / f"{arm}.yaml").read_text(encoding="utf-8").splitlines()
    comment = next(line for line in lines if line.startswith("# ") and "@package" not in line)
    return comment.removeprefix("# ").partition(": ")[2].rstrip(".")


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _axes(tree: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    params = tree.get("hydra", {}).get("sweeper", {}).get("params", {})
    return {name: tuple(str(values).split(",")) for name, values in params.items()}


def _choice(entry: Any) -> tuple[str, Any] | None:
    """`{"model": "resnet18"}` or `{"override /model": "resnet18"}`."""
    if not isinstance(entry, dict):
        return None
    ((group, choice),) = entry.items()
    return group.removeprefix("override /"), choice
