"""Adversarial examples of a whole split, through the fast form of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rift.attacks.pgd import Attack, pgd, random_start
from rift.data import Split, as_floats, batches
from rift.progress import measured
from rift.runtime import CraftingNetwork, Runtime, distributed


def adversarial_images(
    network: nn.Module,
    split: Split,
    attack: Attack,
    key: tuple[int | str, ...],
    runtime: Runtime,
    *,
    channels_last: bool = False,
    label: str = "attack",
    checked: int = 8,
) -> Tensor:
    """PGD on every image of a split, in the split's order. Several processes share the batches out.

    Args:
        network: what is attacked, on the runtime's device, in eval mode; left as it is.
        split: on the runtime's device, or elsewhere: then batches are taken there and back.
        attack: PGD's parameters.
        key: of the random starts, which depend on it and on each image's index alone.
        runtime: device, batch size, and the fast paths; records what could not be done.
        channels_last: memory format of the images.
        label: for the progress bar.
        checked: images on which the folded network is compared with the network itself.

    Returns:
        (N, C, H, W) float32 in [0, 1], on the split's device.
    """
    crafting = CraftingNetwork(network, runtime, runtime.selection_precision)
    crafting.check(as_floats(split.images[:checked]).to(runtime.device))
    craft = crafting.captured(attack, lambda x, y, start: pgd(crafting, x, y, start, attack))
    craft = runtime.filled(craft, len(split))
    parts = []
    with measured(label, len(split)) as meter:
        for number, batch in enumerate(batches(split, runtime.batch_size, channels_last=channels_last)):
            found = batch.images  # those of other processes are filled in below
            if distributed.mine(number):
                images, labels, indices = (tensor.to(runtime.device) for tensor in batch)
                start = random_start(images, indices, key, attack) if attack.random_start else images
                found = craft(images, labels, start).to(split.device)
            parts.append(found)
            meter.advance(len(batch.labels))
    for number, part in enumerate(parts):
        distributed.handed_on(part, number % distributed.world_size())
    return torch.cat(parts)
