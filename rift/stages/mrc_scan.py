"""Step 1, the MRC scan: which module robustness needs least."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from rift.attacks import Attack, pgd, random_start
from rift.config import MRCConfig
from rift.criticality import Batch, Logits, Solver, module_robust_criticality, robust_loss
from rift.data import Split, batches
from rift.errors import UserError
from rift.models import scannable_modules
from rift.progress import measured
from rift.randomness import permutation
from rift.runtime import CraftingNetwork, Runtime, graphed
from rift.runtime.suffix import Cut, FrozenGraph, whole_network
from rift.stages.session import Session
from rift.store import StageFolder

TOLERANCE = 1e-3  # of the logits' scale: how well a cut network must agree with the whole one


def mrc_scan(
    session: Session, folder: StageFolder, options: MRCConfig, theta_at: dict[str, Tensor], attack: Attack
) -> dict[str, Any]:
    """Scans every convolution and linear layer; Sec. 3.2 and 3.3 and Algorithm 1 of the paper.

    The adversarial examples are made once, on θ_AT. The network before the module that moves is constant,
    so the activations that enter the rest are computed once per module, within `runtime.cache_mib`.
    Each module is resumable.

    Args:
        session: data, machine, seed.
        folder: gets a metrics row per module.
        options: data, radius, solver.
        theta_at: a state dict on the device.
        attack: that makes the adversarial examples.

    Returns:
        The stage's result: robust loss and accuracy of θ_AT on the examples, the modules in network order
        with their rank (1 is the least critical), and the ranking.
    """
    folder.load_resume_point()
    rows = folder.rows()
    network = session.network(theta_at).requires_grad_(False)
    names = [name for name in scannable_modules(network) if options.scans(name)]
    if not names:
        raise UserError("stage.mrc.exclude leaves no module to scan: give fewer patterns.")
    images, labels = adversarial_examples(session, network, options, attack)
    graph = _frozen_graph(network, session.runtime)
    solver = make_solver(options)
    with torch.no_grad():
        reference = network(images[: options.batch_size]).float()
    baseline = robust_loss(
        lambda _, x: network(x), images.new_empty(0), plain_batches(images, labels, options.batch_size)
    )
    with measured("mrc", len(names), "modules") as meter:
        meter.advance(len(rows))
        for index, name in enumerate(names[len(rows) :], start=len(rows)):
            cut = _cut(graph, network, name, images[: options.batch_size], reference, session.runtime)
            passes = CachedPasses(cut, images, labels, options.batch_size, session.runtime.cache_mib)
            search = in_precision(cut.after, options.precision, session.runtime.device.type)
            found = module_robust_criticality(cut.after, cut.weight, passes, baseline, solver, search)
            row = {"index": index, "module": name, **asdict(found), "cached": passes.cached}
            if not (math.isfinite(found.mrc) and math.isfinite(found.farthest)):
                raise UserError(
                    f"The scan of {name} diverged: lower stage.mrc.lr or set stage.mrc.project=step."
                )
            folder.add_row(row)
            folder.save_resume_point({}, {})
            rows.append(row)
            meter.advance(1)
    ranking = [row["module"] for row in sorted(rows, key=lambda row: row["mrc"])]
    return {
        "robust_loss": baseline[0],
        "robust_accuracy": baseline[1],
        "num_images": len(labels),
        "modules": [{**row, "rank": ranking.index(row["module"]) + 1} for row in rows],
        "ranking": ranking,
    }


def in_precision(logits: Logits, precision: str, device_type: str) -> Logits:
    """The same function under autocast; itself for float32."""
    if precision == "float32":
        return logits

    def lowered(weight: Tensor, *boundary: Tensor) -> Tensor:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return logits(weight, *boundary)

    return lowered


def adversarial_examples(
    session: Session, network: nn.Module, options: MRCConfig, attack: Attack
) -> tuple[Tensor, Tensor]:
    """PGD on θ_AT over the scan's images, made once: (N, C, H, W) float32 in [0, 1] and labels (N,).

    In an order fixed by the seed, so that batches of consecutive images mix the classes.
    """
    runtime = session.runtime
    split = scanned_split(session, options)
    crafting = CraftingNetwork(network, runtime, runtime.evaluation_precision)
    craft = graphed(lambda x, y, start: pgd(crafting, x, y, start, attack), runtime)
    parts, labels = [], []
    with measured("mrc: adversarial examples", len(split)) as meter:
        for batch in batches(split, runtime.batch_size, channels_last=runtime.channels_last):
            start = batch.images
            if attack.random_start:
                start = random_start(batch.images, batch.indices, ("scan start", session.seed), attack)
            parts.append(craft(batch.images, batch.labels, start))
            labels.append(batch.labels)
            meter.advance(len(batch.labels))
    return torch.cat(parts), torch.cat(labels)


def scanned_split(session: Session, options: MRCConfig) -> Split:
    """The images of the scan, in an order fixed by the seed; with `max_images` a class-balanced part."""
    split = session.dataset.split(options.split)
    order = permutation(("scan order", session.seed), len(split)).to(split.device)
    if options.max_images is not None and options.max_images < len(split):
        order = _balanced_start(split.labels[order], order, options.max_images)
    return split.subset(order)


def _balanced_start(labels: Tensor, order: Tensor, count: int) -> Tensor:
    """`count` entries of `order`, as evenly spread over the classes as they can be, in their order."""
    # The n-th image of its class comes before every (n+1)-th.
    nth = torch.zeros_like(labels)
    for label in labels.unique():
        members = labels == label
        nth[members] = torch.arange(int(members.sum()), device=labels.device)
    chosen = torch.sort(nth, stable=True).indices[:count]
    return order[chosen.sort().values]


def make_solver(options: MRCConfig) -> Solver:
    """The configuration as a solver."""

    def optimizer(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        return create_optimizer_v2(
            list(parameters),
            opt=options.optimizer,
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=0.0,
            filter_bias_and_bn=False,
        )

    return Solver(
        options.solver,
        options.epsilon_w,
        options.norm,
        options.epochs,
        options.project,
        options.on_violation,
        options.score,
        optimizer,
    )


def plain_batches(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[Batch]:
    """The adversarial examples themselves, batch by batch."""
    for part, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        yield (part,), targets


@dataclass
class CachedPasses:
    """Passes over the adversarial examples, with the constant part of the network computed once.

    As many batches as fit into the bound keep their boundary tensors; the rest are computed in each pass.

    Args:
        cut: the network, cut at the module that moves.
        images, labels: the adversarial examples.
        batch_size: of every batch but the last.
        cache_mib: bound of what is kept.
    """

    cut: Cut
    images: Tensor
    labels: Tensor
    batch_size: int
    cache_mib: int

    def __post_init__(self) -> None:
        self._kept: list[Batch] = []
        budget = self.cache_mib * 2**20
        for boundary, labels in self._computed(0) if self.cut.cached else ():
            budget -= _bytes(boundary)
            if budget < 0:
                break
            self._kept.append((boundary, labels))

    @property
    def cached(self) -> float:
        """The share of the images whose boundary tensors are kept."""
        return sum(len(labels) for _, labels in self._kept) / len(self.labels)

    def __call__(self) -> Iterator[Batch]:
        yield from self._kept
        yield from self._computed(len(self._kept))

    @torch.no_grad()
    def _computed(self, first: int) -> Iterator[Batch]:
        for (images,), labels in list(plain_batches(self.images, self.labels, self.batch_size))[first:]:
            yield self.cut.before(images), labels


def _bytes(value: Any) -> int:
    """What the tensors among boundary values take; sizes and the like take nothing."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(_bytes(part) for part in value) if isinstance(value, (tuple, list)) else 0


