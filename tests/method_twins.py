"""Published training methods as their few-line textbook forms: what `rift.methods` must equal.

Written from the equations and from the facts that docstrings in `rift/methods/` name; slow and plain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from textbook import update
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]


def craft(
    model: Model,
    x: Tensor,
    start: Tensor,
    distance: Callable[[Tensor], Tensor],
    epsilon: float,
    step_size: float,
    steps: int,
    project: bool = True,
) -> Tensor:
    """Sign ascent on a batch's summed `distance(logits)`, weights' gradients computed along."""
    adversarial = start.detach()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        distance(model(adversarial)).backward()
        moved = adversarial.detach() + step_size * adversarial.grad.sign()
        if project:
            moved = torch.min(torch.max(moved, x - epsilon), x + epsilon)
        adversarial = moved.clamp(0, 1)
    return adversarial.detach()


def kl(clean_logits: Tensor, logits: Tensor) -> Tensor:
    """Σ_k p_k log(p_k / q_k) per image."""
    p, q = F.softmax(clean_logits, dim=1), F.softmax(logits, dim=1)
    return (p * (p / q).log()).sum(dim=1)


def trades_loss(model: Model, x: Tensor, adversarial: Tensor, y: Tensor, beta: float) -> Tensor:
    """Zhang et al. 2019, Eq. 5; three forward passes, as published."""
    natural = F.cross_entropy(model(x), y)
    robust = model(adversarial)
    return natural + beta * kl(model(x), robust).sum() / len(x)


def mart_loss(model: Model, x: Tensor, adversarial: Tensor, y: Tensor, beta: float) -> Tensor:
    """Wang et al. 2020, Eq. 11, image by image."""
    clean, robust = F.softmax(model(x), dim=1), F.softmax(model(adversarial), dim=1)
    total = 0.0
    for p, q, label in zip(clean, robust, y.tolist(), strict=True):
        others = torch.cat([q[:label], q[label + 1 :]])
        boosted = -q[label].log() - (1.0001 - others.max() + 1e-12).log()
        divergence = (p * (p.log() - (q + 1e-12).log())).sum()
        total = total + boosted + beta * divergence * (1.0000001 - p[label])
    return total / len(y)


def squared(p: Tensor, q: Tensor) -> Tensor:
    return ((p - q) ** 2).sum(dim=1)


def one_hot(y: Tensor, like: Tensor) -> Tensor:
    return torch.eye(like.shape[1], dtype=like.dtype)[y]


def score_at_loss(model: Model, adversarial: Tensor, y: Tensor, bound: float) -> Tensor:
    """Pang et al. 2022: clipped squared error to the label."""
    p = F.softmax(model(adversarial), dim=1)
    return (squared(p, one_hot(y, p)) - bound).clamp(min=0).mean()


def score_trades_loss(
    model: Model, x: Tensor, adversarial: Tensor, y: Tensor, beta: float, bound: float
) -> Tensor:
    """Its TRADES form: the whole sum is clipped; the adversarial images pass first."""
    robust = F.softmax(model(adversarial), dim=1)
    clean = F.softmax(model(x), dim=1)
    error = squared(clean, one_hot(y, clean)) + beta * squared(robust, clean)
    return (error - bound).clamp(min=0).mean()


def score_ddpm_loss(
    model: Model, x: Tensor, adversarial: Tensor, y: Tensor, beta: float, bound: float
) -> Tensor:
    """Its second code path: only the distance is clipped; the clean images pass first."""
    clean = F.softmax(model(x), dim=1)
    robust = F.softmax(model(adversarial), dim=1)
    distance = (squared(robust, clean) - bound).clamp(min=0)
    return squared(clean, one_hot(y, clean)).mean() + beta * distance.mean()


def aaer_loss(
    model: Model, start: Tensor, adversarial: Tensor, y: Tensor, lambdas: tuple[float, float, float]
) -> Tensor:
    """Lin et al. 2023 as released: only the abnormal examples' logits at x' carry the second gradient."""
    before_logits = model(start).detach()
    logits = model(adversarial)
    before = F.cross_entropy(before_logits, y, reduction="none")
    after = F.cross_entropy(logits, y, reduction="none")
    abnormal = [i for i in range(len(y)) if before[i] > after[i]]
    normal = [i for i in range(len(y)) if not before[i] > after[i]]
    loss = after.mean()
    if not abnormal or not normal:
        return loss
    number, by_ce, by_output = lambdas
    variation = ((logits[abnormal] - before_logits[abnormal]) ** 2).sum(1).mean()
    of_normal = ((logits[normal] - before_logits[normal]) ** 2).sum(1).mean().item()
    ce = (before[abnormal] - after[abnormal].detach()).mean()
    excess = variation - of_normal if variation > of_normal else 0.0
    return loss + number * len(abnormal) / len(y) * (by_ce * ce + by_output * excess)


def trades_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    epsilon: float,
    step_size: float,
    steps: int,
) -> float:
    """One update of TRADES, β = 6, crafted in eval mode."""
    model.eval()
    with torch.no_grad():
        clean = model(x)
    adversarial = craft(model, x, start, lambda logits: kl(clean, logits).sum(), epsilon, step_size, steps)
    return update(model, optimizer, lambda net: trades_loss(net, x, adversarial, y, beta=6.0))


def awp_at_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    epsilon: float,
    step_size: float,
    steps: int,
) -> float:
    """One update of PGD-AT with weight perturbation, γ = 0.01, crafted in eval mode."""
    model.eval()
    adversarial = craft(model, x, start, lambda z: F.cross_entropy(z, y), epsilon, step_size, steps)
    model.train()
    return awp_step(model, optimizer, lambda net: F.cross_entropy(net(adversarial), y), gamma=0.01)


def n_fgsm_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    epsilon: float,
    *others: object,
) -> float:
    """One update of N-FGSM, crafted in eval mode; size and number of steps are its own."""
    model.eval()
    adversarial = craft(model, x, start, lambda z: F.cross_entropy(z, y), epsilon, epsilon, 1, project=False)
    return update(model, optimizer, lambda net: F.cross_entropy(net(adversarial), y))


def awp_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[nn.Module], Tensor],
    gamma: float,
) -> float:
    """Wu et al. 2020: one update at weights that a copy of the network has found worse."""
    proxy = copy.deepcopy(model).train()
    ascent = torch.optim.SGD(proxy.parameters(), lr=0.01)
    ascent.zero_grad()
    (-loss_of(proxy)).backward()
    ascent.step()
    moves = {}
    for (name, weight), moved in zip(model.named_parameters(), proxy.parameters(), strict=True):
        if weight.dim() > 1 and "weight" in name:
            move = (moved - weight).detach()
            moves[name] = gamma * weight.detach().norm() / (move.norm() + 1e-20) * move
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, move in moves.items():
            named[name] += move
    loss = update(model, optimizer, loss_of)
    with torch.no_grad():
        for name, move in moves.items():
            named[name] -= move
    return loss
