"""Which stages run, from which inputs; what is finished is reused, what was interrupted goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rift.attacks import Attack
from rift.checkpoint import file_digest
from rift.config import ATConfig, AttackConfig, Config, number
from rift.data import load_dataset
from rift.errors import UserError, choose_from
from rift.methods import METHODS
from rift.models import build_model, load_foreign_checkpoint
from rift.provenance import provenance
from rift.runtime import Runtime, choose_device, choose_precision, seed_everything, set_global_switches
from rift.stages import (
    Session,
    adversarial_training,
    choose_modules,
    evaluation,
    fine_tuning,
    interpolation,
    mcnemar,
    mrc_scan,
)
from rift.store import StageFolder, Store
from rift.tracking import AXES, Tracker

log = logging.getLogger(__name__)

PRODUCERS = {
    "at": "stage=at (or stage=rift, which runs everything), or give model.checkpoint=PATH",
    "mrc": "stage=mrc",
    "finetune": "stage=finetune",
    "interpolate": "stage=interpolate",
}


def make_attack(config: AttackConfig) -> Attack:
    """The configuration as the attack's parameters; fractions become numbers here."""
    return Attack(
        norm=config.norm,
        epsilon=number("attack.epsilon", config.epsilon),
        step_size=number("attack.step_size", config.step_size),
        steps=config.steps,
        random_start=config.random_start,
        keep=config.keep,
        batchnorm=config.batchnorm,
    )


def make_runtime(config: Config) -> Runtime:
    """Chooses device and precision and sets torch's switches."""
    options = config.runtime
    set_global_switches(tf32=options.tf32, deterministic=options.deterministic, threads=options.threads)
    device = choose_device(options.device)
    return Runtime(
        device=device,
        precision=choose_precision(options.precision, device),
        channels_last=options.channels_last,
        fold_batchnorm=options.fold_batchnorm,
        compile=options.compile,
        batch_size=options.batch_size,
        cache_mib=options.cache_mib,
    )


def make_session(config: Config, runtime: Runtime) -> Session:
    """Loads the data and prepares the network's blueprint.

    Raises:
        UserError: data or network cannot be had.
    """
    data = config.dataset
    dataset = load_dataset(
        data.name,
        root=data.root,
        download=data.download,
        mean=data.mean,
        std=data.std,
        train_limit=data.train_limit,
        test_limit=data.test_limit,
        holdout_fraction=data.holdout_fraction,
        split_seed=data.split_seed,
        image_size=data.image_size,
        cache=data.cache,
    ).to(runtime.device)

    def new_network() -> nn.Module:
        seed_everything("initial weights", config.seed)
        foreign = config.model.family == "timm"
        network = build_model(
            config.model.family,
            num_classes=dataset.num_classes,
            in_channels=dataset.shape[0],
            image_size=dataset.shape[1],
            mean=dataset.mean,
            std=dataset.std,
            width=config.model.width,
            timm_name=config.model.name if foreign else None,
            pretrained=config.model.pretrained,
        )
        return runtime.place(network)

    return Session(dataset, runtime, config.seed, new_network)


