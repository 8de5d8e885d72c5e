"""TRADES (Zhang et al. 2019): cross-entropy on clean images, and how far adversarial outputs are from clean.

Source: `trades.py` and `train_trades_cifar10.py` of github.com/yaodongyu/TRADES.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from rift.methods.types import Method, Network, from_near_the_image


def kl_from_clean(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """KL(p(x) ‖ p(x')) per image, (B,)."""
    divergence = F.kl_div(logits.log_softmax(dim=1), clean_logits.softmax(dim=1), reduction="none")
    return divergence.sum(dim=1)


def trades(*, beta: float, start_std: float, label_smoothing: float = 0.0) -> Method:
    """CE(f(x), y) + β · mean KL(p(x) ‖ p(x')), no side detached; crafting increases the divergence.

    Three passes in train mode as published: x for the cross-entropy, x', and x again for the divergence.

    Args:
        beta: weight of the divergence; 6 in the training script, 1 to 10 in the README.
        start_std: crafting starts from the image plus normal noise of this standard deviation (0.001 as
            published), in units of the [0, 1] image; with 0, as the attack does.
        label_smoothing: of the cross-entropy.
    """

    def loss(
        network: Network, images: Tensor, start: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        clean = F.cross_entropy(network(images), labels, label_smoothing=label_smoothing)
        logits = network(adversarial)
        divergence = kl_from_clean(logits, network(images)).mean()
        return clean + beta * divergence, logits

    return Method(
        objective=kl_from_clean,
        loss=loss,
        from_clean=True,
        attack=partial(from_near_the_image, start_std=start_std),
        passes=3,
    )
