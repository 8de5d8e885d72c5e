"""How long the stages of a job will take, from first batches of each that are done for the clock alone.

The stages' own functions do them, on few images, in memory, with a fresh network. Nothing of it stays: the
generators are put back, and a result never depends on whether time was estimated.

The times are on the high side where the work depends on what comes out: evaluations are taken as if every
image were right and had to be attacked, the scan as if no module stopped early.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rift.assembly import make_attack, make_method
from rift.attacks import Attack, pgd, random_start
from rift.data import Split, as_floats
from rift.errors import UserError
from rift.models import scannable_modules
from rift.pipeline import Pipeline
from rift.plan import REUSED, Step
from rift.progress import no_bars
from rift.runtime import CraftingNetwork, distributed
from rift.runtime.device import DTYPES
from rift.runtime.switches import generators_kept
from rift.runtime.throughput import at_flops, wait_for
from rift.stages import Session, adversarial_training, fine_tuning
from rift.stages.adversarial_training import robust_accuracy_is_due
from rift.stages.folder import MemoryFolder
from rift.stages.mrc_scan import criticality_of, make_solver, robustness, scanned_network

log = logging.getLogger(__name__)

TRAINING, SCAN, TUNING, ATTACK = 0.8, 0.6, 0.3, 0.3  # seconds on which a measurement's size is reckoned
PATIENCE = 12  # times as long as that, for a network of which two images take longer
FEWEST = 2  # images; fewer have no variance that BatchNorm could divide by
LARGEST = 256  # images of a forward pass
SCANNED = 4  # modules whose scan is timed, evenly spread from the first to the last
_EPOCHS = (1, 3)  # of a module's search: what more epochs take more


def with_times(steps: Sequence[Step], pipeline: Pipeline) -> list[Step]:
    """The plan with the seconds that its steps will take, where that can be told.

    It cannot be of several processes, of CUDA graphs and compiled networks (whose first batches are the
    slow ones), of AutoAttack, corruptions, joint sets and gains, and of networks so slow that a few images
    would take longer than the measurement may.

    Args:
        steps: see `rift.plan.make_plan`.
        pipeline: of the job; left as found.
    """
    runtime = pipeline.session.runtime
    graphs = runtime.device.type == "cuda" and runtime.cuda_graphs
    if distributed.active() or graphs or runtime.compile or not pipeline.config.runtime.estimate:
        return list(steps)
    with generators_kept(), no_bars():
        clock = _Clock(pipeline)
        return [step if step.state == REUSED else replace(step, seconds=clock.of(step)) for step in steps]


class _Clock:
    """Measures what is asked for, once, on few images.

    Args:
        pipeline: of the job.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.config = pipeline, pipeline.config
        session = pipeline.session
        # What could not be done as asked is the stages' to record; it is said once, here or there.
        self.session = replace(session, runtime=replace(session.runtime, fallbacks=[]))
        self.network = self.session.new_network().eval()
        self.state = {name: value.clone() for name, value in self.network.state_dict().items()}
        self._known: dict[tuple[Attack, torch.dtype], float | None] = {}

    def of(self, step: Step) -> float | None:
        """Seconds of a step, from where it stands; None where that cannot be told."""
        section = step.section.removesuffix("_at").removesuffix("_rift")
        ways: dict[str, Callable[[Step], float | None]] = {
            "at": self._at,
            "mrc": self._mrc,
            "finetune": self._finetune,
            "interpolate": self._interpolate,
            "evaluate": self._evaluate,
        }
        if section not in ways:
            return None
        try:
            return ways[section](step)
        except (UserError, RuntimeError) as error:  # what the stage itself may well get over, or will say
            log.debug("%s: not estimated (%s)", section, error)
            return None

    # -- stages ----------------------------------------------------------------------------------

    def _at(self, step: Step) -> float | None:
        options, runtime = self.config.stage.at, self.session.runtime
        selection = len(self.session.dataset.split(options.selection_split))
        judging = self._attacked(self.pipeline.selection_attack, runtime.selection_precision)
        if judging is None:
            return None
        if "at" not in self.config.stage.run or options.epochs == 0:
            return selection * judging
        first = step.rows[-1]["epoch"] if step.rows else options.start_epoch
        left = range(first, options.epochs)
        due = sum(robust_accuracy_is_due(epoch, options.epochs, options.evaluate_every) for epoch in left)
        image = self._image_in_training()
        if image is None:
            return None
        return len(left) * len(self.session.dataset.train) * image + due * selection * judging

    def _image_in_training(self) -> float | None:
        options, config = self.config.stage.at, self.config
        method = make_method(config)  # a fresh one: some have a memory
        attack = method.attack(self.pipeline.attack)
        count = self._affordable(TRAINING, at_flops(1, attack.steps, method.passes), options.batch_size)
        if count is None:
            return None
        folder = MemoryFolder()
        adversarial_training(
            self._on(count),
            folder,
            replace(options, epochs=2, start_epoch=0, milestones=[], evaluate_every=9, patience=None),
            method,
            self.pipeline.attack,
            self.pipeline.selection_attack,
            self._augmentation(options.padding_mode),
            self.state,
        )
        return folder.rows()[-1]["seconds"] / count  # the first batch has to warm up

    def _mrc(self, step: Step) -> float | None:
        options = self.config.stage.mrc
        names = [name for name in scannable_modules(self.network) if options.scans(name)]
        images = min(len(self.session.dataset.split(options.split)), options.max_images or 2**63)
        crafting = self._attacked(self.pipeline.selection_attack, self.session.runtime.selection_precision)
        chosen = [names[round(i * (len(names) - 1) / (SCANNED - 1))] for i in range(SCANNED)]
        chosen = [name for name in names if name in chosen]
        # An epoch takes a pass forwards and one backwards, through half of the network on average.
        passes = len(chosen) * (_EPOCHS[0] + _EPOCHS[1] + 1) * 2 * 1.5
        count = self._affordable(SCAN, passes, min(options.batch_size, images))
        if count is None or crafting is None:
            return None
        short, long = (min(self._scanned(chosen, count, epochs) for _ in range(2)) for epochs in _EPOCHS)
        epoch = max(long - short, 0.0) / (_EPOCHS[1] - _EPOCHS[0]) / len(chosen) / count
        # Besides, each module's final loss is computed, and the kept activations are carried on once.
        modules = (len(names) - len(step.rows)) * (options.epochs + 1 / 3) * epoch
        return images * (crafting + self._forward + modules)

    def _scanned(self, names: Sequence[str], count: int, epochs: int) -> float:
        """Seconds that the search of some modules takes on a batch."""
        options = replace(self.config.stage.mrc, epochs=epochs, on_violation="continue", batch_size=count)
        network = self.session.network(self.state).requires_grad_(False)
        split = self._few(self.session.dataset.train, count)
        images = self.session.runtime.laid_out(as_floats(split.images), DTYPES[options.precision])
        baseline = robustness(self.session, network, options, images, split.labels)
        scanned = scanned_network(self.session, network, options, images, split.labels)
        began = self._now()
        for name in names:
            criticality_of(scanned.at(name), baseline, make_solver(options))
        return self._now() - began

    def _finetune(self, step: Step) -> float | None:
        options = self.config.stage.finetune
        names = list(scannable_modules(self.network))
        modules = self.pipeline.folders["finetune"].options["modules"]
        modules = [name for name in modules if name in names] or names[:1]  # unknown: the deepest gradient
        count, forward = self._affordable(TUNING, 3, options.batch_size), self._forward
        if count is None:
            return None
        folder = MemoryFolder()
        few = replace(options, epochs=2, milestones=[])
        augmentation = self._augmentation(options.padding_mode)
        fine_tuning(self._on(count), folder, few, self.state, modules, augmentation)
        image = folder.rows()[-1]["seconds"] / count
        left = options.epochs - (step.rows[-1]["epoch"] if step.rows else 0)
        selection = len(self.session.dataset.split(options.selection_split))
        return left * (len(self.session.dataset.train) * image + selection * forward)

    def _interpolate(self, step: Step) -> float | None:
        options, precision = self.config.stage.interpolate, self.session.runtime.selection_precision
        image = self._attacked(self.pipeline.selection_attack, precision)
        if image is None:
            return None
        images = len(self.session.dataset.split(options.selection_split))
        return (options.points - len(step.rows)) * images * options.restarts * image

    def _evaluate(self, step: Step) -> float | None:
        runs, images = self.config.stage.evaluate.restarts, len(self.session.dataset.test)
        image = self._attacked(
            make_attack(self.config.evaluation_attack), self.session.runtime.evaluation_precision
        )
        return None if image is None else runs * images * image

    # -- single images ---------------------------------------------------------------------------

    @cached_property
    def _forward(self) -> float:
        """Seconds of one image's forward pass, in batches as large as may be."""
        most, count = min(LARGEST, len(self.session.dataset.train)), 1
        while True:
            images = self._images(self._few(self.session.dataset.train, count))
            with torch.no_grad():
                seconds = min(self._once(images) for _ in range(3))  # the first has to warm up
            if seconds > 0.02 or count == most:  # the clock is sure of that, and longer is not needed
                return max(seconds, 1e-6) / count
            count = min(4 * count, most)

    def _once(self, images: Tensor) -> float:
        began = self._now()
        self.network(images)
        return self._now() - began

    def _attacked(self, attack: Attack, precision: torch.dtype) -> float | None:
        """Seconds of one image in one attack run, with its verdicts."""
        if (attack, precision) not in self._known:
            self._known[attack, precision] = self._measured_attack(attack, precision)
        return self._known[attack, precision]

    def _measured_attack(self, attack: Attack, precision: torch.dtype) -> float | None:
        runtime = self.session.runtime
        count = self._affordable(ATTACK, 2 * attack.steps, runtime.batch_size)
        if count is None:
            return None
        split = self._few(self.session.dataset.test, count)
        images, crafting = self._images(split), CraftingNetwork(self.network, runtime, precision)

        def craft(steps: int) -> float:
            began = self._now()
            start = (
                random_start(images, split.indices, ("estimate",), attack) if attack.random_start else images
            )
            pgd(crafting, images, split.labels, start, replace(attack, steps=steps))
            return self._now() - began

        craft(1)  # to warm up
        return craft(attack.steps) / len(split) + 2 * self._forward

    # -- what it is measured on ------------------------------------------------------------------

    def _affordable(self, budget: float, passes: float, most: int) -> int | None:
        """How many images go through so many forward passes in `budget` seconds; None if too few.

        Of a large network the fewest may take longer, within `PATIENCE`.
        """
        one = passes * self._forward
        count = FEWEST if budget < FEWEST * one <= PATIENCE * budget else int(budget / one)
        count = min(count, most, len(self.session.dataset.train))
        return None if count < FEWEST else count

    def _on(self, count: int) -> Session:
        """The session with so many training images, and next to nothing to choose on."""
        dataset = self.session.dataset
        holdout = None if dataset.holdout is None else self._few(dataset.holdout, FEWEST)
        few = replace(
            dataset,
            train=self._few(dataset.train, count),
            test=self._few(dataset.test, FEWEST),
            holdout=holdout,
        )
        return replace(self.session, dataset=few)

    @staticmethod
    def _few(split: Split, count: int) -> Split:
        return split.subset(torch.arange(min(count, len(split))))

    def _images(self, split: Split) -> Tensor:
        return self.session.runtime.laid_out(as_floats(split.images), torch.float32)

    def _augmentation(self, padding_mode: str) -> dict[str, Any]:
        data = self.config.dataset
        return {"padding": data.padding, "padding_mode": padding_mode, "flip": data.flip}

    def _now(self) -> float:
        wait_for(self.session.runtime.device)
        return time.perf_counter()
