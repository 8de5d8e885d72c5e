"""Projected gradient descent under ℓ∞ and ℓ2 (Madry et al. 2018), the attack of the whole paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rift.randomness import normal, uniform

Objective = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, K) float32, target) -> per-image losses (B,) that the attack increases.

The target is what the logits are compared with: labels (B,), or the clean images' logits (B, K).
"""


@dataclass(frozen=True)
class Attack:
    """What PGD needs to know; the defaults are the paper's (Sec. 5.1).

    Attributes:
        norm: `linf` or `l2`.
        epsilon: radius of the ball, in units of the [0, 1] image.
        step_size: length of one step, same units.
        steps: gradient evaluations per image.
        random_start: begin at a uniform point of the ball instead of the image.
        keep: `last` returns the last iterate (what the published code does), `best` the iterate of
            highest loss per image, the last one included.
        batchnorm: BatchNorm mode while crafting, `eval` (Pang et al. 2021) or `train`.
        start_radius: of the ball that the random start is drawn from, where it is not epsilon.
        start_std: the random start is the image plus normal noise of this standard deviation instead, not
            clipped to [0, 1] (TRADES, MART).
        project: keep the iterates in the ball; without it they only stay in [0, 1].
    """

    norm: str = "linf"
    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    random_start: bool = True
    keep: str = "last"
    batchnorm: str = "eval"
    start_radius: float | None = None
    start_std: float | None = None
    project: bool = True

    def craft(
        self,
        network: Callable[[Tensor], Tensor],
        images: Tensor,
        target: Tensor,
        start: Tensor,
        objective: Objective,
    ) -> Tensor | None:
        """Another package's attack in place of PGD; None where it is PGD."""
        return None

    @property
    def name(self) -> str:
        """What people call it: `pgd10`; without a random start `bim10`, or `fgsm` if it is one full step."""
        if self.random_start:
            return f"pgd{self.steps}"
        return "fgsm" if self.steps == 1 and self.step_size >= self.epsilon else f"bim{self.steps}"


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per image, (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the batch; a mean would underflow in half precision."""
    return F.cross_entropy(logits, labels, reduction="sum")


def _per_image(norms: Tensor, like: Tensor) -> Tensor:
    return norms.reshape(-1, *[1] * (like.dim() - 1))


def _l2_norms(x: Tensor) -> Tensor:
    return _per_image(torch.linalg.vector_norm(x.flatten(1), dim=1), x)


def _into_l2_ball(delta: Tensor, epsilon: float) -> Tensor:
    return delta * (epsilon / _l2_norms(delta).clamp_min(1e-12)).clamp_max(1.0)


def random_start(images: Tensor, indices: Tensor, key: tuple[int | str, ...], attack: Attack) -> Tensor:
    """A uniform point of the ball around each image, clipped to [0, 1]; or the image plus normal noise.

    Args:
        images: (B, C, H, W) float32 in [0, 1].
        indices: (B,) int64, the images' positions in their data set; with `key` they alone decide the
            point, so batches may be cut in any way (see `rift.randomness`).
        key: what the numbers are for, e.g. `("start", seed, epoch)`.
        attack: its norm, its epsilon, and what it says of the start.

    Returns:
        Tensor like `images`.
    """
    size = images[0].numel()
    # Drawn in NCHW order whatever the memory format, so that the format changes no number.
    if attack.start_std is not None:
        return images + attack.start_std * normal(key, indices, size).view(images.shape)
    reach = attack.epsilon if attack.start_radius is None else attack.start_radius
    if attack.norm == "linf":
        noise = uniform(key, indices, size).mul_(2).sub_(1).mul_(reach)
        return (images + noise.view(images.shape)).clamp_(0, 1)
    direction = normal(("direction", *key), indices, size).view(images.shape)
    # The volume of a ball of dimension d grows as radius**d.
    radius = uniform(("radius", *key), indices, 1).squeeze(1) ** (1 / size) * reach
    scale = _per_image(radius, images) / _l2_norms(direction).clamp_min(1e-12)
    return (images + direction * scale).clamp_(0, 1)


def pgd(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    target: Tensor,
    start: Tensor,
    attack: Attack,
    objective: Objective = cross_entropy,
) -> Tensor:
    """Adversarial examples by projected gradient ascent on `objective`.

    The network's parameters should not require gradients (see `rift.runtime.crafting`): then only the
    gradient with respect to the input is computed. The network is called and nothing else is done to it.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K).
        images: (B, C, H, W) float32 in [0, 1].
        target: what `objective` compares the logits with; labels (B,) int64 for cross-entropy.
        start: like `images`, the first iterate.
        attack: norm, epsilon, step size, number of steps, which iterate to keep.
        objective: losses per image that are increased; cross-entropy with the true label by default.

    Returns:
        Tensor like `images`, in [0, 1] and, unless the attack does not project, within epsilon of them.
    """
    if (crafted := attack.craft(network, images, target, start, objective)) is not None:
        return _projected(crafted.detach(), images, attack)
    if attack.norm == "linf":
        # Ball and box are one box: its bounds are computed once.
        reach = attack.epsilon if attack.project else 1.0
        lower = (images - reach).clamp_(min=0)
        upper = (images + reach).clamp_(max=1)

    def ascend(x: Tensor, gradient: Tensor) -> Tensor:
        if attack.norm == "linf":
            return torch.clamp(x + attack.step_size * gradient.sign(), lower, upper)
        step = attack.step_size * gradient / _l2_norms(gradient).clamp_min(1e-12)
        if not attack.project:
            return (x + step).clamp_(0, 1)
        # Clipping a point of the ball to [0, 1] moves it towards the image, so it stays in the ball.
        return (images + _into_l2_ball(x + step - images, attack.epsilon)).clamp_(0, 1)

    x, best, best_loss = start, start, None
    for _ in range(attack.steps):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            losses = objective(network(x).float(), target)
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        if attack.keep == "best":
            best, best_loss = _better(x.detach(), losses.detach(), best, best_loss)
        x = ascend(x.detach(), gradient)
    if attack.keep == "best":
        with torch.no_grad():
            best, _ = _better(x, objective(network(x).float(), target), best, best_loss)
        return best
    return x.detach()


def _projected(x: Tensor, images: Tensor, attack: Attack) -> Tensor:
    """The points, moved into the ball and into [0, 1] where they are not."""
    if attack.norm == "linf":
        lower, upper = images - attack.epsilon, images + attack.epsilon
        return torch.clamp(x, lower, upper).clamp_(0, 1)
    return (images + _into_l2_ball(x - images, attack.epsilon)).clamp_(0, 1)


def _better(x: Tensor, losses: Tensor, best: Tensor, best_loss: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per image, the candidate of higher loss."""
    if best_loss is None:
        return x, losses
    higher = losses > best_loss
    return torch.where(_per_image(higher, x), x, best), torch.maximum(losses, best_loss)
