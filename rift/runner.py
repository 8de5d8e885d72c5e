"""One stage's result: found finished, gone on with, or made."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rift.conf_files import flat
from rift.errors import UserError
from rift.provenance import made_elsewhere, provenance
from rift.runtime import distributed
from rift.stages import Session
from rift.store import StageFolder, Store
from rift.tracking import AXES, Tracker

log = logging.getLogger(__name__)

UNTOLD = ("tflops", "of_matmul_rate")  # kept with every row; for a log line they are too much
PRODUCERS = {
    "at": "stage=at (or stage=rift, which runs everything), or give model.checkpoint=PATH",
    "mrc": "stage=mrc",
    "joint": "stage=joint",
    "finetune": "stage=finetune",
    "interpolate": "stage=interpolate",
}


@dataclass
class Runner:
    """Runs stages for one job.

    Attributes:
        name: of the job, for people; begins the names of the folders.
        session: given to the stages.
        store: where results live.
        smoke: kept apart from real results.
        tracker: gets every metrics row, also those of reused results; None for a rehearsal, which finds out
            whether all inputs are there or will be, and makes nothing.
        folders: the finished results so far, by section: a stage, or a measurement of one of the two
            networks, such as `evaluate_at` and `evaluate_rift`.
        told: what was said of reused results, once.
    """

    name: str
    session: Session
    store: Store
    smoke: bool
    tracker: Tracker | None
    folders: dict[str, StageFolder] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    @property
    def rehearsing(self) -> bool:
        """Whether nothing is to be made."""
        return self.tracker is None

    def obtain(
        self,
        section: str,
        identity: Mapping[str, Any],
        body: Callable[[StageFolder], dict[str, Any]],
        *,
        run: bool = True,
        needed: bool = True,
    ) -> bool:
        """Finds the result that `identity` decides, or makes it.

        Args:
            section: the stage, or the measurement and which network it is of.
            identity: everything that decides the result besides seed and smoke.
            body: does the stage's work in the folder and returns its result.
            run: whether an unfinished result may be made.
            needed: whether one that may not be made is an error.

        Returns:
            Whether the result exists now (in a rehearsal: then); if so it is in `folders`.

        Raises:
            UserError: it is needed and missing, or it is damaged.
        """
        stage = section.removesuffix("_at").removesuffix("_rift")
        options = {**identity, "seed": self.session.seed, "smoke": self.smoke}
        folder = self.store.folder(stage, self.name, options)
        if not run and not folder.finished:
            if not needed:
                return False
            raise UserError(
                f"There is no finished '{stage}' result for these options: run {PRODUCERS[stage]} first."
            )
        if not self.rehearsing:
            with folder.locked():
                if folder.finished:
                    self._reuse(section, folder)
                else:
                    self._make(section, folder, body)
        self.folders[section] = folder
        return True

    def _reuse(self, section: str, folder: StageFolder) -> None:
        folder.verify()
        folder.tidy()
        log.info("%s: reused %s", section, folder.path)
        elsewhere = made_elsewhere(folder.result(), self.session.runtime.describe()["name"])
        if elsewhere is not None and elsewhere not in self.told:
            self.told.add(elsewhere)
            log.warning("%s", elsewhere)
        self._replay(section, folder.rows())

    def _tell_of_others(self, section: str, folder: StageFolder) -> None:
        """What was begun with other options does not go on here, and somebody may expect that it does."""
        for path, options in self.store.unfinished(folder, self.name):
            ours, theirs = flat(folder.options), flat(options)
            names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            told = ", ".join(f"{name} {theirs.get(name)} → {ours.get(name)}" for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            log.info("%s: begins anew; %s was begun with other options (%s%s)", section, path, told, more)

    def _make(self, section: str, folder: StageFolder, body: Callable[[StageFolder], dict[str, Any]]) -> None:
        if not folder.begun:
            self._tell_of_others(section, folder)
        folder.begin()
        folder.on_row = lambda row: self._tell(section, row)
        folder.on_restored = lambda rows: self._go_on(section, rows)
        log.info("%s: %s", section, folder.path)
        runtime = self.session.runtime
        runtime.fallbacks.clear()  # a result tells its own
        began = time.monotonic()
        try:
            result = body(folder)
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is told
                folder.settle()  # before another job may take the folder
            raise
        fallbacks = dict.fromkeys(note for notes in distributed.gather(runtime.fallbacks) for note in notes)
        folder.finish(
            {
                **result,
                "seed": self.session.seed,
                "data": self.session.dataset.identity,
                "device": runtime.describe(),
                "fallbacks": list(fallbacks),
                "seconds": time.monotonic() - began,
                "resumed": folder.resumed,
                **provenance(),
            }
        )

    def _go_on(self, section: str, rows: list[dict[str, Any]]) -> None:
        if rows:
            log.info("%s: resumed, goes on after %s", section, label(rows[-1], AXES[section], naming=True))
        self._replay(section, rows)

    def _replay(self, section: str, rows: list[dict[str, Any]]) -> None:
        """Earlier rows, so that each job's tracker has the whole chain; a continued run has them."""
        for row in rows if not self.tracker.has_history else []:
            self.tracker.row(section, row)

    def _tell(self, section: str, row: Mapping[str, Any]) -> None:
        self.tracker.row(section, row)
        axis = AXES[section]
        numbers = [
            f"{name} {value:.4g}"
            for name, value in row.items()
            if isinstance(value, float) and name not in (axis, *UNTOLD)
        ]
        log.info("%s %s: %s", section, label(row, axis), ", ".join(numbers))


def label(row: Mapping[str, Any], axis: str, naming: bool = False) -> str:
    """What a row of metrics is about: a module or a corruption by its name, else where it is on its axis.

    Args:
        row: of one stage.
        axis: the stage's, of `rift.tracking.AXES`.
        naming: say what it is, too: `epoch 3`.
    """
    name = next((name for name in ("module", "corruption", "attack") if name in row), axis)
    return f"{name} {row[name]}" if naming else str(row[name])
