"""AAER (Lin, Yu, Liu 2023): single-step training that holds abnormal adversarial examples down.

Source: github.com/tmllab/2023_NeurIPS_AAER, `CIFAR10/AAER.py`, in its N-AAER form (crafted as N-FGSM). An
abnormal example is one whose loss is smaller after the attack's step than before it, at the noisy start.
Catastrophic overfitting begins with them.

What λ2 weighs, the abnormal examples' mean loss before minus after, is built out of detached losses in the
released code, and so here: it is part of the loss that is printed, and changes no gradient. A version that
differentiates it would be another method; the paper's text was not at hand to say which was meant.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rift.attacks.pgd import cross_entropy
from rift.methods.n_fgsm import single_step
from rift.methods.types import Method, Network


def aaer(
    *,
    start_radius: float,
    step: float,
    lambda1: float,
    lambda2: float,
    lambda3: float,
    label_smoothing: float = 0.0,
) -> Method:
    """CE(x') + λ1·n_A/m · (λ2·C + λ3·max(V_A − V_N, 0)); the second part only where a batch has both kinds.

    n_A of m images are abnormal; C is their mean CE(start) − CE(x'); V_A and V_N are the mean squared ℓ2
    distances between the logits at the start and at x' over abnormal and normal images. Only V_A's logits at
    x' carry a gradient. Two forward passes in train mode as published, the start's first, one backward.

    Args:
        start_radius, step: see `rift.methods.n_fgsm`.
        lambda1, lambda2, lambda3: 1, 1.5 and 0.15 for CIFAR at 8/255 in the README, more for larger budgets.
        label_smoothing: of the cross-entropy at x' alone, not of the test for abnormal examples.
    """

    def loss(
        network: Network, images: Tensor, start: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits_before = network(start).detach()
        torch.clear_autocast_cache()  # weights that were cast without a gradient would be used again
        logits = network(adversarial)
        before, after = cross_entropy(logits_before, labels), cross_entropy(logits.detach(), labels)
        abnormal = before > after
        ce_variation = _mean_where(abnormal, before - after)
        distance = (logits - logits_before).square().sum(dim=1)
        output_variation = F.relu(_mean_where(abnormal, distance) - _mean_where(~abnormal, distance).detach())
        both = abnormal.any() & ~abnormal.all()
        share = lambda1 * abnormal.float().mean() * both
        ce = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return ce + share * (lambda2 * ce_variation + lambda3 * output_variation), logits

    attack = partial(single_step, start_radius=start_radius, step=step)
    return Method(cross_entropy, loss, attack=attack, passes=4 / 3, of_single_images=False)


def _mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """Mean of the values chosen; 0 of none. On the device, without waiting."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)
