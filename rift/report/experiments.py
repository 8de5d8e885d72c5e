"""Which jobs an experiment of `conf/experiment` consists of, and which finished jobs fill its cells.

A job belongs to a cell by what it ran, not by how it was started: the paper's main row is a cell of Table 1,
of Table 3 and of Table 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rift.conf_files import CONF, flat
from rift.report.paper import paper_target
from rift.report.results import Job
from rift.report.study import jobs_frame, one_job_per_seed
from rift.stage_options import CHAIN, SETS, STAGES

NAMES = ("model", "dataset", "method", "protocol")
_TARGET = "stage.finetune.target"
_TOP_K = "stage.finetune.top_k"
_UNUSED = ("stage.evaluate.auto_attack", "stage.joint.")  # options that decide no number of a cell


@dataclass(frozen=True)
class Experiment:
    """A file of `conf/experiment`.

    Attributes:
        name: of the file.
        about: its first comment.
        axes: what it sweeps: option or group, and its values as text.
        setting: model, data set, method and protocol where they are not swept.
        target: what is fine-tuned where that is not swept.
        stages: that its jobs run.
    """

    name: str
    about: str
    axes: Mapping[str, tuple[str, ...]]
    setting: Mapping[str, str]
    target: str
    stages: tuple[str, ...]

    @property
    def evaluates(self) -> bool:
        """Whether its jobs end with accuracies."""
        arms = [_stages(_read(CONF / "arm" / f"{arm}.yaml")) for arm in self.axes.get("arm", ())]
        return any("evaluate" in run for run in arms or [self.stages])


@dataclass(frozen=True)
class Cell:
    """One entry of an experiment, over its seeds.

    Attributes:
        setting: model, data set, method, protocol.
        target: as `paper_target` says it, or None where an arm decides it.
        arm: of an ablation, if it is one.
        seeds: that the experiment has.
        stages: without whose results a job does not fill it.
        jobs: the finished jobs that fill it, as a jobs' frame; of all seeds the same options.
        others: how many finished jobs of other options were left out.
        warnings: of seeds that several jobs were run for.
    """

    setting: Mapping[str, str]
    target: str | None
    arm: str | None
    seeds: tuple[int, ...]
    stages: tuple[str, ...]
    jobs: pd.DataFrame
    others: int = 0
    warnings: tuple[str, ...] = ()

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
    tree = _read(path)
    choices = dict(entry for entry in map(_choice, _read(CONF / "config.yaml")["defaults"]) if entry)
    choices |= dict(entry for entry in map(_choice, tree.get("defaults", [])) if entry)
    axes = _axes(tree)
    target = tree.get("stage", {}).get("finetune", {}).get("target", "least_critical")
    setting = {group: str(choices[group]) for group in NAMES}
    about = _comment(path).split("rift -m", 1)[0].rstrip(".: ")
    return Experiment(name, about, axes, setting, target, _stages(tree))


def filled_cells(experiment: Experiment, jobs: Sequence[Job]) -> list[Cell]:
    """The experiment's cells with the jobs that fill them, in the order of its sweep.

    Besides the setting of its file, each other setting is shown in which jobs of a study of the
    experiment's name were run: another network, another data set.
    """
    # What is swept is no part of a setting, unless a job has a value that the file does not sweep.
    settings = [{name: value for name, value in experiment.setting.items() if name not in experiment.axes}]
    for job in jobs:
        values = {name: str(job.summary.get(name)) for name in NAMES}
        own = {name: value for name, value in values.items() if value not in experiment.axes.get(name, ())}
        if job.summary.get("study") == experiment.name and own not in settings:
            settings.append(own)
    first, *others = [_filled(experiment, list(_cells(experiment, setting)), jobs) for setting in settings]
    # The file's own setting, "not run" throughout, would only fill the page if something else was run.
    shown = [first] if not others or any(len(cell.jobs) for cell in first) else []
    return [cell for cells in [*shown, *others] for cell in cells]


def _cells(experiment: Experiment, setting: Mapping[str, str]) -> Iterator[Cell]:
    """The cells of one setting, empty."""
    axes = {name: values for name, values in experiment.axes.items() if name not in ("seed", *setting)}
    seeds = tuple(int(seed) for seed in experiment.axes.get("seed", ("0",)))
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        own = {name: setting[name] if name in setting else chosen[name] for name in NAMES}
        arm, asked = chosen.get("arm"), chosen.get(_TARGET, experiment.target)
        about = {"target": asked, "options": {_TOP_K: chosen.get(_TOP_K)}}
        target = paper_target({"model": own["model"], "dataset": own["dataset"], **about})
        if arm is not None and _TARGET in arm_options(arm):
            target = None
        stages = experiment.stages if arm is None else _stages(_read(CONF / "arm" / f"{arm}.yaml"))
        yield Cell(own, target, arm, seeds, stages, jobs_frame([]))


def _filled(experiment: Experiment, cells: list[Cell], jobs: Sequence[Job]) -> list[Cell]:
    """Each cell with its jobs. The arms of an ablation must share all options but their own, and so θ_AT."""
    fitting = [[job for job in jobs if fits(job.summary, cell)] for cell in cells]
    own = {name for cell in cells if cell.arm for name in arm_options(cell.arm)}
    together = list(chain.from_iterable(fitting)) if own else []
    if together:
        chosen = _best_group(together, experiment.name, own)
        places = {job.folder for job in chosen}
        kept = [[job for job in fit if job.folder in places] for fit in fitting]
    else:
        kept = [_best_group(fit, experiment.name, set()) if fit else [] for fit in fitting]
    found = []
    for cell, fit, best in zip(cells, fitting, kept, strict=True):
        frame, warnings = one_job_per_seed(jobs_frame(best))
        left_out = len(fit) - len(best)
        found.append(replace(cell, jobs=frame.sort_values("seed"), warnings=tuple(warnings), others=left_out))
    return found


def _best_group(jobs: Sequence[Job], study: str, ignored: set[str]) -> list[Job]:
    """Of jobs that share their options, those nearest to the paper; see `_preference`.

    Options that some of the jobs do not know, being older or not using them, tell nothing.
    """
    options = [job.summary.get("options") or {} for job in jobs]
    known = set.intersection(*(set(own) for own in options)) - ignored
    groups: dict[str, list[Job]] = {}
    for job, own in zip(jobs, options, strict=True):
        unused = {name for name in known if name.startswith(_UNUSED)}
        if job.summary.get("target") not in SETS:
            unused.add(_TOP_K)
        told = {name: own[name] for name in known - unused}
        groups.setdefault(json.dumps(told, sort_keys=True), []).append(job)
    return max(groups.values(), key=lambda group: _preference(group, study, ablation=bool(ignored)))


def _preference(jobs: Sequence[Job], study: str, *, ablation: bool) -> tuple[float, ...]:
    """Nearest to the paper first, then the experiment's own, more jobs, the newest.

    In an ablation, whose arms depart from the paper on purpose, the experiment's own come first.
    """
    near = -min(_departures(job.summary) for job in jobs)
    own = any(job.summary.get("study") == study for job in jobs)
    count, newest = len({job.folder for job in jobs}), max(job.written for job in jobs)
    return (own, count, near, newest) if ablation else (near, own, count, newest)


def _departures(summary: Mapping[str, Any]) -> int:
    """How many options are not the paper's; that more was measured is no departure."""
    found = summary.get("differences") or []
    return sum(not text.startswith("stage.evaluate.measure") for text in found)


