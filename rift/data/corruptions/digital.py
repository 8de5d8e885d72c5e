"""Brightness, contrast, saturation; elastic warps; coarse pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rift.data.corruptions import filters
from rift.data.corruptions.arithmetic import Draws, to_bytes, to_unit
from rift.data.corruptions.colour import hsv_to_rgb, luma, rgb_to_hsv


def brightness(images: Tensor, draws: Draws, added: float) -> Tensor:
    """Adds to the value of hue, saturation, value."""
    hue, saturation, value = rgb_to_hsv(_three_channels(to_unit(images)))
    return _back(hsv_to_rgb(hue, saturation, (value + added).clamp(0, 1)), images)


def saturate(images: Tensor, draws: Draws, factor: float, added: float) -> Tensor:
    """Scales the saturation and adds to it, which makes grey reddish, since the hue of grey is 0."""
    hue, saturation, value = rgb_to_hsv(_three_channels(to_unit(images)))
    return _back(hsv_to_rgb(hue, (saturation * factor + added).clamp(0, 1), value), images)


def _three_channels(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1)


def _back(rgb: Tensor, like: Tensor) -> Tensor:
    """To bytes; for images of one channel, the colours' luma."""
    return to_bytes(rgb if like.shape[1] == 3 else luma(rgb))


def contrast(images: Tensor, draws: Draws, factor: float) -> Tensor:
    """Brings values closer to the mean of their channel in their image."""
    x = to_unit(images)
    # A running sum adds one value after the other; `mean` would not in every batch.
    total = x.flatten(2).cumsum(2)[..., -1, None, None]
    mean = total / (images.shape[2] * images.shape[3])
    return to_bytes((x - mean) * factor + mean)


def elastic_transform(images: Tensor, draws: Draws, strength: float, smooth: float, shift: float) -> Tensor:
    """A random affine map, then a smooth random displacement of every pixel. (All times the shorter side.)"""
    height, width = images.shape[2:]
    size = min(height, width)
    row, column = filters.affine_jitter(draws, height, width, shift * size)
    x = filters.bilinear(to_unit(images), row, column, "reflect_101")
    if strength:
        moves = (draws.uniform(2 * height * width, "moves") * 2 - 1).view(-1, 2, height, width)
        moves = filters.gaussian_blur(moves, smooth * size, "reflect", truncate=3) * (strength * size)
        across = torch.arange(width, device=x.device)
        down = torch.arange(height, device=x.device)[:, None]
        x = filters.bilinear(x, down + moves[:, 1], across + moves[:, 0], "reflect")
    return to_bytes(x)


def pixelate(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Shrinks by averaging and enlarges again, each with Pillow's box filter, whose integers are repeated."""
    height, width = images.shape[2:]
    small = max(int(height * scale), 1), max(int(width * scale), 1)
    x = images.double()
    for rows, columns in (small, (height, width)):
        x = _box_resize(x, columns)
        x = _box_resize(x.mT, rows).mT
    return x.to(torch.uint8)


def _box_resize(x: Tensor, size: int) -> Tensor:
    """Resizes the last axis of float64 bytes to `size`, rounding to bytes.

    All numbers are whole and far below 2**53, so the matrix product is exact in whatever order it sums.
    """
    weights = _box_weights(x.shape[-1], size, x.device)
    return ((x @ weights + 2**21) / 2**22).floor().clamp(0, 255)


@lru_cache(maxsize=64)
def _box_weights(size: int, new_size: int, device: torch.device) -> Tensor:
    """(size, new_size) float64 whole numbers: Pillow's weights with 22 binary digits."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = 0.5 * stretch
    weights = np.zeros((size, new_size))
    for new in range(new_size):
        centre = (new + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), size)
        offsets = (np.arange(first, last) - centre + 0.5) * (1 / stretch)
        inside = (offsets > -0.5) & (offsets <= 0.5)
        weights[first:last, new] = inside / inside.sum()
    return torch.from_numpy(np.floor(0.5 + weights * 2**22)).to(device)
