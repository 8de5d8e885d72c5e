"""SCORE (Pang et al. 2022): squared errors of probabilities instead of cross-entropy and divergence.

Source: github.com/P2333/SCORE, whose two code paths differ. `without_DDPM/train_cifar.py` has the forms
`pgd_at` and `trades`; `gowal21uncovering/utils/trades.py`, made for training with generated images, has
`ddpm`. Published modes while crafting, here `attack.batchnorm`: train, eval, and train without moving
statistics (which nothing here ever does while crafting). The form `trades` of the published code clips the
start to [0, 1]; here, as in TRADES, only what follows is.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from rift.methods.types import Method, Network, from_near_the_image


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Σ_k (p_k − q_k)² of two sets of probabilities (B, K), per image, (B,)."""
    return (first - second).square().sum(dim=1)


def error_to_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """‖p(x') − y‖² per image."""
    return squared_distance(logits.softmax(dim=1), _smoothed(labels, logits, 0.0))


def error_to_clean(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """‖p(x') − p(x)‖² per image."""
    return squared_distance(logits.softmax(dim=1), clean_logits.softmax(dim=1))


def clip_bound(clip: float, num_classes: int) -> float:
    """The squared error of (1 − c, c/(K−1), …) to its label, c²·(1 + 1/(K−1)); less counts as none."""
    return clip**2 * (1 + 1 / (num_classes - 1))


def score(*, form: str, beta: float, clip: float, start_std: float, label_smoothing: float = 0.0) -> Method:
    """Mean of max(0, error − b), where b = `clip_bound(clip, K)` and the error is, by form,

    `pgd_at`: ‖p(x') − y‖²; crafting increases it.
    `trades`: ‖p(x) − y‖² + β·‖p(x') − p(x)‖²; crafting increases the second term; x' passes before x.
    `ddpm`: as `trades`, but only the second term is clipped, before β; x passes before x'.

    Args:
        form: `pgd_at`, `trades` or `ddpm`.
        beta: weight of the second term; 6 in `trades`; 4 in `ddpm`'s README command, 3 for its checkpoints.
        clip: probability on wrong classes that costs nothing; 0.4 (`pgd_at`), 0.3 (`trades`), 0 (`ddpm`).
        start_std: see `rift.methods.trades`; as published 0.001 in `trades`, 0 in the others.
        label_smoothing: of the one-hot labels in the loss.
    """

    def to_labels(
        network: Network, images: Tensor, start: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = network(adversarial)
        error = squared_distance(logits.softmax(dim=1), _smoothed(labels, logits, label_smoothing))
        return F.relu(error - clip_bound(clip, logits.shape[1])).mean(), logits

    def with_divergence(
        network: Network, images: Tensor, start: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        if form == "trades":
            logits, clean = network(adversarial), network(images)
        else:
            clean, logits = network(images), network(adversarial)
        bound = clip_bound(clip, logits.shape[1])
        error = squared_distance(clean.softmax(dim=1), _smoothed(labels, clean, label_smoothing))
        divergence = error_to_clean(logits, clean)
        if form == "trades":
            return F.relu(error + beta * divergence - bound).mean(), logits
        return (error + beta * F.relu(divergence - bound)).mean(), logits

    attack = partial(from_near_the_image, start_std=start_std)
    if form == "pgd_at":
        return Method(error_to_labels, to_labels, attack=attack)
    return Method(error_to_clean, with_divergence, from_clean=True, attack=attack, passes=2)


def _smoothed(labels: Tensor, like: Tensor, smoothing: float) -> Tensor:
    """One-hot labels (B, K), a share of them spread over all classes."""
    one_hot = F.one_hot(labels, like.shape[1]).to(like.dtype)
    return one_hot if not smoothing else one_hot * (1 - smoothing) + smoothing / like.shape[1]
