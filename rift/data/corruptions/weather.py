"""Weather: fog and snow. (Frost and spatter have files of their own.)"""

from __future__ import annotations

import torch
from torch import Tensor

from rift.data.corruptions import filters
from rift.data.corruptions.arithmetic import Draws, to_bytes, to_unit
from rift.data.corruptions.colour import luma


def fog(images: Tensor, draws: Draws, strength: float, decay: float) -> Tensor:
    """Adds a cloud, and dims the sum so that its brightest value could be the image's."""
    height, width = images.shape[2:]
    x = to_unit(images)
    brightest = x.amax((1, 2, 3), keepdim=True)
    x = x + plasma(draws, max(height, width), decay)[:, None, :height, :width] * strength
    return to_bytes(x * brightest / (brightest + strength))


def plasma(draws: Draws, size: int, decay: float) -> Tensor:
    """Clouds by the diamond-square method, each spanning [0, 1].

    Args:
        draws: the random numbers.
        size: pixels on a side that are needed at least.
        decay: how much less rough each finer step is.

    Returns:
        (B, S, S) float64; S is the power of two from `size` on (at least 2), where the clouds wrap around.
    """
    side = max(1 << (size - 1).bit_length(), 2)
    u = draws.uniform(side * side, "plasma")
    cloud = u.new_zeros(len(u), side, side)
    step, rough, used = side, 100.0, 0

    def jittered(corners: Tensor) -> Tensor:
        nonlocal used
        count = corners.shape[1] * corners.shape[2]
        jitter = (u[:, used : used + count] * 2 - 1) * (rough * rough)
        used += count
        return corners / 4 + jitter.view(corners.shape)

    while step >= 2:
        half = step // 2
        corner = cloud[:, ::step, ::step]
        pairs = corner + corner.roll(-1, 1)
        middle = jittered(pairs + pairs.roll(-1, 2))
        cloud[:, half::step, half::step] = middle
        cloud[:, ::step, half::step] = jittered((middle + middle.roll(1, 1)) + (corner + corner.roll(-1, 2)))
        cloud[:, half::step, ::step] = jittered((middle + middle.roll(1, 2)) + (corner + corner.roll(-1, 1)))
        step, rough = half, rough / decay

    cloud -= cloud.amin((1, 2), keepdim=True)
    return cloud / cloud.amax((1, 2), keepdim=True)


def snow(
    images: Tensor,
    draws: Draws,
    mean: float,
    sigma: float,
    zoom: float,
    threshold: float,
    radius: float,
    blur: float,
    weight: float,
) -> Tensor:
    """Whitens the image, and adds flakes streaked by the wind, once upright and once upside down."""
    height, width = images.shape[2:]
    layer = draws.normal(height * width).view(-1, 1, height, width) * sigma + mean
    layer = filters.pixels_last(filters.clipped_zoom(filters.pixels_first(layer), zoom), 1)
    layer = torch.where(layer < threshold, 0.0, layer)
    layer = to_unit(filters.motion_blur(to_bytes(layer), radius, blur, draws.angle(-135, -45)))

    x = to_unit(images)
    whiter = torch.maximum(x, luma(x) * 1.5 + 0.5)
    x = x * weight + whiter * (1 - weight)
    return to_bytes(x + layer + layer.flip(2, 3))
