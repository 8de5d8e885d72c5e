"""Filters and resampling over batches of images, one product and one sum at a time (see `arithmetic`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rift.data.corruptions.arithmetic import Draws


def folded(positions: Tensor, size: int, mode: str) -> Tensor:
    """Positions outside an axis of `size` pixels, folded back into it.

    Args:
        positions: int64, any values.
        size: pixels on the axis.
        mode: what lies beyond the border: "nearest" (the border pixel again and again), "reflect" (mirrored,
            the border pixel twice) or "reflect_101" (mirrored, the border pixel once).
    """
    if mode == "nearest":
        return positions.clamp(0, size - 1)
    if mode == "reflect":
        positions = positions % (2 * size)
        return torch.minimum(positions, 2 * size - 1 - positions)
    period = max(2 * size - 2, 1)
    positions = positions % period
    return torch.minimum(positions, period - positions)


def padded(x: Tensor, rows: int, columns: int, mode: str) -> Tensor:
    """(…, H + 2·rows, W + 2·columns) with borders as `folded` says."""
    for dim, extra in ((-2, rows), (-1, columns)):
        if extra:
            size = x.shape[dim]
            positions = torch.arange(-extra, size + extra, device=x.device)
            x = x.index_select(dim, folded(positions, size, mode))
    return x


def gaussian_kernel(sigma: float, truncate: float = 4.0) -> list[float]:
    """Half of a symmetric kernel that sums to 1, from its centre outwards; as scipy.ndimage cuts it off."""
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 / (sigma * sigma) * offsets**2)
    return (weights / weights.sum())[radius:].tolist()


def gaussian_blur(x: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Gaussian filter of (…, H, W) float64, standard deviation `sigma` pixels; rows first, as in scipy."""
    if sigma <= 0:
        return x
    kernel = gaussian_kernel(sigma, truncate)
    return _symmetric(_symmetric(x, kernel, -2, mode), kernel, -1, mode)


def _symmetric(x: Tensor, kernel: list[float], dim: int, mode: str) -> Tensor:
    """Filters along one dimension; sums from the outermost pair inwards, as scipy does."""
    radius, size = len(kernel) - 1, x.shape[dim]
    wide = padded(x, radius if dim == -2 else 0, radius if dim == -1 else 0, mode)
    result = x * kernel[0]
    for away in range(radius, 0, -1):
        pair = wide.narrow(dim, radius - away, size) + wide.narrow(dim, radius + away, size)
        result += pair.mul_(kernel[away])
    return result


def correlate(x: Tensor, kernel: Sequence[Sequence[float]], mode: str = "reflect_101") -> Tensor:
    """Correlation of (…, H, W) with a small kernel of odd size; row by row of the kernel, zeros skipped."""
    rows, columns = len(kernel) // 2, len(kernel[0]) // 2
    wide = padded(x, rows, columns, mode)
    result = torch.zeros_like(x)
    for top, line in enumerate(kernel):
        for left, weight in enumerate(line):
            if weight:
                part = wide.narrow(-2, top, x.shape[-2]).narrow(-1, left, x.shape[-1])
                result += part * weight
    return result


def box_blur(x: Tensor) -> Tensor:
    """Sum over 3×3 pixels, mirrored at the border (the border pixel once); divide by 9 for the mean."""
    return correlate(x, [[1, 1, 1]] * 3)


def clipped_zoom(x: Tensor, factor: float) -> Tensor:
    """The middle of (H, W, N) float64, enlarged by `factor` ≥ 1 with linear interpolation, cut to (H, W, N).

    As scipy.ndimage.zoom of order 1 does it: first and last pixel stay where they are. Images and channels
    come last, so that a pixel is copied for all of them at once.
    """
    rows, columns = (_zoom_axis(size, factor) for size in x.shape[:2])
    result: Tensor | None = None
    for row, row_weight in rows:
        lines = x.index_select(0, row.to(x.device)) * row_weight.to(x.device)[:, None, None]
        for column, column_weight in columns:
            part = lines.index_select(1, column.to(x.device)).mul_(column_weight.to(x.device)[:, None])
            result = part if result is None else result.add_(part)
    assert result is not None
    return result


def pixels_first(x: Tensor) -> Tensor:
    """(B, C, H, W) to (H, W, B·C), for `clipped_zoom`."""
    return x.flatten(0, 1).permute(1, 2, 0).contiguous()


def pixels_last(x: Tensor, channels: int) -> Tensor:
    """The inverse of `pixels_first`."""
    return x.permute(2, 0, 1).contiguous().unflatten(0, (-1, channels))


@lru_cache(maxsize=256)
def _zoom_axis(size: int, factor: float) -> list[tuple[Tensor, Tensor]]:
    """For the pixels kept of one axis: the two source pixels (int64) and their weights (float64)."""
    crop = math.ceil(size / factor)
    start = (size - crop) // 2
    enlarged = round(crop * factor)
    trim = (enlarged - size) // 2
    step = (crop - 1) / (enlarged - 1) if enlarged > 1 else 0.0
    position = torch.arange(trim, trim + size, dtype=torch.float64) * step
    before = position.floor()
    part = position - before
    left = before.long() + start
    right = (left + 1).clamp_max(start + crop - 1)
    return [(left, 1 - part), (right, part)]


