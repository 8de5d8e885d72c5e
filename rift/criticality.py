"""Module robust criticality: how much worse the robust loss gets when one module's weight moves a little.

MRC(i) = max over ‖Δθ_i‖ ≤ ε_w ‖θ_i‖ of R(θ + Δθ_i) − R(θ)     (Def. 3.1; relaxed as in Sec. 3.3: the
adversarial examples are fixed)

Of a *set* of modules it is the same maximum with all of them moving at once, each within its own ball: what
the paper misses for its Table 4. A set of one is the paper's.

Pure functions on tensors. Each solver looks for the maximum from inside the ball, so what it returns is a
lower bound of the true MRC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Batch = tuple[tuple[Tensor, ...], Tensor]
"""(boundary tensors, labels (B,)), see `rift.runtime.suffix`; rows beyond the labels do not count."""
Logits = Callable[..., Tensor]
"""(*weights, *boundary tensors) -> logits (B, K)."""
Weights = tuple[Tensor, ...]
"""Of the modules that move: one, but for the MRC of a set."""
State = dict[str, Any]
"""Where a search stands between two epochs: numbers, texts and tensors, in lists, tuples and dictionaries."""


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
        optimizer: `sgd`: makes an optimiser for the weights; it descends on the negative loss.
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
    """What the search found for one module, or for a set of them.

    Attributes:
        mrc: rise of the mean cross-entropy over the adversarial examples.
        robust_accuracy_drop: fall of the accuracy on them, as a fraction.
        relative_norm: norm of the perturbation as a share of the weight's, at most epsilon_w; of a set, the
            largest.
        farthest: the largest such share on the way, before projection.
        epochs: passes made before the search ended.
    """

    mrc: float
    robust_accuracy_drop: float
    relative_norm: float
    farthest: float
    epochs: int

    @property
    def finite(self) -> bool:
        """Whether the search stayed within the numbers."""
        return math.isfinite(self.mrc) and math.isfinite(self.farthest)


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
def robust_loss(
    logits: Logits,
    weights: Tensor | Sequence[Tensor],
    batches: Iterable[Batch],
    at_once: int | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over the adversarial examples, with this weight, or these."""
    weights = _several(weights)
    totals, count = torch.zeros(2, dtype=torch.float64, device=weights[0].device), 0
    for whole in batches:
        for boundary, labels in _parts(*whole, at_once):
            scores = logits(*weights, *boundary).float()[: len(labels)]
            loss = F.cross_entropy(scores, labels, reduction="sum")
            totals += torch.stack([loss, (scores.argmax(dim=1) == labels).sum()])
            count += len(labels)
    loss_sum, correct = totals.tolist()
    return loss_sum / count, correct / count


