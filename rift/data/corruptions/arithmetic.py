"""Arithmetic that gives an image the same bits in whatever batch it comes, on a CPU.

Only single additions, products, quotients, comparisons, minima, maxima and copies are used: each is rounded
once, as IEEE 754 says. Not `exp`, `log`, `cos`, convolutions, sums or matrix products of fractions: torch may
compute these differently at the end of a vector or in another batch size, and truncation to bytes turns a
last bit into a grey level. What needs such a function takes it from a table, the same for all batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rift.randomness import uniform

# Bins of the table of normal quantiles: 24 octaves of probability below one half, each cut in 2**10.
_OCTAVES, _BIN_BITS = 24, 10
_MANTISSA_BITS = 52  # of a float64


@dataclass(frozen=True)
class Draws:
    """Random numbers of one corruption at one severity for the images of a batch.

    Attributes:
        corruption, severity: with the image's index they decide every number.
        indices: (B,) int64, positions of the images in their split.
    """

    corruption: str
    severity: int
    indices: Tensor

    def uniform(self, count: int, *use: str | int) -> Tensor:
        """(B, count) float64 in [0, 1); `use` separates several layers of one corruption."""
        return uniform(("corruption", self.corruption, self.severity, *use), self.indices, count).double()

    def normal(self, count: int, *use: str | int) -> Tensor:
        """(B, count) float64, standard normal up to 5.4 standard deviations; see `uniform`."""
        return normal_quantile(self.uniform(count, *use))

    def angle(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each (B, 1) float64, of a uniform angle between `low` and `high` degrees.

        The angle is one of 2**16 evenly spaced ones, whose cosines are in a table.
        """
        steps = (self.uniform(1, "angle") * 2**16).long()
        cosines, sines = _directions(low, high, self.indices.device)
        return cosines[steps], sines[steps]


def to_unit(images: Tensor) -> Tensor:
    """uint8 to float64 in [0, 1]."""
    # By a tensor: a GPU would multiply by the reciprocal of a plain number.
    return images.double() / torch.full((1,), 255.0, dtype=torch.float64, device=images.device)


def to_bytes(x: Tensor) -> Tensor:
    """[0, 1] to uint8: clipped, scaled by 255, truncated (not rounded), as the published images are."""
    return (x.clamp(0, 1) * 255).to(torch.uint8)


def normal_quantile(u: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones, by the inverse of the distribution function.

    Args:
        u: float64 multiples of 2**-24 in [0, 1); each stands for the middle of its interval.

    Returns:
        float64 like `u`; off by less than 1e-6, which is far less than 2**-24 steps of `u` make in the tails.
    """
    upper = u >= 0.5
    tail = torch.where(upper, 1 - 2.0**-24 - u, u) + 2.0**-25  # in (0, 0.5), exact
    # The leading bits of a float64 number its bin: octave, then place in the octave.
    bits = tail.view(torch.int64)
    shift = _MANTISSA_BITS - _BIN_BITS
    bins = (bits >> shift) - ((1023 - _OCTAVES - 1) << _BIN_BITS)
    place = (bits & ((1 << shift) - 1)).double() * 2.0**-shift
    start, slope = _quantiles(u.device)
    z = start[bins] + place * slope[bins]
    return torch.where(upper, -z, z)


@lru_cache(maxsize=4)
def _quantiles(device: torch.device) -> tuple[Tensor, Tensor]:
    """Quantile at the start of each bin, and how much it grows to the next."""
    place = torch.arange(1 << _BIN_BITS, dtype=torch.float64) / (1 << _BIN_BITS)
    octave = torch.arange(-_OCTAVES - 1, 0, dtype=torch.float64)
    edges = (torch.exp2(octave)[:, None] * (1 + place)).flatten()
    z = torch.special.ndtri(torch.cat([edges, torch.tensor([1.0], dtype=torch.float64)]).clamp_max(0.5))
    return z[:-1].to(device), (z[1:] - z[:-1]).to(device)


@lru_cache(maxsize=8)
def _directions(low: float, high: float, device: torch.device) -> tuple[Tensor, Tensor]:
    angles = torch.deg2rad(low + (high - low) * torch.arange(2**16, dtype=torch.float64) / 2**16)
    return torch.cos(angles).to(device), torch.sin(angles).to(device)
