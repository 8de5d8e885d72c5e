"""Which stages run, and from which inputs.

Each method of `Pipeline` names what decides one stage's result, finds its inputs, and hands both to the
stage. What is finished is reused, what was interrupted goes on (`rift.runner`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from rift import plugins
from rift.assembly import make_attack, make_method, normalisation
from rift.config import Config
from rift.initial_weights import InitialWeights, initial_weights
from rift.measurements import Measurement, measurements
from rift.method_options import resolved
from rift.models import own_width
from rift.naming import job_name
from rift.runner import Runner
from rift.runtime import distributed
from rift.stage_options import BY_CRITICALITY
from rift.stages import (
    Session,
    adversarial_training,
    choose_modules,
    fine_tuning,
    interpolation,
    joint_scan,
    module_gains,
    mrc_scan,
)
from rift.store import StageFolder, Store
from rift.tracking import Tracker

log = logging.getLogger(__name__)


UNKNOWN = "(known after the scan)"


class Pipeline:
    """The chain of stages of one job.

    Args:
        config: checked configuration.
        session: data, machine, seed.
        store: where results live.
        initial: what `model.checkpoint` holds, where that was read already.
    """

    def __init__(
        self, config: Config, session: Session, store: Store, initial: InitialWeights | None = None
    ) -> None:
        self.config, self.session, self.store = config, session, store
        self.method = make_method(config)
        self.attack = make_attack(config.attack)
        self.selection_attack = make_attack(config.selection_attack)
        self.name = job_name(config)
        self._given = initial
        self.folders: dict[str, StageFolder] = {}

    def rehearse(self) -> None:
        """Goes through the chain without working or writing.

        Raises:
            UserError: an input of some stage does not exist and will not be made, or is bad.
        """
        self._chain(Runner(self.name, self.session, self.store, self.config.smoke, tracker=None))

    def run(self, tracker: Tracker) -> dict[str, StageFolder]:
        """Runs the wanted stages in order.

        A stage that was not asked for but whose result exists is taken along, so that the report is whole.

        Args:
            tracker: gets the metrics.

        Returns:
            The finished folders, by section.

        Raises:
            UserError: a stage's input does not exist, or is bad.
        """
        return self._chain(Runner(self.name, self.session, self.store, self.config.smoke, tracker))

    def _chain(self, runner: Runner) -> dict[str, StageFolder]:
        self.runner, self.folders = runner, runner.folders
        wanted = set(self.config.stage.run)
        by_criticality = self.config.stage.finetune.target in BY_CRITICALITY
        self._at(run="at" in wanted or self.config.model.checkpoint is not None)
        if wanted == {"at"}:
            return self.folders
        tuning = bool(wanted & {"finetune", "interpolate"})
        rests_on_it = bool(wanted & {"mrc", "joint", "gains"}) or (tuning and by_criticality)
        scanned = self._mrc(run="mrc" in wanted, needed=rests_on_it)
        if scanned and ("joint" in wanted or self.config.stage.finetune.target == "joint_k"):
            self._joint(run="joint" in wanted, needed="joint" in wanted or tuning)
        if "gains" in wanted:
            self._gains()
        if wanted <= {"at", "mrc", "joint", "gains"}:
            return self.folders
        tuned = (scanned or not by_criticality) and self._finetune(run="finetune" in wanted, needed=tuning)
        if tuned and wanted & {"interpolate", "evaluate"}:
            asked = "interpolate" in wanted
            self._interpolate(run=asked, needed=asked)
        if "evaluate" in wanted:
            self._evaluate()
        return self.folders

    def _at(self, run: bool) -> bool:
        config, options = self.config, self.config.stage.at
        if "at" not in config.stage.run and config.model.checkpoint is not None:
            options = replace(options, epochs=0)  # the checkpoint's weights are θ_AT
        initial, digest = self._initial.state, self._initial.digest
        model, dataset = config.model, self.session.dataset
        augmentation = self._augmentation(options.padding_mode)
        identity = {
            "model": {
                "family": model.family,
                "name": model.name,
                "width": model.width or own_width(model.family),
                "pretrained": model.pretrained,
                "checkpoint": digest,
                **self._plugin("model", model.family, model.options),
            },
            "data": dataset.identity,
            "normalisation": [list(values) for values in normalisation(config)],
            "method": {
                "name": config.method.name,
                **resolved(config.method, model.family),
                **self._plugin("method", config.method.name, config.method.options),
            },
            "attack": asdict(self.method.attack(self.attack)),
            "options": _without(asdict(options), "select"),
            "augmentation": augmentation,
            "precision": str(self.session.runtime.precision),
            **self._selection(),
        }
        if options.epochs == 0:  # the weights are what they are, whatever training would have been
            training = ("options", "augmentation", "precision", "method", "attack", "selection_precision")
            identity = _without(identity, *training)
            identity["selection_split"] = options.selection_split

        def train(folder: StageFolder) -> dict[str, Any]:
            return adversarial_training(
                self.session,
                folder,
                options,
                self.method,
                self.attack,
                self.selection_attack,
                augmentation,
                initial,
            )

        return self.runner.obtain("at", identity, train, run=run)

    def _mrc(self, run: bool, needed: bool) -> bool:
        options = self.config.stage.mrc
        identity = {"at": self._key("at"), "options": asdict(options), **self._selection()}

        def scan(folder: StageFolder) -> dict[str, Any]:
            return mrc_scan(self.session, folder, options, self._weights("at"), self.selection_attack)

        return self.runner.obtain("mrc", identity, scan, run=run, needed=needed)

    def _joint(self, run: bool, needed: bool) -> bool:
        joint, mrc = self.config.stage.joint, self.config.stage.mrc
        options = replace(mrc, solver=joint.solver, epochs=joint.epochs)
        identity = {"mrc": self.folders["mrc"].key, "options": asdict(joint)}

        def scan(folder: StageFolder) -> dict[str, Any]:
            ranking, theta_at = self.folders["mrc"].result()["ranking"], self._weights("at")
            attack = self.selection_attack
            return joint_scan(self.session, folder, options, joint.size, ranking, theta_at, attack)

        return self.runner.obtain("joint", identity, scan, run=run, needed=needed)

    def _gains(self) -> None:
        """Every scanned module as the one that is fine-tuned; shared with jobs that fine-tune it."""
        stage, attack = self.config.stage, asdict(make_attack(self.config.evaluation_attack))
        keys = {"at": self._key("at"), "mrc": self.folders["mrc"].key}
        finetune = _without(asdict(stage.finetune), "target", "top_k", "target_seed")
        tuning = {"finetune": finetune, "interpolate": asdict(stage.interpolate)}
        judging = {"evaluate": [stage.evaluate.restarts, stage.evaluate.exact_runs], "attack": attack}
        machine = [str(self.session.runtime.precision), str(self.session.runtime.evaluation_precision)]
        augmentation = {"augmentation": self._augmentation(stage.finetune.padding_mode)}
        identity = {**keys, **tuning, **judging, **augmentation, "precision": machine, **self._selection()}
        fallbacks: dict[str, None] = {}  # the stages within forget each other's

        def tuned(module: str) -> dict[str, dict[str, Any]]:
            alone = replace(stage.finetune, target=module)
            evaluate = replace(stage.evaluate, measure=["pgd"])
            # What θ_AT is depends on whether it is trained here, or given.
            run = [name for name in stage.run if name == "at"] + ["finetune", "interpolate", "evaluate"]
            config = replace(self.config, stage=replace(stage, run=run, finetune=alone, evaluate=evaluate))
            pipeline = Pipeline(config, self.session, self.store, self._initial)
            folders = pipeline.run(Tracker())
            assert pipeline._key("at") == self._key("at"), "the gains are of another network"
            results = {section: folder.result() for section, folder in folders.items()}
            fallbacks.update(dict.fromkeys(note for one in results.values() for note in one["fallbacks"]))
            self.session.runtime.fallbacks[:] = fallbacks
            return results

        def gains(folder: StageFolder) -> dict[str, Any]:
            return module_gains(folder, self.folders["mrc"].result(), tuned, stage.interpolate.tolerance)

        self.runner.obtain("gains", identity, gains)

    def _finetune(self, run: bool, needed: bool) -> bool:
        options = self.config.stage.finetune
        modules = self._modules()
        augmentation = self._augmentation(options.padding_mode)
        identity = {
            "at": self._key("at"),
            "modules": modules,  # they decide, not the words by which they were chosen
            "options": _without(asdict(options), "target", "top_k", "target_seed", "select"),
            "augmentation": augmentation,
            "precision": str(self.session.runtime.precision),
        }

        def tune(folder: StageFolder) -> dict[str, Any]:
            return fine_tuning(self.session, folder, options, self._weights("at"), modules, augmentation)

        return self.runner.obtain("finetune", identity, tune, run=run, needed=needed)

    def _modules(self) -> list[str]:
        """The modules to fine-tune; while the scan is still ahead, a word that stands for them."""
        options, scan = self.config.stage.finetune, self.folders.get("mrc")
        if options.target not in BY_CRITICALITY:
            ranking = None
        elif scan is not None and scan.finished:
            ranking = scan.result()["ranking"]
        else:
            return [UNKNOWN]
        joint = None
        if options.target == "joint_k":
            if "joint" not in self.folders or not self.folders["joint"].finished:
                return [UNKNOWN]
            joint = [entry["modules"] for entry in self.folders["joint"].result()["greedy"]]
        scans = self.config.stage.mrc.scans
        return choose_modules(options, self.session.new_network(), scans, ranking, joint)

    def _interpolate(self, run: bool, needed: bool) -> bool:
        options = self.config.stage.interpolate
        ends = {"at": self._key("at"), "finetune": self._key("finetune")}
        identity = {**ends, "options": asdict(options), **self._selection()}

        def sweep(folder: StageFolder) -> dict[str, Any]:
            ends = self._weights("at"), self._weights("finetune")
            return interpolation(self.session, folder, options, *ends, self.selection_attack)

        return self.runner.obtain("interpolate", identity, sweep, run=run, needed=needed)

    def _evaluate(self) -> None:
        """Everything that is to be measured, of θ_AT and, where there is one, of θ*."""
        if "interpolate" not in self.folders and not self.runner.rehearsing:
            log.info("evaluate: θ_AT alone; there is no interpolation for these options yet")
        for measurement in self._measurements:
            for which, section in (("at", "at"), ("rift", "interpolate")):
                if section in self.folders:
                    self._measure(measurement, which, section)

    def _measure(self, measurement: Measurement, which: str, section: str) -> None:
        earlier = self.folders.get(f"{measurement.after}_{which}")

        def measure(folder: StageFolder) -> dict[str, Any]:
            return measurement.body(folder, self._weights(section), earlier)

        identity = {"weights": self._measured_key(section), **measurement.identity}
        if measurement.after is not None:
            identity["after"] = None if earlier is None else earlier.key
        self.runner.obtain(f"{measurement.section}_{which}", identity, measure)

    @cached_property
    def _measurements(self) -> list[Measurement]:
        """Opened once, which checks their images."""
        return distributed.writer_first(lambda: measurements(self.config, self.session))

    def _augmentation(self, padding_mode: str) -> dict[str, Any]:
        data = self.config.dataset
        return {"padding": data.padding, "padding_mode": padding_mode, "flip": data.flip}

    @staticmethod
    def _plugin(group: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """What of another package decides a result; nothing for what is rift's own."""
        about = plugins.identity(group, name)
        return {"plugin": {**dict(about), "options": dict(options)}} if about else {}

    def _selection(self) -> dict[str, Any]:
        """What decides an accuracy that something is chosen by."""
        return {
            "selection_attack": asdict(self.selection_attack),
            "selection_precision": str(self.session.runtime.selection_precision),
            "tf32": self.config.runtime.tf32,
        }

    def _handed_on(self, section: str) -> str:
        """Which of a stage's weights the next one takes."""
        stage = self.config.stage
        return {"at": stage.at.select, "finetune": stage.finetune.select, "interpolate": "weights"}[section]

    def _measured_key(self, section: str) -> str:
        """Stands for the weights that are measured: at α* = 0 they are θ_AT, which is not attacked twice."""
        folder = self.folders[section]
        if section == "interpolate" and folder.finished:
            result = folder.result()
            if result["alpha"] == 0.0 and result["starts_at_theta_at"]:
                return self._key("at")
        return self._key(section)

    def _key(self, section: str) -> str:
        """Stands for the weights that a stage hands on."""
        return f"{self.folders[section].key}/{self._handed_on(section)}"

    def _weights(self, section: str) -> dict[str, Tensor]:
        """The weights that a stage hands on, on the device."""
        return self.folders[section].load(self._handed_on(section), self.session.runtime.device)

    @property
    def checkpoint_digest(self) -> str | None:
        """SHA-256 of the file that the job starts from, if it does."""
        return self._initial.digest

    @property
    def import_notes(self) -> list[str]:
        """What had to be done to a checkpoint, and what it is worth."""
        return list(self._initial.notes)

    @cached_property
    def _initial(self) -> InitialWeights:
        """Read and tried once."""
        return self._given or initial_weights(self.config, self.session)


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