def fits(summary: Mapping[str, Any], cell: Cell) -> bool:
    """Whether what a job ran, or is to run, is what the cell is of."""
    if any(str(summary.get(name)) != value for name, value in cell.setting.items()):
        return False
    if cell.target is not None and paper_target(summary) != cell.target:
        return False
    if not all(_has(stage, summary) for stage in cell.stages):
        return False
    options = summary.get("options") or {}
    arm = arm_options(cell.arm) if cell.arm else {}
    return all(options.get(name) == value for name, value in arm.items())


def _has(stage: str, summary: Mapping[str, Any]) -> bool:
    """Whether a finished job has a stage's result; of one that is not finished, whether it asks for it."""
    if "stages" not in summary:
        return stage in (summary.get("run") or STAGES)
    return stage in summary["stages"] or f"{stage}_at" in summary["stages"]


def arm_options(arm: str) -> dict[str, Any]:
    """What an arm of an ablation sets, by dotted names; not which stages run nor on how many images."""
    found = flat(_read(CONF / "arm" / f"{arm}.yaml"))
    return {name: value for name, value in found.items() if name not in ("stage.run", "stage.mrc.max_images")}


def arm_about(arm: str) -> str:
    """An arm's comment: what it stands for."""
    return _comment(CONF / "arm" / f"{arm}.yaml").partition(": ")[2].rstrip(".")


def _comment(path: Path) -> str:
    """A file's first comment, which says what it is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("# ") and "@package" not in line).removeprefix("# ")


@cache  # asked for again with every job
def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _stages(tree: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(tree.get("stage", {}).get("run") or CHAIN)


def _axes(tree: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    params = tree.get("hydra", {}).get("sweeper", {}).get("params", {})
    return {name: tuple(str(values).split(",")) for name, values in params.items()}


def _choice(entry: Any) -> tuple[str, Any] | None:
    """`{"model": "resnet18"}` or `{"override /model": "resnet18"}`."""
    if not isinstance(entry, dict):
        return None
    ((group, choice),) = entry.items()
    return group.removeprefix("override /"), choice
