"""What a training method consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rift.attacks import Objective


@dataclass(frozen=True)
class Method:
    """One way to train adversarially: what the attack increases, and what the optimiser decreases.

    Attributes:
        objective: per-image losses (B,) that crafting increases.
        loss: (network, clean images, adversarial images, labels) -> (scalar loss, logits of the
            adversarial images). The network is in train mode; logits are float32.
    """

    objective: Objective
    loss: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
