"""PGD adversarial training (Madry et al. 2018): cross-entropy on adversarial images alone."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from rift.attacks.pgd import cross_entropy
from rift.methods.types import Method


def _loss(
    network: Callable[[Tensor], Tensor], images: Tensor, adversarial: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    logits = network(adversarial).float()
    return F.cross_entropy(logits, labels), logits


PGD_AT = Method(objective=cross_entropy, loss=_loss)
