"""`rift.interpolate`: between two networks of one kind lie others, as robust as the one, and better."""

from __future__ import annotations

import copy

import pandas as pd
import torch
from torch import Tensor, nn

from rift.api.inputs import (
    Images,
    attack_of,
    gathered,
    machine,
    options_of,
    own_copy,
    session_of,
    undisturbed,
)
from rift.attacks import Attack
from rift.errors import UserError
from rift.stage_options import InterpolateConfig
from rift.stages import interpolation
from rift.stages.folder import MemoryFolder


def interpolate(
    model: nn.Module,
    tuned: nn.Module,
    images: Images,
    labels: Tensor | None = None,
    *,
    tolerance: float | None = None,
    epsilon: float | None = None,
    attack: Attack | None = None,
    options: InterpolateConfig | None = None,
    seed: int = 0,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    precision: str = "float32",
) -> tuple[nn.Module, pd.DataFrame]:
    """Measures the networks between two and returns the best that is as robust as the first (Sec. 3.4).

    θ_α = (1 − α) θ + α θ_tuned at eleven even steps of α, BatchNorm's statistics included. Of those that lose
    no more than the tolerance in robust accuracy (the worst of three PGD-10 runs) the one of the best clean
    accuracy is returned, of equal ones the nearest to `model`. All are attacked from the same random starts.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K), normalisation inside; left as it was.
        tuned: the same network with other weights, as `rift.fine_tune` returns it; left as it was.
        images: (N, C, H, W) float32 in [0, 1], or a `DataLoader` of (images, labels), read once; held on the
            device.
        labels: (N,) integers in [0, K); none with a loader.
        tolerance: robust accuracy that may be lost, a fraction; 0.001 (0.1 points) if not given.
        epsilon: radius of the attack, see `rift.attack`.
        attack: another attack altogether, see `rift.attack`.
        options: `rift.InterpolateConfig(...)`: points, runs, what BatchNorm's statistics do.
        seed: of the random starts.
        batch_size: images at a time; halved where the device has no room.
        device: where to compute; the model's own if not given.
        precision: of the attack; verdicts are always float32.

    Returns:
        The network at α*, new, in the mode and on the device of `model`; and a data frame with a row per α:
        `alpha`, `clean`, `robust`, accuracies as fractions. Its `attrs` hold α* as `alpha`, `tolerance`,
        `num_images`, and `fallbacks`: what could not be done the fast way.

    Raises:
        UserError: a `ValueError`: what was given cannot be, in one sentence.
    """
    with undisturbed():
        chosen = attack_of(epsilon, attack)
        options = options_of(options, InterpolateConfig, ("selection_split",), tolerance=tolerance)
        if options.batchnorm == "reestimate":
            raise UserError("options.batchnorm=reestimate needs training images: it is the command line's.")
        runtime = machine(model, device, batch_size, precision)
        network = own_copy(model, runtime)
        ends = network.state_dict(), _state_like(network, tuned, runtime.device)
        split = gathered(images, labels, network, runtime).to(runtime.device)
        folder = MemoryFolder()
        session = session_of(network, split, runtime, seed)
        result = interpolation(session, folder, options, *ends, chosen)
        best = copy.deepcopy(model)
        best.load_state_dict(folder.load("weights"))
    curve = pd.DataFrame(
        {
            "alpha": point["alpha"],
            "clean": point["clean_accuracy"],
            "robust": point["robust_accuracy"],
        }
        for point in result["sweep"]
    )
    curve.attrs = {
        "alpha": result["alpha"],
        "tolerance": options.tolerance,
        "num_images": len(split),
        "fallbacks": list(runtime.fallbacks),
    }
    return best, curve


def _state_like(network: nn.Module, tuned: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """The tuned network's weights on the device.

    Raises:
        UserError: it is another network.
    """
    if not isinstance(tuned, nn.Module):
        raise UserError(f"tuned is a {type(tuned).__name__}: give a torch.nn.Module.")
    own, theirs = network.state_dict(), tuned.state_dict()
    differing = sorted(own.keys() ^ theirs.keys())
    differing += [name for name in own.keys() & theirs.keys() if own[name].shape != theirs[name].shape]
    if differing:
        raise UserError(
            f"tuned is another network than model: they differ in {differing[0]} ({len(differing)} in all)."
        )
    return {name: theirs[name].detach().to(device) for name in own}
