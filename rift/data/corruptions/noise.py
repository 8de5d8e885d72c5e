"""Noise: every value of an image on its own."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rift.data.corruptions.arithmetic import Draws, to_bytes, to_unit

_BINS = 4096  # of uniform numbers, to begin a search near its end


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
    below, first, guide = _poisson_tables(scale, images.device)
    values = images.long()
    count = guide[values, (u * _BINS).long()].long()
    # What is still too small goes up by one, until nothing is: once for most, more often in the tails.
    flat, row, u = count.view(-1), values.view(-1) * below.shape[1], u.reshape(-1)
    small = (u >= below.view(-1)[row + flat]).nonzero()[:, 0]
    while len(small):
        flat[small] += 1
        small = small[u[small] >= below.view(-1)[row[small] + flat[small]]]
    return count + first[values]


@lru_cache(maxsize=16)
def _poisson_tables(scale: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each byte, how counts are distributed whose mean it stands for.

    Returns:
        `below` (256, L) float64, the distribution function from the byte's first count on; that count, (256,)
        int64; and (256, `_BINS`) int16, from where to search it for a number in each bin of [0, 1).
    """
    means = torch.arange(256).double() / 255 * scale
    # Beyond, the probability is far under 2**-24, the step of a uniform number.
    first = (means - 7 * means.sqrt() - 2).clamp_min(0).long()
    length = int((means + 8 * means.sqrt() + 16 - first).max())
    counts = (first[:, None] + torch.arange(length)).double()
    # xlogy: a mean of 0 gives count 0 for certain.
    logarithms = torch.special.xlogy(counts, means[:, None]) - means[:, None] - torch.lgamma(counts + 1)
    below = logarithms.exp().cumsum(1).clamp_max(1)
    below[:, -1] = 1
    starts = (torch.arange(_BINS).double() / _BINS).expand(256, _BINS).contiguous()
    guide = torch.searchsorted(below, starts, right=True).to(torch.int16)
    return below.to(device), first.to(device), guide.to(device)


def _normal(images: Tensor, draws: Draws) -> Tensor:
    return draws.normal(images[0].numel()).view(images.shape)
