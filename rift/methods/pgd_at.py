"""PGD adversarial training (Madry et al. 2018): cross-entropy on adversarial images alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rift.attacks.pgd import cross_entropy
from rift.methods.types import Method, Network


def pgd_at(*, label_smoothing: float = 0.0) -> Method:
    """The method; `label_smoothing` is the share of the label that is spread over all classes."""

    def loss(
        network: Network, images: Tensor, start: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = network(adversarial)
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits

    return Method(objective=cross_entropy, loss=loss)
