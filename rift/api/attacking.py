"""`rift.attack`: PGD on anybody's network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rift.api.inputs import Images, attack_of, gathered, machine, own_copy, undisturbed
from rift.attacks import Attack
from rift.attacks.examples import adversarial_images
from rift.limits import LARGEST_SEED, at_least


@overload
def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | None = None,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    precision: str = "float32",
) -> Tensor: ...


@overload
def attack(
    model: nn.Module,
    images: Iterable[Any],
    labels: None = None,
    *,
    epsilon: float | None = None,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    precision: str = "float32",
) -> TensorDataset: ...


def attack(
    model: nn.Module,
    images: Images,
    labels: Tensor | None = None,
    *,
    epsilon: float | None = None,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    precision: str = "float32",
) -> Tensor | TensorDataset:
    """Adversarial examples by PGD (Madry et al. 2018), the paper's PGD-10 unless told otherwise.

    The network is attacked in eval mode, through a copy whose BatchNorm is folded into its convolutions where
    `torch.fx` can trace it and the logits agree, else as it is; a warning of the logger `rift` says so.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K), normalisation inside; left as it was.
        images: (N, C, H, W) float32 in [0, 1], on any device; or a `DataLoader` of (images, labels).
        labels: (N,) integers in [0, K); none with a loader.
        epsilon: radius of the ℓ∞ ball, in units of the [0, 1] image; 8/255 if not given. Each of the ten
            steps is a quarter of it.
        attack: another attack altogether, `rift.Attack(norm="l2", epsilon=0.5, step_size=0.1, steps=20)`.
        seed: of the random starts, which depend on it and on an image's place among the images alone.
        batch_size: images at a time; halved where the device has no room.
        device: where to compute, such as `cuda`; the model's own if not given.
        precision: of the attack: `float32`, `bfloat16` (on GPUs that have it), `auto`.

    Returns:
        (N, C, H, W) float32 in [0, 1], on the device of `images`. Of a loader, a `TensorDataset` of these and
        their labels in the order of the one pass that was made.

    Raises:
        UserError: a `ValueError`: what was given cannot be, in one sentence.
    """
    with undisturbed():
        chosen = attack_of(epsilon, attack)
        at_least("seed", seed, 0, LARGEST_SEED)
        runtime = machine(model, device, batch_size, precision)
        network = own_copy(model, runtime)
        split = gathered(images, labels, network, runtime)
        found = runtime.in_smaller_batches(
            lambda: adversarial_images(
                network,
                split,
                chosen,
                ("attack start", seed),
                runtime,
                channels_last=runtime.channels_last_in(torch.float32),
                checked=runtime.batch_size,
            )
        )
    return found if isinstance(images, Tensor) else TensorDataset(found, split.labels)