def module_robust_criticality(
    logits: Logits,
    weights: Tensor | Sequence[Tensor],
    batches: Callable[[], Iterable[Batch]],
    baseline: tuple[float, float],
    solver: Solver,
    search_logits: Logits | None = None,
    search_batches: Callable[[], Iterable[Batch]] | None = None,
    at_once: int | None = None,
    begun: State | None = None,
    pause: Callable[[State], None] = lambda state: None,
) -> Criticality:
    """Seeks the worst perturbation of one weight, or of several at once, and says what it does.

    Args:
        logits: the network as a function of the weights.
        weights: θ_i, any shape, or those of a set, each of which gets a ball of its own; not changed.
        batches: makes one pass over the adversarial examples.
        baseline: mean loss and accuracy with the weights as they are.
        solver: how to search.
        search_logits: the same function in lower precision, for the search alone, which includes the
            choice between epochs; what is reported comes from `logits`.
        search_batches: the passes for it; the same as `batches` if not given.
        at_once: images whose loss or gradient is computed at once, where a whole batch finds no room.
        begun: where an earlier call stood, as told to `pause`, after `begun["passes"]` search passes.
        pause: told after each epoch but the last where the search stands; its tensors change later.

    Returns:
        The best perturbation found that lies in the ball. MRC can be negative only if every perturbation
        that was scored lowered the loss; a search that diverged gives NaN.
    """
    weights = _several(weights)
    radii = [solver.epsilon_w * norm_of(weight, solver.norm) for weight in weights]
    find = _sgd if solver.name == "sgd" else _projected
    search_logits, search_batches = search_logits or logits, search_batches or batches
    screened = solver.score == "worst" and search_logits is not logits
    score, scored_batches = (search_logits, search_batches) if screened else (logits, batches)
    best, farthest, epochs = None, [0.0] * len(weights), 0
    if begun is not None:
        best, farthest, epochs = begun["best"], begun["farthest"], begun["epochs"]
    search = find(search_logits, weights, search_batches, radii, solver, at_once, begun and begun["search"])
    for deltas, reached, last, stands in search:
        epochs += 1
        lengths = reached.tolist()
        farthest = [max(pair) for pair in zip(farthest, lengths, strict=True)]
        if not all(map(math.isfinite, lengths)):  # a later epoch must not hide it
            return Criticality(math.nan, math.nan, math.nan, math.inf, epochs)
        if solver.score == "worst" or last:
            scored = robust_loss(score, _sums(weights, deltas), scored_batches(), at_once)
            if best is None or scored[0] > best[0] or not math.isfinite(scored[0]):
                best = (*scored, deltas)
        if not last:
            passes = epochs * (2 if screened else 1)
            pause({"search": stands, "best": best, "farthest": farthest, "epochs": epochs, "passes": passes})
    assert best is not None
    loss, accuracy, deltas = best
    if screened and math.isfinite(loss):
        loss, accuracy = robust_loss(logits, _sums(weights, deltas), batches(), at_once)
    moved = [float(norm_of(delta, solver.norm)) for delta in deltas]
    lengths = [float(norm_of(weight, solver.norm)) for weight in weights]
    return Criticality(
        mrc=loss - baseline[0],
        robust_accuracy_drop=baseline[1] - accuracy,
        relative_norm=_largest_share(moved, lengths),
        farthest=_largest_share(farthest, lengths),
        epochs=epochs,
    )


def _several(weights: Tensor | Sequence[Tensor]) -> Weights:
    return (weights,) if isinstance(weights, Tensor) else tuple(weights)


def _sums(weights: Sequence[Tensor], deltas: Sequence[Tensor]) -> Weights:
    return tuple(weight + delta for weight, delta in zip(weights, deltas, strict=True))


def _largest_share(parts: Sequence[float], wholes: Sequence[float]) -> float:
    return max(part / whole if whole else 0.0 for part, whole in zip(parts, wholes, strict=True))


def _gradients(
    logits: Logits,
    weights: Weights,
    boundary: tuple[Tensor, ...],
    labels: Tensor,
    at_once: int | None = None,
) -> Weights:
    """Of the mean loss of a batch; summed over its parts where it finds no room as a whole."""
    weights = tuple(weight.detach().requires_grad_() for weight in weights)
    found = None
    for part, targets in _parts(boundary, labels, at_once):
        loss = F.cross_entropy(logits(*weights, *part).float()[: len(targets)], targets)
        gradients = torch.autograd.grad(loss, weights)
        if len(targets) == len(labels):
            return gradients
        share = len(targets) / len(labels)
        scaled = [gradient * share for gradient in gradients]
        found = scaled if found is None else [f + s for f, s in zip(found, scaled, strict=True)]
    return tuple(found)


def _parts(boundary: tuple[Any, ...], labels: Tensor, at_once: int | None) -> Iterator[Batch]:
    """A batch in parts of so many images; as it is, if it is no larger."""
    if at_once is None or len(labels) <= at_once:
        yield boundary, labels
        return
    rows = len(boundary[0])  # more than labels, where the batch was filled up
    for start in range(0, len(labels), at_once):
        part = slice(start, start + at_once)
        yield (
            tuple(
                value[part] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value
                for value in boundary
            ),
            labels[part],
        )


def _lengths(tensors: Iterable[Tensor], norm: str) -> Tensor:
    return torch.stack([norm_of(tensor, norm) for tensor in tensors])


