"""What can be measured of finished weights: for each thing, what decides it and how it is done.

Each measurement of each network is a result of its own, so that one more attacks nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rift.assembly import make_attack
from rift.attacks.auto_attack import require_library
from rift.config import Config
from rift.data import Split, open_published, read_cifar10_1
from rift.data.corrupted import CorruptedSet
from rift.data.generated import GeneratedSet
from rift.errors import UserError
from rift.stages import (
    Session,
    auto_attack_evaluation,
    corruption_evaluation,
    evaluation,
    natural_shift,
)
from rift.store import StageFolder

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Measurement:
    """One thing that is measured.

    Attributes:
        section: begins the names of its results: `evaluate`, `auto_attack`, `corruptions`, `cifar10_1`.
        identity: what decides the outcome besides the weights.
        body: does it, in a result folder, of weights on the device; given the result that it builds on.
        after: section of that result, of the same network, if there is one.
    """

    section: str
    identity: Mapping[str, Any]
    body: Callable[[StageFolder, Weights, StageFolder | None], dict[str, Any]]
    after: str | None = None


def measurements(config: Config, session: Session) -> list[Measurement]:
    """The measurements that `stage.evaluate.measure` asks for; images are opened and checked.

    Raises:
        UserError: images are missing, or not what they should be.
    """
    known = {
        "pgd": _pgd,
        "auto_attack": _auto_attack,
        "corruptions": _corruptions,
        "cifar10_1": _cifar10_1,
    }
    return [make(config, session) for name, make in known.items() if name in config.stage.evaluate.measure]


def _pgd(config: Config, session: Session) -> Measurement:
    options, attack = config.stage.evaluate, make_attack(config.evaluation_attack)
    identity = {
        "options": {"restarts": options.restarts, "exact_runs": options.exact_runs},
        "attack": asdict(attack),
        "precision": str(session.runtime.evaluation_precision),
        "tf32": config.runtime.tf32,
    }

    def attacked(folder: StageFolder, weights: Weights, earlier: StageFolder | None) -> dict[str, Any]:
        return evaluation(session, folder, options, weights, attack)

    return Measurement("evaluate", identity, attacked)


def _auto_attack(config: Config, session: Session) -> Measurement:
    require_library()
    options, attack = config.stage.evaluate, make_attack(config.evaluation_attack)
    identity = {
        "threat_model": [attack.norm, attack.epsilon],
        "version": options.auto_attack,
        "max_images": options.auto_attack_images,
        "batch_size": session.runtime.batch_size,  # which images share random numbers
        "tf32": config.runtime.tf32,
    }

    def attacked(folder: StageFolder, weights: Weights, earlier: StageFolder | None) -> dict[str, Any]:
        survivors = None if earlier is None else earlier.load("verdicts")["robust"].amin(dim=0)
        version, count = options.auto_attack, options.auto_attack_images
        return auto_attack_evaluation(session, folder, weights, attack, version, count, survivors)

    return Measurement("auto_attack", identity, attacked, after="evaluate")


def _corruptions(config: Config, session: Session) -> Measurement:
    options, corrupted = config.stage.evaluate, open_corrupted(config, session)
    names, severities = options.corruption_names(), sorted(set(options.severities))
    identity = {
        "corruptions": list(names),
        "severities": severities,
        "images": corrupted.identity,
        "tf32": config.runtime.tf32,
    }

    def corrupt(folder: StageFolder, weights: Weights, earlier: StageFolder | None) -> dict[str, Any]:
        return corruption_evaluation(session, folder, weights, names, severities, corrupted)

    return Measurement("corruptions", identity, corrupt)


def open_corrupted(config: Config, session: Session) -> CorruptedSet:
    """The published set, or our own where there is none; see `Config.corruptions_kind`."""
    data, options, dataset = config.dataset, config.stage.evaluate, session.dataset
    if config.corruptions_kind == "generated":
        return GeneratedSet(dataset.test)
    root = Path(data.corrupted_root or data.root).expanduser()
    return open_published(
        data.name,
        root,
        corruptions=options.corruption_names(),
        severities=sorted(set(options.severities)),
        test=dataset.test,
        classes=dataset.identity["classes"],
        download=data.download,
        cache=Path(data.cache or Path(data.root) / ".rift-cache").expanduser(),
    )


def _cifar10_1(config: Config, session: Session) -> Measurement:
    data = config.dataset
    if data.name != "cifar10":
        raise UserError(
            f"stage.evaluate.measure=cifar10_1 is for dataset=cifar10, not {data.name}: leave it out."
        )
    images, labels = read_cifar10_1(Path(data.corrupted_root or data.root).expanduser())
    split = Split(images, labels, torch.arange(len(labels)))

    def shifted(folder: StageFolder, weights: Weights, earlier: StageFolder | None) -> dict[str, Any]:
        return natural_shift(session, folder, weights, split)

    return Measurement("cifar10_1", {"images": "v6", "tf32": config.runtime.tf32}, shifted)
