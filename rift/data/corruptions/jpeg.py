"""What JPEG compression loses, without writing a file: colour, cosine transform, quantisation.

The published images went through the Independent JPEG Group's libjpeg 9b, which transforms 16×16 pixels of
colour to 8×8 coefficients and back; today's libjpeg-turbo averages colour over 2×2 pixels instead, and its
images differ. Here libjpeg 9's integer arithmetic is repeated. Its numbers are kept in float64, where they
are far below 2**53 and matrix products are exact in whatever order they sum.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rift.data.corruptions.arithmetic import Draws
from rift.data.corruptions.filters import folded

# Cosines √2·cos((2i + 1)kπ / 2n) in 1/8192 for frequency k (row) at the first half of the positions i; the
# other half mirrors it, with the sign turned at odd k. Some are one off the nearest whole number: libjpeg
# adds them up from rounded parts.
_EIGHT = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)
_SIXTEEN = (
    (8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192),
    (11529, 11086, 10217, 8956, 7350, 5461, 3363, 1135),
    (11363, 9633, 6436, 2260, -2260, -6436, -9633, -11363),
    (11086, 7350, 1136, -5461, -10217, -11529, -8956, -3363),
    (10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703),
    (10217, 1136, -8955, -11086, -3363, 7350, 11529, 5461),
    (9633, -2260, -11363, -6437, 6437, 11363, 2260, -9633),
    (8956, -5461, -11086, 1137, 11530, 3363, -10217, -7350),
)
# The way back from 8 coefficients to 16 pixels is put together otherwise.
_SIXTEEN_BACK = (
    (8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192),
    (11529, 11086, 10217, 8956, 7350, 5461, 3363, 1136),
    (11363, 9633, 6437, 2260, -2260, -6437, -9633, -11363),
    (11086, 7350, 1136, -5461, -10217, -11529, -8955, -3363),
    (10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703),
    (10217, 1136, -8955, -11086, -3363, 7349, 11529, 5461),
    (9632, -2260, -11363, -6436, 6436, 11363, 2260, -9632),
    (8956, -5461, -11086, 1137, 11529, 3363, -10217, -7350),
)
# The quantisation steps of the standard's annex K at quality 50, of brightness and of colour.
_BRIGHTNESS_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)


def jpeg_compression(images: Tensor, draws: Draws, quality: int) -> Tensor:
    """The image after JPEG at `quality` (1 to 100), colour at half resolution; grey if it has one channel."""
    channels, height, width = images.shape[1:]
    block = 8 if channels == 1 else 16
    # The last pixel goes on until the blocks are full.
    rows = torch.arange(-(-height // block) * block, device=images.device)
    columns = torch.arange(-(-width // block) * block, device=images.device)
    x = images.index_select(2, folded(rows, height, "nearest"))
    x = x.index_select(3, folded(columns, width, "nearest")).double()
    if channels == 1:
        x = _through(x[:, 0], 8, quality)[:, None]
    else:
        brightness, blue, red = _to_ycc(x)
        brightness = _through(brightness, 8, quality)
        blue, red = (_through(colour, 16, quality) for colour in (blue, red))
        x = _from_ycc(brightness, blue, red)
    return x[:, :, :height, :width].to(torch.uint8)


def _through(plane: Tensor, size: int, quality: int) -> Tensor:
    """One plane (B, H, W) of whole numbers in [0, 255], cut in blocks of `size`, to coefficients and back."""
    count, height, width = plane.shape
    forward, back, steps = _tables(size, quality, plane.device)
    blocks = plane.view(count, height // size, size, width // size, size).transpose(2, 3) - 128
    x = _shifted(blocks @ forward.T, 11)
    x = _shifted(forward @ x, 15 if size == 8 else 17)
    step = steps * 8  # the transform's own scale
    x = ((x.abs() + step / 2) / step).floor() * x.sign() * steps
    x = _shifted(back.T @ x, 11)
    x = (_shifted(x @ back, 18) + 128).clamp(0, 255)
    return x.transpose(2, 3).reshape(plane.shape)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Over 2**bits, to the nearest whole number; halves go up."""
    return (x * 2.0**-bits + 0.5).floor()


@lru_cache(maxsize=32)
def _tables(size: int, quality: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Transform there and back, (8, size) each, and quantisation steps (8, 8), float64."""
    halves = (_EIGHT, _EIGHT) if size == 8 else (_SIXTEEN, _SIXTEEN_BACK)
    sign = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)[:, None]
    forward, back = (torch.tensor(half, dtype=torch.float64) for half in halves)
    forward, back = (torch.cat([half, half.flip(1) * sign], 1).to(device) for half in (forward, back))
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = torch.tensor(_BRIGHTNESS_STEPS if size == 8 else _COLOUR_STEPS, dtype=torch.float64)
    return forward, back, ((steps * percent + 50) / 100).floor().clamp(1, 255).to(device)


def _to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Brightness, blueness, redness, whole numbers in [0, 255]; weights in 1/65536."""
    red, green, blue = rgb.unbind(1)
    brightness = 19595 * red + 38470 * green + 7471 * blue + 32768
    blueness = -11058 * red - 21710 * green + 32768 * blue + (128 * 65536 + 32767)
    redness = 32768 * red - 27439 * green - 5329 * blue + (128 * 65536 + 32767)
    return tuple((part * 2.0**-16).floor() for part in (brightness, blueness, redness))


def _from_ycc(brightness: Tensor, blueness: Tensor, redness: Tensor) -> Tensor:
    blueness, redness = blueness - 128, redness - 128
    red = brightness + _shifted(91881 * redness, 16)
    green = brightness + _shifted(-22553 * blueness - 46802 * redness, 16)
    blue = brightness + _shifted(116130 * blueness, 16)
    return torch.stack([red, green, blue], 1).clamp(0, 255)