def _frozen_graph(network: nn.Module, runtime: Runtime) -> FrozenGraph | None:
    try:
        return FrozenGraph(network, runtime)
    except Exception as error:  # tracing runs arbitrary model code, which fails in any way it likes
        runtime.fall_back(
            f"{type(network).__name__} cannot be traced ({type(error).__name__}), "
            "so the scan runs the whole network"
        )
        return None


@torch.no_grad()
def _cut(
    graph: FrozenGraph | None,
    network: nn.Module,
    name: str,
    images: Tensor,
    reference: Tensor,
    runtime: Runtime,
) -> Cut:
    """The network cut at a module; whole where that cannot be done or does not agree with the network."""
    if graph is None:
        return whole_network(network, name)
    try:
        cut = graph.cut(name)
    except Exception as error:  # see _frozen_graph
        runtime.fall_back(
            f"the network cannot be cut at every module ({type(error).__name__}), "
            "so the scan runs the whole network there"
        )
        return whole_network(network, name)
    # Twice: the second pass would see a boundary tensor that the first one wrote over.
    boundary = cut.before(images)
    cut.after(cut.weight, *boundary)
    difference = (cut.after(cut.weight, *boundary).float() - reference).abs().max()
    if difference > TOLERANCE * reference.abs().max():
        runtime.fall_back(
            f"the network cut at {name} gives other logits, so that module's scan runs it whole"
        )
        return whole_network(network, name)
    return cut
