"""Step 3, interpolation: between θ_AT and θ_FT lie weights as robust as the one, and better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rift.attacks import Attack
from rift.data import batches
from rift.randomness import derive_seed
from rift.runtime import CraftingNetwork, batchnorm_layers, distributed
from rift.stage_options import InterpolateConfig
from rift.stages.folder import Folder
from rift.stages.session import Session

REESTIMATION_BATCH = 512  # images


def interpolate(
    alpha: float, theta_0: Mapping[str, Tensor], theta_1: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """θ_α = (1 − α) θ_0 + α θ_1, tensor by tensor; bit-equal to the end points at α = 0 and α = 1.

    Integer tensors (BatchNorm's batch counts) are copied from the nearer end, never averaged.

    Args:
        alpha: in [0, 1].
        theta_0: a state dict.
        theta_1: a state dict with the same keys and shapes.
    """
    assert theta_0.keys() == theta_1.keys(), "the two networks have different tensors"
    nearer = theta_0 if alpha < 0.5 else theta_1
    if alpha in (0.0, 1.0):
        return {name: value.clone() for name, value in nearer.items()}
    return {
        name: torch.lerp(theta_0[name], theta_1[name], alpha)
        if nearer[name].is_floating_point()
        else nearer[name].clone()
        for name in theta_0
    }


def best_alpha(points: list[dict[str, Any]], tolerance: float) -> dict[str, Any]:
    """The paper's rule: the best clean accuracy among the points whose robustness is as good as θ_AT's.

    Args:
        points: with `alpha`, `clean_accuracy`, `robust_accuracy`; the first is α = 0.
        tolerance: robust accuracy that may be lost, as a fraction.

    Returns:
        The chosen point; α = 0 always qualifies. Of equal points the one nearest to θ_AT.
    """
    # Accuracies are counts over a few thousand images: a rounding error of 1e-9 is no image.
    floor = points[0]["robust_accuracy"] - tolerance - 1e-9
    allowed = [point for point in points if point["robust_accuracy"] >= floor]
    return max(allowed, key=lambda point: (point["clean_accuracy"], -point["alpha"]))


def interpolation(
    session: Session,
    folder: Folder,
    options: InterpolateConfig,
    theta_at: dict[str, Tensor],
    theta_ft: dict[str, Tensor],
    attack: Attack,
) -> dict[str, Any]:
    """Measures clean and robust accuracy along α and chooses α*; Sec. 3.4 of the paper.

    All points are attacked from the same random starts. Each point is resumable; of several processes each
    measures one at a time.

    Args:
        session: data, machine, seed.
        folder: gets the weights at α* and a metrics row per α.
        options: how many points, runs, the tolerance, what BatchNorm statistics do.
        theta_at, theta_ft: state dicts on the device.
        attack: of the selection split.

    Returns:
        The stage's result: α*, its accuracies, the whole sweep, and whether α = 0 is θ_AT bit for bit.
    """
    folder.load_resume_point()
    points = folder.rows()
    split = session.dataset.split(options.selection_split)
    network = session.network(theta_at)
    crafting = CraftingNetwork(network, session.runtime, session.runtime.selection_precision)

    def measure(alpha: float) -> dict[str, Any]:
        network.load_state_dict(_weights(session, network, options.batchnorm, alpha, theta_at, theta_ft))
        verdicts = session.attacked(
            network,
            split,
            attack,
            runs=options.restarts,
            exact_runs=options.exact_runs,
            label=f"interpolate α={alpha:.2f}",
            crafting=crafting,
        )
        return {
            "alpha": alpha,
            "clean_accuracy": verdicts.clean_accuracy,
            "robust_accuracy": verdicts.robust_accuracy,
            "robust_accuracy_per_image": verdicts.robust_accuracy_per_image,
        }

    alphas = [index / (options.points - 1) for index in range(options.points)]
    while len(points) < options.points:
        for row in distributed.each(alphas[len(points) :][: distributed.world_size()], measure):
            folder.add_row(row)
            folder.save_resume_point({}, {})
            points.append(row)
    chosen = best_alpha(points, options.tolerance)
    weights = _weights(session, network, options.batchnorm, chosen["alpha"], theta_at, theta_ft)
    folder.save("weights", weights)
    start = _weights(session, network, options.batchnorm, 0.0, theta_at, theta_ft)
    exact = all(torch.equal(start[name], value) for name, value in theta_at.items())
    return {**chosen, "sweep": points, "starts_at_theta_at": exact}


def _weights(
    session: Session,
    network: nn.Module,
    batchnorm: str,
    alpha: float,
    theta_at: dict[str, Tensor],
    theta_ft: dict[str, Tensor],
) -> dict[str, Tensor]:
    """θ_α with BatchNorm's statistics interpolated, kept as in θ_AT, or estimated anew on clean images."""
    weights = interpolate(alpha, theta_at, theta_ft)
    if batchnorm == "interpolate" or not batchnorm_layers(network):
        return weights
    statistics = {
        f"{name}.{buffer}"
        for name, module in network.named_modules()
        if module in set(batchnorm_layers(network))
        for buffer, _ in module.named_buffers(recurse=False)
    }
    if batchnorm == "keep" or alpha == 0.0:
        return weights | {name: theta_at[name].clone() for name in statistics}
    network.load_state_dict(weights)
    reestimate_batchnorm(network, session)
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@torch.no_grad()
def reestimate_batchnorm(network: nn.Module, session: Session) -> None:
    """Replaces every running statistic by its mean over clean training images, in mixed batches; in place.

    Everything but BatchNorm stays in eval mode, and the last, smaller batch is left out (if it is not the
    only one), since each batch counts alike.
    """
    layers = batchnorm_layers(network)
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    train = session.dataset.train
    seed = derive_seed("reestimate", session.seed)
    clean = batches(
        train,
        REESTIMATION_BATCH,
        seed=seed,
        shuffle=True,
        channels_last=session.runtime.channels_last_in(torch.float32),
    )
    for index, batch in enumerate(clean):
        if index == 0 or len(batch.labels) == REESTIMATION_BATCH:
            network(batch.images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()