def window(wide: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Each image's own window: (B, C, height, width) out of (B, C, H, W), from rows `top`, columns `left`.

    A view with one entry for every run of `width` pixels lets whole rows be copied at a time, which is
    several times faster on a CPU than an address for every pixel.
    """
    wide = wide.contiguous()
    count, channels, rows, columns = wide.shape
    runs = wide.as_strided((wide.numel() - width + 1, width), (1, 1))
    device = wide.device
    planes = torch.arange(count * channels, device=device).view(count, channels, 1) * (rows * columns)
    starts = planes + torch.arange(height, device=device) * columns + (top * columns + left)[:, None, None]
    return runs.index_select(0, starts.flatten()).view(count, channels, height, width)


def motion_blur(images: Tensor, radius: float, sigma: float, angle: tuple[Tensor, Tensor]) -> Tensor:
    """Blur along a direction to one side, as ImageMagick's motion blur does it.

    Half a Gaussian of `sigma` pixels over 2·⌈radius⌉ + 1 pixels, each taken where the line from the pixel
    passes, to the nearest pixel; the border pixel goes on beyond the border.

    Args:
        images: (B, C, H, W) uint8.
        radius, sigma: in pixels.
        angle: cosine and sine of the direction, each (B, 1) float64; sine points down.

    Returns:
        uint8 like `images`, rounded.
    """
    taps = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(taps) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).tolist()
    reach = taps - 1
    along = torch.arange(taps, dtype=torch.float64, device=images.device)
    x, y = ((along * part - 0.5).ceil().long() + reach for part in angle)
    wide = padded(images, reach, reach, "nearest")
    result = torch.zeros(images.shape, dtype=torch.float64, device=images.device)
    for tap, weight in enumerate(weights):
        part = window(wide, y[:, tap], x[:, tap], *images.shape[2:])
        result += part.double() * weight
    return (result + 0.5).to(torch.uint8)


def bilinear(x: Tensor, row: Tensor, column: Tensor, mode: str) -> Tensor:
    """Values of (B, C, H, W) float64 between its pixels.

    Args:
        x: the images.
        row, column: (B, H', W') float64, where to look, in pixels from the first pixel's centre.
        mode: the border, see `folded`.

    Returns:
        (B, C, H', W') float64.
    """
    count, channels, height, width = x.shape
    top, left = row.floor(), column.floor()
    down, right = (row - top)[:, None], (column - left)[:, None]
    top, left = top.long(), left.long()
    flat = x.flatten(2)
    result: Tensor | None = None
    for rows, row_weight in ((top, 1 - down), (top + 1, down)):
        for columns, column_weight in ((left, 1 - right), (left + 1, right)):
            places = folded(rows, height, mode) * width + folded(columns, width, mode)
            places = places.flatten(1)[:, None].expand(count, channels, -1)
            part = flat.gather(2, places).view(count, channels, *row.shape[1:])
            part = part.mul_(row_weight * column_weight)
            result = part if result is None else result.add_(part)
    assert result is not None
    return result


def affine_jitter(draws: Draws, height: int, width: int, shift: float) -> tuple[Tensor, Tensor]:
    """Where each pixel of a randomly warped image comes from, (B, H, W) rows and columns, float64.

    Three points around the middle move by up to `shift` pixels along each axis; the affine map that moves
    them moves the image. Positions are rounded to 1/32 pixel, as OpenCV's are.
    """
    size = max(min(height, width) // 3, 1)
    moves = (draws.uniform(6, "affine") * 2 - 1) * shift
    first, second, third = (moves[:, 2 * i : 2 * i + 2] for i in range(3))
    # The first two points lie 2·size apart along y, the last two along x.
    along_y = (first - second) / (2 * size)
    along_x = (second - third) / (2 * size)
    xx, yx = along_x[:, 0] + 1, along_x[:, 1]
    xy, yy = along_y[:, 0], along_y[:, 1] + 1
    # Around the first point, whose image is itself plus its move.
    x0, y0 = width // 2 + size, height // 2 + size
    x = torch.arange(width, device=moves.device).double() - x0
    y = torch.arange(height, device=moves.device).double() - y0
    dx = x[None, None, :] - first[:, 0, None, None]
    dy = y[None, :, None] - first[:, 1, None, None]
    determinant = xx * yy - xy * yx
    column = x0 + dx * (yy / determinant)[:, None, None] - dy * (xy / determinant)[:, None, None]
    row = y0 + dy * (xx / determinant)[:, None, None] - dx * (yx / determinant)[:, None, None]
    return (row * 32 + 0.5).floor() / 32, (column * 32 + 0.5).floor() / 32
