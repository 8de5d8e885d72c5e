"""Step 1, the MRC scan: which module robustness needs least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from rift.attacks import Attack
from rift.attacks.examples import adversarial_images
from rift.criticality import Batch, Criticality, Solver, State, module_robust_criticality, robust_loss
from rift.data import Split
from rift.errors import UserError
from rift.models import scannable_modules
from rift.progress import measured
from rift.randomness import permutation
from rift.runtime import distributed
from rift.runtime.device import DTYPES
from rift.stage_options import MRCConfig
from rift.stages.folder import Folder
from rift.stages.optimizers import make_optimizer
from rift.stages.pauses import Pauses, packed, unpacked
from rift.stages.scanned_network import ScannedNetwork, View
from rift.stages.session import Session


def mrc_scan(
    session: Session, folder: Folder, options: MRCConfig, theta_at: dict[str, Tensor], attack: Attack
) -> dict[str, Any]:
    """Scans every convolution and linear layer; Sec. 3.2 and 3.3 and Algorithm 1 of the paper.

    The adversarial examples are made once, on θ_AT. The network before the module that moves is constant,
    so the activations that enter the rest are kept, within `runtime.cache_mib`.
    Resumable after each module and between the epochs of one; of several processes each scans a module at a
    time, and then after each module alone.

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
    begun = _begun(folder.load_resume_point(session.runtime.device))
    rows = folder.rows()
    network = session.network(theta_at).requires_grad_(False)
    names = [name for name in scannable_modules(network) if options.scans(name)]
    if not names:
        raise UserError("stage.mrc.exclude leaves no module to scan: give fewer patterns.")
    images, labels = adversarial_examples(session, network, options, attack)
    solver, baseline = make_solver(options), robustness(session, network, options, images, labels)
    scanned = scanned_network(session, network, options, images, labels)

    pauses = Pauses(folder, session.runtime)

    def scan(name: str) -> dict[str, Any]:
        where = begun.get(name)
        view = scanned.at(name, passed=where["passes"] if where else 0)

        def pause(state: State) -> None:
            pauses.reached(lambda: ({"search": packed(state)}, {"module": name}))

        found = criticality_of(view, baseline, solver, where, pause)
        if not found.finite:
            raise UserError(f"The scan of {name} diverged: lower stage.mrc.lr or set stage.mrc.project=step.")
        return {"index": names.index(name), "module": name, **asdict(found), "cached": view.cached}

    with measured("mrc", len(names), "modules") as meter:
        meter.advance(len(rows))
        while len(rows) < len(names):
            for row in distributed.each(names[len(rows) :][: distributed.world_size()], scan):
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


def robustness(
    session: Session, network: nn.Module, options: MRCConfig, images: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Loss and accuracy of the network as it is on the adversarial examples."""
    whole = session.runtime.filled(network, len(images), options.batch_size)
    passes = plain_batches(images, labels, options.batch_size)
    return robust_loss(lambda _, x: whole(x), images.new_empty(0), passes)


def scanned_network(
    session: Session, network: nn.Module, options: MRCConfig, images: Tensor, labels: Tensor
) -> ScannedNetwork:
    """The network, to be cut at its modules in their order, in which what is kept is carried on."""
    precision, runtime = DTYPES[options.precision], session.runtime
    orders = ("scan shuffle", session.seed) if options.shuffle else None
    return ScannedNetwork(network, images, labels, options.batch_size, precision, runtime, orders)


def _begun(point: tuple[dict[str, Tensor], dict[str, Any]] | None) -> dict[str, State]:
    """Where the search of a module stood when it was interrupted, by the module's name."""
    if point is None or "search" not in point[0]:
        return {}
    return {point[1]["module"]: unpacked(point[0]["search"])}


def criticality_of(
    view: View,
    baseline: tuple[float, float],
    solver: Solver,
    begun: State | None = None,
    pause: Callable[[State], None] = lambda state: None,
) -> Criticality:
    """MRC of the module, or the set of modules, that the view is of.

    Where the device has no room for a batch's gradient, it is computed in parts: the same numbers, but for
    their last digits. For `begun` and `pause` see `module_robust_criticality`.

    Raises:
        UserError: there is no room for a single image.
    """
    runtime = view.runtime
    while True:
        try:
            return module_robust_criticality(
                view.logits,
                view.weights,
                view.batches,
                baseline,
                solver,
                view.search_logits,
                view.search_batches,
                runtime.gradients_at_once,
                begun,
                pause,
            )
        except torch.OutOfMemoryError as error:
            smaller = min(runtime.gradients_at_once or view.batch_size, view.batch_size) // 2
            if smaller == 0:
                raise UserError(
                    "The device has no room for the scan: lower runtime.cache_mib (fewer activations are "
                    "kept, the numbers stay)."
                ) from error
        # Outside the handler, which keeps the tensors of the failed attempt alive.
        runtime.gradients_at_once = smaller
        runtime.fall_back(f"out of memory: the scan's gradients are computed for {smaller} images at once")
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()


def adversarial_examples(
    session: Session, network: nn.Module, options: MRCConfig, attack: Attack
) -> tuple[Tensor, Tensor]:
    """PGD on θ_AT over the scan's images, made once: (N, C, H, W) float32 in [0, 1] and labels (N,).

    In an order fixed by the seed, so that batches of consecutive images mix the classes.
    """
    runtime, split = session.runtime, scanned_split(session, options)
    images = runtime.in_smaller_batches(
        lambda: adversarial_images(
            network,
            split,
            attack,
            ("scan start", session.seed),
            runtime,
            channels_last=runtime.channels_last_in(DTYPES[options.precision]),
            label="mrc: adversarial examples",
        )
    )
    return images, split.labels


def scanned_split(session: Session, options: MRCConfig) -> Split:
    """The images of the scan, in an order fixed by the seed; with `max_images` a class-balanced part.

    Raises:
        UserError: the split has no such part.
    """
    split = session.dataset.split(options.split)
    order = permutation(("scan order", session.seed), len(split)).to(split.device)
    check_part(options, len(split))
    if options.max_images is not None and options.max_images < len(split):
        order = _balanced_part(split.labels[order], order, options.max_images, options.part)
    return split.subset(order)


def check_part(options: MRCConfig, count: int) -> None:
    """Raises `UserError` if a split of this many images has no such part."""
    if options.part > 0 and (options.part + 1) * options.max_images > count:
        raise UserError(
            f"stage.mrc.part={options.part} of {options.max_images} images, counted from 0, is not in the "
            f"{count} of stage.mrc.split={options.split}: give a smaller stage.mrc.max_images."
        )


def _balanced_part(labels: Tensor, order: Tensor, count: int, part: int) -> Tensor:
    """`count` entries of `order`, as evenly spread over the classes as they can be, in their order.

    Parts of other numbers have other entries.
    """
    # The n-th image of its class comes before every (n+1)-th.
    nth = torch.zeros_like(labels)
    for label in labels.unique():
        members = labels == label
        nth[members] = torch.arange(int(members.sum()), device=labels.device)
    chosen = torch.sort(nth, stable=True).indices[part * count : (part + 1) * count]
    return order[chosen.sort().values]


def make_solver(options: MRCConfig) -> Solver:
    """The configuration as a solver."""

    def optimizer(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        return make_optimizer(parameters, options, "mrc")

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
