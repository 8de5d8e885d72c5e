"""Module robust criticality: how much worse the robust loss gets when one module's weight moves a little.

MRC(i) = max over ‖Δθ_i‖ ≤ ε_w ‖θ_i‖ of R(θ + Δθ_i) − R(θ)     (Def. 3.1; relaxed as in Sec. 3.3: the
adversarial examples are fixed)

Pure functions on tensors. Each solver looks for the maximum from inside the ball, so what it returns is a
lower bound of the true MRC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Batch = tuple[tuple[Tensor, ...], Tensor]
"""(boundary tensors, labels (B,)), see `rift.runtime.suffix`; rows beyond the labels do not count."""
Logits = Callable[..., Tensor]
"""(weight, *boundary tensors) -> logits (B, K)."""


@dataclass(frozen=True)
class Solver:
    """How the maximum is sought.

    Attributes:
        name: `sgd`, the paper's Algorithm 1 and its published variant, or `projected`, normalised gradient
            ascent that is projected after every step.
        epsilon_w: radius of the ball, as a share of the weight's norm.
        norm: of the ball: `l2` or `linf`.
        epochs: passes over the data, T in Algorithm 1.
        project: `sgd`: back into the ball after every `epoch` or every `step`.
        on_violation: `sgd`: once the ball was left, `stop` (Algorithm 1) or `continue` (published code).
        score: `sgd`: report the `last` epoch's loss, or the `worst` of all epochs.
        optimizer: `sgd`: makes an optimiser for the one weight; it descends on the negative loss.
    """

    name: str
    epsilon_w: float
    norm: str
    epochs: int
    project: str
    on_violation: str
    score: str
    optimizer: Callable[[Sequence[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Criticality:
    """What the search found for one module.

    Attributes:
        mrc: rise of the mean cross-entropy over the adversarial examples.
        robust_accuracy_drop: fall of the accuracy on them, as a fraction.
        relative_norm: norm of the perturbation as a share of the weight's, at most epsilon_w.
        farthest: the largest such share on the way, before projection.
        epochs: passes made before the search ended.
    """

    mrc: float
    robust_accuracy_drop: float
    relative_norm: float
    farthest: float
    epochs: int


def norm_of(tensor: Tensor, norm: str) -> Tensor:
    """The ℓ2 or ℓ∞ norm of all elements together, a scalar."""
    return torch.linalg.vector_norm(tensor, ord=2 if norm == "l2" else math.inf)


def project(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The nearest point of the ball of this radius about zero; a point inside is returned unchanged."""
    if norm == "linf":
        return torch.clamp(delta, -radius, radius)
    length = norm_of(delta, norm)
    # Whether it is outside is decided on the device: no waiting for the host.
    return torch.where(length > radius, delta * (radius / length.clamp_min(1e-30)), delta)


