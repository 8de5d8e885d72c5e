"""An attack of another package in the place of PGD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rift import plugins
from rift.attacks.pgd import Attack, Objective

GIVEN = ("network", "images", "target", "start", "attack", "objective")


@dataclass(frozen=True)
class PluginAttack(Attack):
    """An attack whose examples another package makes; they are projected into the ball afterwards.

    Attributes:
        plugin: name of the entry point.
        options: its own, as pairs, so that the attack can be hashed.
        identity: package, version and digest, for the keys of results.
    """

    plugin: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    identity: tuple[tuple[str, str], ...] = ()

    def craft(
        self,
        network: Callable[[Tensor], Tensor],
        images: Tensor,
        target: Tensor,
        start: Tensor,
        objective: Objective,
    ) -> Tensor:
        make = plugins.load("attack", self.plugin)
        return make(network, images, target, start, attack=self, objective=objective, **dict(self.options))

    @property
    def name(self) -> str:
        return self.plugin
