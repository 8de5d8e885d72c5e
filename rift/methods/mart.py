"""MART (Wang et al. 2020): images that are wrong without an attack count more in the divergence.

Source: `mart.py`, `train_resnet.py` and `train_wideresnet.py` of github.com/YisenWang/MART.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rift.attacks.pgd import cross_entropy
from rift.methods.types import Method, Network, from_near_the_image

# The published constants, which keep logarithms finite.
_MARGIN, _MISCLASSIFIED, _TINY = 1.0001, 1.0000001, 1e-12


def mart(*, beta: float, start_std: float, label_smoothing: float = 0.0) -> Method:
    """BCE(x', y) + β · mean KL(p(x) ‖ p(x')) · (1 − p_y(x)), no side detached; crafting increases CE.

    BCE is the cross-entropy plus −log(1 − p_k(x')), k the most probable wrong class at x'. Two passes in
    train mode as published: x, then x'.

    Args:
        beta: weight of the divergence; published are 5 (train_resnet.py) and 6 (train_wideresnet.py).
        start_std: see `rift.methods.trades`.
        label_smoothing: of the cross-entropy within BCE.
    """

    def loss(
        network: Network, images: Tensor, start: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        clean = network(images).softmax(dim=1)
        logits = network(adversarial)
        probabilities = logits.softmax(dim=1)
        true = labels.unsqueeze(1)
        wrong = torch.scatter(probabilities, 1, true, -1.0).argmax(dim=1, keepdim=True)
        margin = -torch.log(_MARGIN - probabilities.gather(1, wrong) + _TINY).mean()
        boosted = F.cross_entropy(logits, labels, label_smoothing=label_smoothing) + margin
        divergence = F.kl_div(torch.log(probabilities + _TINY), clean, reduction="none").sum(dim=1)
        weight = _MISCLASSIFIED - clean.gather(1, true).squeeze(1)
        return boosted + beta * (divergence * weight).mean(), logits

    return Method(
        objective=cross_entropy, loss=loss, attack=partial(from_near_the_image, start_std=start_std), passes=2
    )
