"""What a job is going to do: of each stage, whether it is reused, goes on or runs, and how large it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table

from rift.config import Config
from rift.models import scannable_modules
from rift.pipeline import UNKNOWN, Pipeline
from rift.resume_point import noted_rows
from rift.runner import label
from rift.runtime import Runtime, distributed
from rift.runtime.switches import generators_kept
from rift.store import StageFolder
from rift.tracking import AXES

REUSED, RESUMES, RUNS = "reused", "resumes", "runs"


@dataclass(frozen=True)
class Step:
    """One stage of a job, or one measurement of one network.

    Attributes:
        section: as in `rift.tracking.AXES`: `at`, `mrc`, `evaluate_rift`, …
        state: `reused`, `resumes` or `runs`.
        rows: metrics that an interrupted one has already.
        size: in a few words.
        seconds: that it is estimated to take, see `rift.estimate`; None where it is not.
    """

    section: str
    state: str
    rows: Sequence[Mapping[str, Any]]
    size: str
    seconds: float | None = None

    @property
    def account(self) -> str:
        """The state, and where an interrupted stage goes on: `resumes after epoch 3`."""
        if self.state != RESUMES:
            return self.state
        if not self.rows:
            return "resumes at its last saved step"
        return f"resumes after {label(self.rows[-1], AXES[self.section], naming=True)}"


def make_plan(pipeline: Pipeline) -> list[Step]:
    """The steps of a job whose pipeline was rehearsed, in their order.

    What a step is after an unfinished scan depends on the ranking: it is said to run, and may turn out to be
    finished already. Of several processes the writer alone is to ask.
    """
    with distributed.alone():
        sizes = _Sizes(pipeline)
        return [_step(section, folder, sizes) for section, folder in pipeline.folders.items()]


def _step(section: str, folder: StageFolder, sizes: _Sizes) -> Step:
    rows = None if folder.finished else noted_rows(folder.path)
    state = REUSED if folder.finished else RUNS if rows is None else RESUMES
    return Step(section, state, rows or [], sizes.of(section, folder))


class _Sizes:
    """How much there is to do in each section of a job."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.config, self.dataset = pipeline.config, pipeline.session.dataset
        with generators_kept():
            network = pipeline.session.new_network()  # which seeds them
        scans = self.config.stage.mrc.scans
        self.scanned = [name for name in scannable_modules(network) if scans(name)]

    def of(self, section: str, folder: StageFolder) -> str:
        stage = section.removesuffix("_at").removesuffix("_rift")
        measure: Mapping[str, Callable[[], str]] = {
            "at": lambda: self._at(folder.options),
            "mrc": self._mrc,
            "joint": self._joint,
            "gains": lambda: f"{len(self.scanned)} modules, each fine-tuned, interpolated and evaluated",
            "finetune": lambda: self._finetune(folder.options["modules"]),
            "interpolate": self._interpolate,
            "evaluate": lambda: _runs(self.config.stage.evaluate.restarts, len(self.dataset.test)),
            "auto_attack": self._auto_attack,
            "corruptions": self._corruptions,
            "cifar10_1": lambda: "2 000 images",
        }
        return measure[stage]()

    def _at(self, decides: Mapping[str, Any]) -> str:
        if "options" not in decides:  # it is not trained
            return "the weights as they are"
        options, steps = decides["options"], decides["attack"]["steps"]
        epochs = options["epochs"] - options["start_epoch"]
        attack = f"{steps} attack step{'s' * (steps != 1)}"
        return f"{_passes(epochs, len(self.dataset.train))}, {self.config.method.name}, {attack}"

    def _mrc(self) -> str:
        options = self.config.stage.mrc
        images = min(len(self.dataset.split(options.split)), options.max_images or 2**63)
        return f"{len(self.scanned)} modules × {_passes(options.epochs, images)}"

    def _joint(self) -> str:
        options = self.config.stage.joint
        return f"sets of up to {options.size} modules, {options.epochs} epochs each"

    def _finetune(self, modules: Sequence[str]) -> str:
        if modules == [UNKNOWN]:
            which = f"{self.config.stage.finetune.target}, known after the scan"
        else:
            named = ", ".join(modules) if 0 < len(modules) <= 2 else f"{len(modules)} modules"
            which = named if modules else "statistics of BatchNorm alone"
        return f"{_passes(self.config.stage.finetune.epochs, len(self.dataset.train))}: {which}"

    def _interpolate(self) -> str:
        options = self.config.stage.interpolate
        images = len(self.dataset.split(options.selection_split))
        return f"{options.points} α × {_runs(options.restarts, images)}"

    def _auto_attack(self) -> str:
        options = self.config.stage.evaluate
        images = min(len(self.dataset.test), options.auto_attack_images or 2**63)
        return f"{options.auto_attack}, {_count(images)} images"

    def _corruptions(self) -> str:
        options = self.config.stage.evaluate
        names, severities = len(options.corruption_names()), len(options.severities)
        return f"{names} corruptions × {severities} severities × {_count(len(self.dataset.test))} images"


