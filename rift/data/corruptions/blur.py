"""Blurs: out of focus, through glass, in motion, while zooming, Gaussian."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rift.data.corruptions import filters
from rift.data.corruptions.arithmetic import Draws, to_bytes, to_unit


def gaussian_blur(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Gaussian filter of `sigma` pixels; the border pixel goes on beyond the border."""
    return to_bytes(filters.gaussian_blur(to_unit(images), sigma))


def defocus_blur(images: Tensor, draws: Draws, radius: float, rim: float) -> Tensor:
    """Mean over a disk of `radius` pixels whose rim is smoothed by a Gaussian of `rim` pixels."""
    return to_bytes(filters.correlate(to_unit(images), disk(radius, rim)))


def disk(radius: float, rim: float) -> list[list[float]]:
    """The disk's kernel, rounded to float32 at each step as the published script's OpenCV did."""
    reach = int(radius) + 2
    offsets = np.arange(-reach, reach + 1)
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    inside /= inside.sum()
    side = np.exp(-0.5 / (rim * rim))
    middle, side = np.float32(1 / (1 + 2 * side)), np.float32(side / (1 + 2 * side))
    for _ in range(2):  # across, then down
        wide = np.pad(inside, ((0, 0), (1, 1)))
        inside = (wide[:, 1:-1] * middle + (wide[:, :-2] + wide[:, 2:]) * side).T
    return inside.astype(np.float64).tolist()


def zoom_blur(images: Tensor, draws: Draws, end: float) -> Tensor:
    """Mean of the image and its enlargements by 1, 1.01, … up to `end`.

    The factors are those of the published script's `numpy.arange(1, end, 0.01)`, which by a rounding reaches
    the end where one expects it to stop before; the factor 1 counts besides the image itself. In float32.
    """
    x = filters.pixels_first(to_unit(images).float())
    fine = x.double()
    factors = np.arange(1, end, 0.01).tolist()
    total = torch.zeros_like(x)
    for factor in factors:
        total += filters.clipped_zoom(fine, factor).float()
    mean = (x + total) / (len(factors) + 1)
    return filters.pixels_last(to_bytes(mean), images.shape[1])


def motion_blur(images: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """Half a Gaussian along a line between -45° and 45° from the horizontal."""
    return filters.motion_blur(images, radius, sigma, draws.angle(-45, 45))


def glass_blur(images: Tensor, draws: Draws, sigma: float, shift: int, rounds: int) -> Tensor:
    """Blurs, replaces pixels by near ones for some rounds, and blurs again.

    The published script means to swap a pixel with one `shift` away at most, but its assignment through views
    copies the other pixel and leaves that one as it was; so do we. Pixels are visited from the last to the
    first, and a pixel copied from one visited before gets what was copied there.
    """
    x = to_bytes(filters.gaussian_blur(to_unit(images), sigma))
    height, width = images.shape[2:]
    for turn in range(rounds):
        origin = _shuffle(draws.uniform(2 * height * width, turn), height, width, shift)
        x = x.flatten(2).gather(2, origin[:, None].expand(-1, x.shape[1], -1)).view(x.shape)
    return to_bytes(filters.gaussian_blur(to_unit(x), sigma))


def _shuffle(u: Tensor, height: int, width: int, shift: int) -> Tensor:
    """Where each pixel's value comes from after one round, (B, H·W) int64.

    Args:
        u: (B, 2·H·W) float64, uniform; the first half moves along rows, the second across.
    """
    moves = (u * (2 * shift)).long().view(-1, 2, height, width) - shift
    row = torch.arange(height, device=u.device)[:, None]
    column = torch.arange(width, device=u.device)
    visited = (row > shift) & (row <= height - shift) & (column > shift) & (column <= width - shift)
    here = row * width + column
    source = torch.where(visited, here + moves[:, 1] * width + moves[:, 0], here).flatten(1)
    if shift == 1:
        return source  # only towards pixels not yet visited
    # A source visited before (it lies behind) holds its own source's value. Following all chains two, four,
    # eight … links at a time needs as many rounds as the number of pixels has bits.
    places = here.flatten()
    behind = visited.flatten()[source] & (source > places)
    link = torch.where(behind, source, places)
    for _ in range((height * width).bit_length()):
        link = link.gather(1, link)
    return source.gather(1, link)