def _sgd(
    logits: Logits,
    weights: Weights,
    batches: Callable[[], Iterable[Batch]],
    radii: Sequence[Tensor],
    solver: Solver,
    at_once: int | None,
    begun: State | None,
) -> Iterator[tuple[Weights, Tensor, bool, State]]:
    """Algorithm 1: after each epoch the perturbations, how far each went, whether it is the last, and where
    it stands."""
    moved = [weight.clone() for weight in weights]
    optimizer = solver.optimizer(moved)
    bounds = torch.stack(list(radii))
    if begun is not None:
        for m, saved in zip(moved, begun["moved"], strict=True):
            m.copy_(saved)
        optimizer.load_state_dict(begun["optimizer"])

    def deltas() -> Weights:
        return tuple(m - weight for m, weight in zip(moved, weights, strict=True))

    def back_into_the_balls() -> Weights:
        inside = tuple(project(d, radius, solver.norm) for d, radius in zip(deltas(), radii, strict=True))
        for m, weight, delta in zip(moved, weights, inside, strict=True):
            m.copy_(weight + delta)
        return inside

    for epoch in range(begun["epoch"] if begun else 0, solver.epochs):
        reached = torch.zeros_like(bounds)
        for boundary, labels in batches():
            gradients = _gradients(logits, moved, boundary, labels, at_once)
            for m, gradient in zip(moved, gradients, strict=True):
                m.grad = gradient.neg_()
            optimizer.step()
            reached = torch.maximum(reached, _lengths(deltas(), solver.norm))
            if solver.project == "step":
                back_into_the_balls()
        went = reached if solver.project == "step" else _lengths(deltas(), solver.norm)
        violated = bool((went > bounds).any())
        inside = back_into_the_balls()
        stop = violated and solver.on_violation == "stop"
        stands = {"epoch": epoch + 1, "moved": moved, "optimizer": optimizer.state_dict()}
        yield inside, reached, stop or epoch == solver.epochs - 1, stands
        if stop:
            return


def _projected(
    logits: Logits,
    weights: Weights,
    batches: Callable[[], Iterable[Batch]],
    radii: Sequence[Tensor],
    solver: Solver,
    at_once: int | None,
    begun: State | None,
) -> Iterator[tuple[Weights, Tensor, bool, State]]:
    """Normalised ascent inside the balls.

    The first steps are longer than the ball is wide, so they go to where the gradient points on its surface;
    the length falls linearly from four radii to almost nothing.
    """
    deltas = tuple(torch.zeros_like(weight) for weight in weights)
    velocities = list(deltas)
    reached = torch.zeros_like(torch.stack(list(radii)))
    if begun is not None:
        deltas, velocities, reached = begun["deltas"], begun["velocities"], begun["reached"]
    per_epoch = sum(1 for _ in batches())  # counted, not kept: a pass may not fit into memory
    steps = solver.epochs * per_epoch
    for epoch in range(begun["epoch"] if begun else 0, solver.epochs):
        for index, (boundary, labels) in enumerate(batches()):
            gradients = _gradients(logits, _sums(weights, deltas), boundary, labels, at_once)
            velocities = [
                0.5 * v + _unit(gradient) for v, gradient in zip(velocities, gradients, strict=True)
            ]
            stride = 4 * (1 - (epoch * per_epoch + index) / steps)
            moved = [
                delta + stride * radius * (velocity.sign() if solver.norm == "linf" else _unit(velocity))
                for delta, radius, velocity in zip(deltas, radii, velocities, strict=True)
            ]
            reached = torch.maximum(reached, _lengths(moved, solver.norm))
            deltas = tuple(project(m, radius, solver.norm) for m, radius in zip(moved, radii, strict=True))
        stands = {"epoch": epoch + 1, "deltas": deltas, "velocities": velocities, "reached": reached}
        yield deltas, reached, epoch == solver.epochs - 1, stands


def _unit(tensor: Tensor) -> Tensor:
    return tensor / norm_of(tensor, "l2").clamp_min(1e-30)