@torch.no_grad()
def robust_loss(logits: Logits, weight: Tensor, batches: Iterable[Batch]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over the adversarial examples, with this weight."""
    totals, count = torch.zeros(2, dtype=torch.float64, device=weight.device), 0
    for boundary, labels in batches:
        scores = logits(weight, *boundary).float()[: len(labels)]
        loss = F.cross_entropy(scores, labels, reduction="sum")
        totals += torch.stack([loss, (scores.argmax(dim=1) == labels).sum()])
        count += len(labels)
    loss_sum, correct = totals.tolist()
    return loss_sum / count, correct / count


def module_robust_criticality(
    logits: Logits,
    weight: Tensor,
    batches: Callable[[], Iterable[Batch]],
    baseline: tuple[float, float],
    solver: Solver,
    search_logits: Logits | None = None,
    search_batches: Callable[[], Iterable[Batch]] | None = None,
) -> Criticality:
    """Seeks the worst perturbation of one weight and says what it does.

    Args:
        logits: the network as a function of this weight.
        weight: θ_i, any shape; not changed.
        batches: makes one pass over the adversarial examples.
        baseline: mean loss and accuracy with the weight as it is.
        solver: how to search.
        search_logits: the same function in lower precision, for the search alone, which includes the
            choice between epochs; what is reported comes from `logits`.
        search_batches: the passes for it; the same as `batches` if not given.

    Returns:
        The best perturbation found that lies in the ball. MRC can be negative only if every perturbation
        that was scored lowered the loss; a search that diverged gives NaN.
    """
    radius = solver.epsilon_w * norm_of(weight, solver.norm)
    find = _sgd if solver.name == "sgd" else _projected
    search_logits, search_batches = search_logits or logits, search_batches or batches
    screened = solver.score == "worst" and search_logits is not logits
    score, scored_batches = (search_logits, search_batches) if screened else (logits, batches)
    best, farthest, epochs = None, 0.0, 0
    for delta, reached, last in find(search_logits, weight, search_batches, radius, solver):
        epochs += 1
        farthest = max(farthest, float(reached))
        if not math.isfinite(float(reached)):  # a later epoch must not hide it
            return Criticality(math.nan, math.nan, math.nan, math.inf, epochs)
        if solver.score == "worst" or last:
            scored = robust_loss(score, weight + delta, scored_batches())
            if best is None or scored[0] > best[0] or not math.isfinite(scored[0]):
                best = (*scored, delta)
    assert best is not None
    loss, accuracy, delta = best
    if screened and math.isfinite(loss):
        loss, accuracy = robust_loss(logits, weight + delta, batches())
    length, moved = float(norm_of(weight, solver.norm)), float(norm_of(delta, solver.norm))
    return Criticality(
        mrc=loss - baseline[0],
        robust_accuracy_drop=baseline[1] - accuracy,
        relative_norm=moved / length if length else 0.0,
        farthest=farthest / length if length else 0.0,
        epochs=epochs,
    )


def _gradient(logits: Logits, weight: Tensor, boundary: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    weight = weight.detach().requires_grad_()
    loss = F.cross_entropy(logits(weight, *boundary).float()[: len(labels)], labels)
    return torch.autograd.grad(loss, weight)[0]


def _sgd(
    logits: Logits, weight: Tensor, batches: Callable[[], Iterable[Batch]], radius: Tensor, solver: Solver
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Algorithm 1: after each epoch the perturbation in the ball, how far it went, whether it is the last."""
    moved = weight.clone()
    optimizer = solver.optimizer([moved])
    for epoch in range(solver.epochs):
        reached = torch.zeros((), device=weight.device)
        for boundary, labels in batches():
            moved.grad = _gradient(logits, moved, boundary, labels).neg_()
            optimizer.step()
            reached = torch.maximum(reached, norm_of(moved - weight, solver.norm))
            if solver.project == "step":
                moved.copy_(weight + project(moved - weight, radius, solver.norm))
        violated = bool(
            reached > radius if solver.project == "step" else norm_of(moved - weight, solver.norm) > radius
        )
        delta = project(moved - weight, radius, solver.norm)
        moved.copy_(weight + delta)
        stop = violated and solver.on_violation == "stop"
        yield delta, reached, stop or epoch == solver.epochs - 1
        if stop:
            return


def _projected(
    logits: Logits, weight: Tensor, batches: Callable[[], Iterable[Batch]], radius: Tensor, solver: Solver
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Normalised ascent inside the ball.

    The first steps are longer than the ball is wide, so they go to where the gradient points on its surface;
    the length falls linearly from four radii to almost nothing.
    """
    delta = torch.zeros_like(weight)
    velocity = torch.zeros_like(weight)
    reached = torch.zeros((), device=weight.device)
    per_epoch = sum(1 for _ in batches())  # counted, not kept: a pass may not fit into memory
    steps = solver.epochs * per_epoch
    for epoch in range(solver.epochs):
        for index, (boundary, labels) in enumerate(batches()):
            gradient = _gradient(logits, weight + delta, boundary, labels)
            velocity = 0.5 * velocity + gradient / norm_of(gradient, "l2").clamp_min(1e-30)
            if solver.norm == "linf":
                direction = velocity.sign()
            else:
                direction = velocity / norm_of(velocity, "l2").clamp_min(1e-30)
            radii = 4 * (1 - (epoch * per_epoch + index) / steps)
            moved = delta + radii * radius * direction
            reached = torch.maximum(reached, norm_of(moved, solver.norm))
            delta = project(moved, radius, solver.norm)
        yield delta, reached, epoch == solver.epochs - 1