@dataclass
class Pipeline:
    """The chain of stages of one job.

    Each `_stage` method says what decides its result (the options of its folder), finds its inputs, and
    calls the function that does the work.
    """

    config: Config
    session: Session
    store: Store
    tracker: Tracker
    folders: dict[str, StageFolder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        self.name = f"{config.model.name}-{config.dataset.name}-{config.method.name}-s{config.seed}"
        if config.model.width is not None:
            self.name = self.name.replace("-", f"_w{config.model.width}-", 1)
        self.attack = make_attack(config.attack)
        self.evaluation_attack = make_attack(config.evaluation_attack)
        if config.method.name not in METHODS:
            raise UserError(
                f"method.name={config.method.name} is not known: {choose_from(config.method.name, METHODS)}."
            )
        self.method = METHODS[config.method.name]

    def run(self) -> dict[str, StageFolder]:
        """Runs the wanted stages in order.

        Returns:
            The finished folders, by stage; `evaluate_at` and `evaluate_rift` are the two evaluations.

        Raises:
            UserError: a stage's input does not exist, or the input is bad.
        """
        wanted = self.config.stage.run
        self._at(run="at" in wanted or self.config.model.checkpoint is not None)
        after_at = [stage for stage in wanted if stage != "at"]
        if not after_at:
            return self.folders
        self._mrc(run="mrc" in wanted)
        if after_at == ["mrc"]:
            return self.folders
        if {"finetune", "interpolate"} & set(wanted) or self._finetune(run=False, needed=False):
            self._finetune(run="finetune" in wanted)
            if "interpolate" in wanted or self._interpolate(run=False, needed=False):
                self._interpolate(run="interpolate" in wanted)
        if "evaluate" in wanted:
            self._evaluate("at", self.theta_at, self.folders["at"].key)
            if "interpolate" in self.folders:
                folder = self.folders["interpolate"]
                self._evaluate("rift", folder.load("weights", self.session.runtime.device), folder.key)
        return self.folders

    # -- the stages ------------------------------------------------------------------------------

    @property
    def theta_at(self) -> dict[str, Tensor]:
        """θ_AT on the device."""
        return self._selected("at")

    def _at(self, run: bool) -> None:
        config = self.config
        options = config.stage.at
        if "at" not in config.stage.run and config.model.checkpoint is not None:
            options = replace(options, epochs=0)  # the checkpoint's weights are θ_AT
        initial, digest = self._initial_weights()
        identity = {
            **self._what_network_and_data(),
            "checkpoint": digest,
            "method": config.method.name,
            "attack": asdict(self.attack),
            "evaluation_attack": asdict(self.evaluation_attack),
            "options": self._training_options(options),
            **self._augmentation(options.padding_mode),
            "precision": str(self.session.runtime.precision),
        }
        self._stage(
            "at",
            "at",
            identity,
            run,
            lambda folder: adversarial_training(
                self.session,
                folder,
                options,
                self.method,
                self.attack,
                self.evaluation_attack,
                self._augmentation(options.padding_mode),
                initial,
            ),
        )

    def _mrc(self, run: bool) -> None:
        options = self.config.stage.mrc
        identity = {
            "at": self.folders["at"].key,
            "options": asdict(options),
            "attack": asdict(self.evaluation_attack),
        }
        needed = run or self._needs_ranking()
        self._stage(
            "mrc",
            "mrc",
            identity,
            run,
            lambda folder: mrc_scan(self.session, folder, options, self.theta_at, self.evaluation_attack),
            needed=needed,
        )

    def _needs_ranking(self) -> bool:
        wanted = {"finetune", "interpolate"} & set(self.config.stage.run)
        return bool(wanted) and self.config.stage.finetune.target in (
            "least_critical",
            "most_critical",
            "top_k",
        )

    def _finetune(self, run: bool, needed: bool = True) -> bool:
        options = self.config.stage.finetune
        ranking = self.folders["mrc"].result()["ranking"] if "mrc" in self.folders else None
        if ranking is None and options.target in ("least_critical", "most_critical", "top_k"):
            return False  # only reached when nothing downstream was asked for
        modules = choose_modules(options.target, options.top_k, self.session.new_network(), ranking)
        # The modules decide the result, not by which name they were chosen.
        plain = {
            key: value
            for key, value in self._training_options(options).items()
            if key not in ("target", "top_k")
        }
        identity = {
            "at": self.folders["at"].key,
            "modules": modules,
            "options": plain,
            **self._augmentation(options.padding_mode),
        }
        return self._stage(
            "finetune",
            "finetune",
            identity,
            run,
            lambda folder: fine_tuning(
                self.session,
                folder,
                options,
                self.theta_at,
                modules,
                self._augmentation(options.padding_mode),
            ),
            needed=needed,
        )

    def _interpolate(self, run: bool, needed: bool = True) -> bool:
        options = self.config.stage.interpolate
        identity = {
            "at": self.folders["at"].key,
            "finetune": self.folders["finetune"].key,
            "options": asdict(options),
            "attack": asdict(self.evaluation_attack),
        }
        return self._stage(
            "interpolate",
            "interpolate",
            identity,
            run,
            lambda folder: interpolation(
                self.session,
                folder,
                options,
                self.theta_at,
                self._selected("finetune"),
                self.evaluation_attack,
            ),
            needed=needed,
        )

    def _evaluate(self, which: str, weights: dict[str, Tensor], key: str) -> None:
        options = self.config.stage.evaluate
        identity = {"weights": key, "options": asdict(options), "attack": asdict(self.evaluation_attack)}
        self._stage(
            "evaluate",
            f"evaluate_{which}",
            identity,
            True,
            lambda folder: evaluation(self.session, folder, options, weights, self.evaluation_attack),
        )

    # -- how a stage is run ----------------------------------------------------------------------

    def _stage(
        self,
        stage: str,
        section: str,
        identity: Mapping[str, Any],
        run: bool,
        body: Callable[[StageFolder], dict[str, Any]],
        needed: bool = True,
    ) -> bool:
        """Finds or makes one result. Returns whether it exists now."""
        folder = self.store.folder(
            stage, self.name, {**identity, "seed": self.config.seed, "smoke": self.config.smoke}
        )
        if not run and not folder.finished:
            if not needed:
                return False
            raise UserError(
                f"There is no finished '{stage}' result for these options: run {PRODUCERS[stage]} first."
            )
        with folder.locked():
            if folder.finished:
                folder.verify()
                log.info("%s: reused %s", section, folder.path)
                for row in folder.rows():
                    self.tracker.row(section, row)
            else:
                self._work(section, folder, body)
        self.folders[section] = folder
        return True

    def _work(self, section: str, folder: StageFolder, body: Callable[[StageFolder], dict[str, Any]]) -> None:
        folder.begin()
        folder.on_row = lambda row: self._row(section, row)
        log.info("%s: %s", section, folder.path)
        began = time.monotonic()
        result = body(folder)
        runtime = self.session.runtime
        for sentence in runtime.fallbacks:
            log.warning("%s", sentence)
        folder.finish(
            {
                **result,
                "seed": self.config.seed,
                "data": self.session.dataset.identity,
                "device": runtime.describe(),
                "fallbacks": list(runtime.fallbacks),
                "seconds": time.monotonic() - began,
                "resumed": folder.resumed,
                **provenance(),
            }
        )

    def _row(self, section: str, row: Mapping[str, Any]) -> None:
        self.tracker.row(section, row)
        numbers = [
            f"{name} {value:.4g}"
            for name, value in row.items()
            if isinstance(value, float) and name != AXES[section]
        ]
        head = row.get("module", row[AXES[section]])
        log.info("%s %s: %s", section, head, ", ".join(numbers))

    # -- what decides a result -------------------------------------------------------------------

    def _what_network_and_data(self) -> dict[str, Any]:
        model, dataset = self.config.model, self.session.dataset
        return {
            "model": {
                "family": model.family,
                "name": model.name,
                "width": model.width,
                "pretrained": model.pretrained,
            },
            "data": dataset.identity,
            "normalisation": [list(dataset.mean), list(dataset.std)],
        }

    def _training_options(self, options: ATConfig | Any) -> dict[str, Any]:
        return asdict(options)

    def _augmentation(self, padding_mode: str) -> dict[str, Any]:
        data = self.config.dataset
        return {"padding": data.padding, "padding_mode": padding_mode, "flip": data.flip}

    def _selected(self, stage: str) -> dict[str, Tensor]:
        folder = self.folders[stage]
        return folder.load(folder.result()["weights"], self.session.runtime.device)

    def _initial_weights(self) -> tuple[dict[str, Tensor] | None, str | None]:
        path = self.config.model.checkpoint
        if path is None:
            return None, None
        network = self.session.new_network()
        for sentence in load_foreign_checkpoint(network, Path(path)):
            log.info("%s: %s", path, sentence)
        return network.state_dict(), file_digest(Path(path))


def paired_comparison(folders: Mapping[str, StageFolder]) -> dict[str, Any] | None:
    """McNemar's test of θ_AT against θ* on the same test images, clean and worst-of-k robust."""
    if "evaluate_at" not in folders or "evaluate_rift" not in folders:
        return None
    first, second = (folders[name].load("verdicts") for name in ("evaluate_at", "evaluate_rift"))
    return {
        "clean": mcnemar(first["clean"], second["clean"]),
        "robust": mcnemar(first["robust"].amin(dim=0), second["robust"].amin(dim=0)),
    }
