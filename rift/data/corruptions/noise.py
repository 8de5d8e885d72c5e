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
    noisy = torch.where(u < share, 0, _from_fractions(images))
    return torch.where(u < share / 2, 255, noisy).to(torch.uint8)


def shot_noise(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Counts photons: a Poisson number of mean `scale` for white, over `scale`."""
    u = draws.uniform(images[0].numel()).view(images.shape)
    counts = poisson(images, u, scale)
    levels = (torch.arange(_counts(scale)).double() / scale).clamp_max(1) * 255
    return levels.to(torch.uint8).to(images.device)[counts]


def poisson(images: Tensor, u: Tensor, scale: float) -> Tensor:
    """Poisson numbers by the inverse of the distribution function, looked up in a table with 256 rows.

    Args:
        images: uint8; the mean is the value over 255 times `scale`.
        u: float64 like `images`, uniform in [0, 1).
        scale: mean of a white pixel.

    Returns:
        int64 like `images`.
    """
    # One sorted row: value + distribution function, so that one search serves all values.
    found = torch.searchsorted(_poisson_table(scale, images.device), images.double() + u, right=True)
    return found - images.long() * _counts(scale)


def _counts(scale: float) -> int:
    """Columns of the table: beyond them the probability is under 2**-24, the step of a uniform number."""
    return int(scale + 8 * scale**0.5 + 16)


@lru_cache(maxsize=16)
def _poisson_table(scale: float, device: torch.device) -> Tensor:
    means = (torch.arange(256).double() / 255 * scale)[:, None]
    counts = torch.arange(_counts(scale)).double()
    # xlogy: a mean of 0 gives count 0 for certain.
    logarithms = torch.special.xlogy(counts, means) - means - torch.lgamma(counts + 1)
    below = logarithms.exp().cumsum(1).clamp_max(1)
    below[:, -1] = 1
    return (torch.arange(256).double()[:, None] + below).flatten().to(device)


def _normal(images: Tensor, draws: Draws) -> Tensor:
    return draws.normal(images[0].numel()).view(images.shape)


def _from_fractions(images: Tensor) -> Tensor:
    """The bytes after a division by 255 and a product with 255, truncated."""
    return to_bytes(to_unit(images))
