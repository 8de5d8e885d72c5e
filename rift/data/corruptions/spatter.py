"""Spatter: drops of water or of mud on the lens, with the OpenCV operations the published script uses."""

from __future__ import annotations

import torch
from torch import Tensor

from rift.data.corruptions import filters
from rift.data.corruptions.arithmetic import Draws, to_bytes, to_unit
from rift.data.corruptions.colour import tint

_WATER, _MUD = (175, 238, 238), (63, 42, 20)
_LIGHT = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))  # from the top left, on the drops' relief
_EDGE_LOW, _EDGE_HIGH = 50, 150  # thresholds of the edges' slope
_FAR = 1 << 28
# A step straight, diagonal and as a knight moves, in 1/65536 pixel: OpenCV's 5×5 mask for distances.
_STRAIGHT, _DIAGONAL, _KNIGHT = 65536, 91750, 143976


def spatter(
    images: Tensor,
    draws: Draws,
    mean: float,
    sigma: float,
    blur: float,
    threshold: float,
    strength: float,
    mud: int,
) -> Tensor:
    """Drops where smoothed noise exceeds a threshold; water adds pale turquoise, mud covers with brown.

    Args:
        images, draws: as everywhere.
        mean, sigma: of the noise.
        blur: standard deviation of its smoothing, pixels.
        threshold: noise below is dry.
        strength: of the water; for mud, the standard deviation of the smoothing of its rim, pixels.
        mud: 1 for mud, 0 for water.
    """
    height, width = images.shape[2:]
    layer = draws.normal(height * width).view(-1, height, width) * sigma + mean
    layer = filters.gaussian_blur(layer, blur)
    x = to_unit(images)
    if mud:
        cover = filters.gaussian_blur((layer > threshold).double(), strength)
        cover = torch.where(cover < 0.8, 0.0, cover)[:, None]
        return to_bytes(x * (1 - cover) + _coloured(cover, _MUD, x))
    layer = torch.where(layer < threshold, 0.0, layer)
    # Bytes wrap around above 255, as the published script's do.
    layer = ((layer * 255).long() % 256).double()
    water = layer * _relief(layer)
    most = water.amax((1, 2), keepdim=True)
    water = torch.where(most > 0, water / most, 0.0)[:, None] * strength
    return to_bytes(x + _coloured(water, _WATER, x))


def _coloured(amount: Tensor, colour: tuple[int, int, int], like: Tensor) -> Tensor:
    values = torch.tensor(tint(colour, like.shape[1]), dtype=torch.float64, device=like.device)
    return amount * values[:, None, None]


def _relief(layer: Tensor) -> Tensor:
    """How strongly water shines, (B, H, W) float64 whole numbers in [0, 255], from the layer in bytes."""
    distance = distance_to(edges(layer)).clamp_max(20)
    distance = (filters.box_blur(distance) / 9).floor()
    relief = equalised(distance)
    relief = filters.correlate(relief, _LIGHT).clamp(0, 255)
    return (filters.box_blur(relief) / 9 + 0.5).floor()


def edges(layer: Tensor) -> Tensor:
    """Canny's edges with the slope |dx| + |dy| of 3×3 Sobel filters: (B, H, W) bool.

    Args:
        layer: (B, H, W) float64, whole numbers in [0, 255].
    """
    dx = filters.correlate(layer, ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)), "nearest")
    dy = filters.correlate(layer, ((-1, -2, -1), (0, 0, 0), (1, 2, 1)), "nearest")
    slope = dx.abs() + dy.abs()
    height, width = layer.shape[1:]
    wide = torch.nn.functional.pad(slope, (1, 1, 1, 1))

    def beside(down: int, right: int) -> Tensor:
        return wide[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat = dx.abs() * 13573  # tan 22.5° in 1/32768
    rise = dy.abs() * 32768
    steep = flat + dx.abs() * 65536  # tan 67.5°
    same_sign = (dx < 0) == (dy < 0)
    diagonal = torch.where(
        same_sign,
        (slope > beside(-1, -1)) & (slope > beside(1, 1)),
        (slope > beside(-1, 1)) & (slope > beside(1, -1)),
    )
    along_x = (slope > beside(0, -1)) & (slope >= beside(0, 1))
    along_y = (slope > beside(-1, 0)) & (slope >= beside(1, 0))
    crest = torch.where(rise < flat, along_x, torch.where(rise > steep, along_y, diagonal))
    return _joined(crest & (slope > _EDGE_LOW), crest & (slope > _EDGE_HIGH))


def _joined(weak: Tensor, strong: Tensor) -> Tensor:
    """The weak pixels that touch a strong one directly or through weak ones, (B, H, W) bool."""
    found = strong
    while True:
        grown = _grown(_grown(found, 1), 2) & weak
        if torch.equal(grown, found):
            return found
        found = grown


def _grown(mask: Tensor, axis: int) -> Tensor:
    """The pixels of a mask and their neighbours along an axis."""
    wide, length = mask.clone(), mask.shape[axis] - 1
    wide.narrow(axis, 1, length).logical_or_(mask.narrow(axis, 0, length))
    wide.narrow(axis, 0, length).logical_or_(mask.narrow(axis, 1, length))
    return wide


def distance_to(target: Tensor) -> Tensor:
    """Distance of each pixel to the nearest one of `target` in pixels, (B, H, W) float64.

    By steps to neighbours and knight's moves, as OpenCV's distance transform with a 5×5 mask: once from the
    top and once from the bottom. A row is done at once, since steps along it are a running minimum.
    """
    there = torch.where(target, 0, _FAR)
    for _ in range(2):
        there = _sweep(there).flip(1, 2)
    return there.double() / _STRAIGHT


def _sweep(distance: Tensor) -> Tensor:
    """Shortest ways that only go down and right, from the top row to the bottom one."""
    height, width = distance.shape[1:]
    along = torch.arange(width, device=distance.device) * _STRAIGHT
    wide = torch.nn.functional.pad(distance, (2, 2, 2, 0), value=_FAR)
    above = {(-2, -1): _KNIGHT, (-2, 1): _KNIGHT, (-1, -2): _KNIGHT, (-1, 2): _KNIGHT}
    above |= {(-1, -1): _DIAGONAL, (-1, 1): _DIAGONAL, (-1, 0): _STRAIGHT}
    for row in range(2, height + 2):
        line = wide[:, row, 2 : width + 2]
        for (down, right), cost in above.items():
            line = torch.minimum(line, wide[:, row + down, 2 + right : 2 + right + width] + cost)
        wide[:, row, 2 : width + 2] = (line - along).cummin(1).values + along
    return wide[:, 2:, 2:-2]


def equalised(levels: Tensor) -> Tensor:
    """Spreads the levels of each image over [0, 255] by their ranks; the lowest becomes 0.

    Args:
        levels: (B, H, W) float64, whole numbers in [0, 255].
    """
    count, pixels = len(levels), levels[0].numel()
    flat = levels.flatten(1).long()
    histogram = torch.zeros(count, 256, dtype=torch.int64, device=levels.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    lowest = histogram.gather(1, flat.amin(1, keepdim=True))
    below = (histogram.cumsum(1) - lowest).clamp_min(0)
    spread = (below.double() * (255 / (pixels - lowest).clamp_min(1).double())).round()
    # An image of one level keeps it.
    spread = torch.where(lowest == pixels, torch.arange(256, device=levels.device).double(), spread)
    return spread.gather(1, flat).view(levels.shape)
