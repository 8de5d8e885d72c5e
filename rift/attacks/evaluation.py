"""Robust accuracy: which images survive which attack runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rift.attacks.pgd import Attack, pgd, random_start
from rift.data import Split, batches
from rift.runtime import distributed

Network = Callable[[Tensor], Tensor]
Craft = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, labels, start) -> adversarial images."""


@dataclass(frozen=True)
class Verdicts:
    """Image by image, what a network got right.

    Attributes:
        clean: (N,) bool, right without an attack.
        robust: (runs, N) bool, right without *and* under attack in each run. An image that is wrong
            without an attack is not robust: the image itself lies in the ball.
        exact_runs: whether every run attacked all images that are right without an attack. If not,
            images fooled in an earlier run were skipped, and only the per-image reading holds.
    """

    clean: Tensor
    robust: Tensor
    exact_runs: bool

    @property
    def clean_accuracy(self) -> float:
        return self.clean.double().mean().item()

    @property
    def robust_accuracy(self) -> float:
        """The worst run's accuracy, the paper's "Adv"; per image where runs were cut short."""
        if not self.exact_runs:
            return self.robust_accuracy_per_image
        return self.robust.double().mean(dim=1).min().item()

    @property
    def robust_accuracy_per_image(self) -> float:
        """Share of the images that survive every run."""
        return self.robust.all(dim=0).double().mean().item()


@torch.no_grad()
def correct(network: Network, split: Split, batch_size: int, channels_last: bool = False) -> Tensor:
    """Which images of `split` the network classifies rightly, (N,) bool on the split's device."""
    right = torch.zeros(len(split), dtype=torch.bool, device=split.device)
    parts = right.split(batch_size)
    for number, batch in enumerate(batches(split, batch_size, channels_last=channels_last)):
        if distributed.mine(number):
            parts[number].copy_(network(batch.images).argmax(dim=1) == batch.labels)
    return distributed.merged(right)


def robust_verdicts(
    network: Network,
    crafting: Network,
    split: Split,
    attack: Attack,
    *,
    runs: int = 1,
    exact_runs: bool = False,
    seed: int = 0,
    batch_size: int = 512,
    channels_last: bool = False,
    advance: Callable[[int], None] = lambda images: None,
    accelerate: Callable[[Craft], Craft] = lambda craft: craft,
    begun: Tensor | None = None,
    pause: Callable[[Tensor], None] = lambda known: None,
) -> Verdicts:
    """Attacks a split `runs` times and says which images survive.

    Work that cannot change the answer is left out: images that are wrong without an attack are never
    attacked, and unless `exact_runs`, neither are those that an earlier run fooled. What remains is
    packed into full batches again. Random starts depend on (seed, run, image) alone, so they are the
    same for every network and for every way of cutting batches. Several processes share the batches out as
    they are, so that each image has the neighbours, and so the last bits, that it has in one.

    Args:
        network: images to logits in float32, eval mode; it gives the verdicts.
        crafting: the same function in the form that the attack differentiates (see
            `rift.runtime.crafting`); may be of lower precision.
        split: what is attacked.
        attack: PGD's parameters.
        runs: how many independent random starts.
        exact_runs: attack the already fooled again, so that each run's own accuracy is known.
        seed: of the random starts.
        batch_size: images per attack.
        channels_last: memory format of the images.
        accelerate: makes the attack on one batch faster, e.g. `rift.runtime.graphed`.
        advance: told how many images have been dealt with, for a progress bar; `runs * len(split)` in all.
        begun: what an earlier call knew, as told to `pause`.
        pause: told after each batch what is known, (runs, N) int8: 1 robust, 0 not, -1 not known yet; it
            changes later. Of several processes each knows its own part.

    Returns:
        The verdicts, on the split's device.
    """
    craft = accelerate(lambda images, labels, start: pgd(crafting, images, labels, start, attack))
    clean = correct(network, split, batch_size, channels_last)
    known = torch.full((runs, len(split)), -1, dtype=torch.int8, device=split.device)
    if begun is not None:
        known.copy_(begun)
    robust = clean.repeat(runs, 1)
    alive = clean.clone()
    for run in range(runs):
        positions = alive.nonzero().squeeze(1)
        advance(len(split) - len(positions))
        key = ("evaluation start", seed, run)
        robust[run, positions] = False
        passes = batches(split.subset(positions), batch_size, channels_last=channels_last)
        for number, (part, batch) in enumerate(zip(positions.split(batch_size), passes, strict=False)):
            if begun is not None and bool((known[run, part] >= 0).all()):
                robust[run, part] = known[run, part] == 1
                advance(len(part))
                continue
            if not distributed.mine(number):
                advance(len(part))
                continue
            start = (
                random_start(batch.images, batch.indices, key, attack)
                if attack.random_start
                else batch.images
            )
            adversarial = craft(batch.images, batch.labels, start)
            with torch.no_grad():
                survives = network(adversarial).argmax(dim=1) == batch.labels
            robust[run, part] = survives
            known[run, part] = survives.to(torch.int8)
            advance(len(part))
            pause(known)
        robust[run] = distributed.merged(robust[run])
        if not exact_runs:
            # A skipped image counts as fooled in the later runs too.
            robust[run] &= alive
            alive = robust[run].clone()
    return Verdicts(clean, robust, exact_runs or runs == 1)