def _passes(epochs: int, images: int) -> str:
    return f"{epochs} epoch{'s' * (epochs != 1)} × {_count(images)} images"


def _runs(runs: int, images: int) -> str:
    return f"{runs} attack run{'s' * (runs != 1)} × {_count(images)} images"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def machine(config: Config, runtime: Runtime) -> str:
    """Device, threads and precisions, in one line."""
    about = runtime.describe()
    precisions = {
        "training": about["precision"],
        "choosing": about["selection_precision"],
        "reported numbers": about["evaluation_precision"],
    }
    same = len(set(precisions.values())) == 1
    told = about["precision"] if same else ", ".join(f"{name} in {kind}" for name, kind in precisions.items())
    threads = torch.get_num_threads()
    place = runtime.device if runtime.device.type == "cpu" else f"{runtime.device} ({about['name']})"
    processes = f", {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    tf32 = ", TF32" if config.runtime.tf32 and runtime.device.type == "cuda" else ""
    return f"{place}, {threads} CPU thread{'s' * (threads != 1)}{processes}, {told}{tf32}"


def plan_table(steps: Sequence[Step], title: str) -> Table:
    """The plan for a terminal."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    timed = any(step.seconds is not None for step in steps)
    for name in ("stage", "state", "size", *(["time, about"] if timed else [])):
        table.add_column(name, overflow="fold", justify="right" if name.startswith("time") else "left")
    for step in steps:
        table.add_row(step.section, step.account, step.size, *([_time_of(step)] if timed else []))
    return table


def plan_lines(steps: Sequence[Step]) -> list[str]:
    """The plan where there is no terminal, a line for each step."""
    lines = []
    timed = any(step.seconds is not None for step in steps)
    for step in steps:
        time = _time_of(step) if timed else ""
        about = ", about " if step.seconds is not None else ", "
        lines.append(f"{step.section} {step.account} ({step.size})" + (about + time if time else ""))
    return lines


def _time_of(step: Step) -> str:
    if step.state == REUSED:
        return ""
    return "not estimated" if step.seconds is None else duration(step.seconds)


def busy(runtime: Runtime) -> str | None:
    """A sentence if a CPU is to compute whose cores have other work; None if not, or if nobody knows."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if runtime.device.type != "cpu" or load < max(1.5, 0.75 * cores):
        return None
    advice = "; runtime.threads=1 may be several times faster" if torch.get_num_threads() > 1 else ""
    return f"the machine is busy (load {load:.1f} on {cores} cores), so times are estimated too long{advice}"


def duration(seconds: float) -> str:
    """A time as people say it: `40 s`, `7 min`, `3.2 h`, `2.5 days`."""
    for unit, name in ((86400, "days"), (3600, "h")):
        if seconds >= 2 * unit or (name == "h" and seconds >= 1.5 * unit):
            return f"{seconds / unit:.1f} {name}"
    return f"{max(1, round(seconds / 60))} min" if seconds >= 90 else f"{max(1, round(seconds))} s"
