"""Noise: every value of an image on its own."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rift.data.corruptions.arithmetic import Draws, to_bytes, to_unit


def gaussian_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Adds normal noise of standard deviation `sigma`."""
    return to_bytes(to_unit(images) + _normal(images, draws) * sigma)


def speckle_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Adds normal noise in proportion to the value."""
    x = to_unit(images)
    return to_bytes(x + x * (_normal(images, draws) * sigma))


def impulse_noise(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Makes a share of the values black or white, one as likely as the other; channels on their own."""
    u = draws.uniform(images[0].numel()).view(images.shape)
    return to_bytes(to_unit(images)).masked_fill_(u < share, 0).masked_fill_(u < share / 2, 255)


def shot_noise(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Counts photons: a Poisson number of mean `scale` for white, over `scale`."""
    u = draws.uniform(images[0].numel()).view(images.shape)
    counts = poisson(images, u, scale)
    return to_bytes(counts.double() / torch.full((1,), scale, dtype=torch.float64, device=images.device))


def poisson(images: Tensor, u: Tensor, scale: float) -> Tensor:
    """Poisson numbers by the inverse of the distribution function, looked up in a table.

    Args:
        images: uint8; the mean is the value over 255 times `scale`.
        u: float64 like `images`, uniform in [0, 1).
        scale: mean of a white pixel.

    Returns:
        int64 like `images`.
    """
    table, before = _poisson_table(scale, images.device)
    # The rows are one sorted sequence, value + distribution function, so that one search serves all values.
    found = torch.searchsorted(table, images.double() + u, right=True)
    return found - before[images.long()]


@lru_cache(maxsize=16)
def _poisson_table(scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows one after the other, and what to take from a place in them to have a count."""
    rows, before = [], []
    for value, mean in enumerate((torch.arange(256).double() / 255 * scale).tolist()):
        # Beyond, the probability is far under 2**-24, the step of a uniform number. Short rows search faster.
        first, last = int(max(mean - 7 * mean**0.5 - 2, 0)), int(mean + 8 * mean**0.5 + 16)
        before.append(sum(len(row) for row in rows) - first)
        counts = torch.arange(first, last, dtype=torch.float64)
        # xlogy: a mean of 0 gives count 0 for certain.
        means = torch.full_like(counts, mean)
        logarithms = torch.special.xlogy(counts, means) - means - torch.lgamma(counts + 1)
        below = logarithms.exp().cumsum(0).clamp_max(1)
        below[-1] = 1
        rows.append(value + below)
    return torch.cat(rows).to(device), torch.tensor(before, device=device)


def _normal(images: Tensor, draws: Draws) -> Tensor:
    return draws.normal(images[0].numel()).view(images.shape)
