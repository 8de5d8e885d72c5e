"""Hue, saturation, value; luma. In the order of operations of scikit-image, so that roundings agree."""

from __future__ import annotations

import torch
from torch import Tensor

# ITU-R BT.601: how bright red, green and blue look.
_LUMA = (0.299, 0.587, 0.114)


def luma(x: Tensor) -> Tensor:
    """Brightness (B, 1, H, W) of (B, 3, H, W) colours, or of (B, 1, H, W) grey values: these themselves."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2])[:, None]


def tint(colour: tuple[int, int, int], channels: int) -> tuple[float, ...]:
    """A colour in bytes as values in [0, 1] per channel; for one channel its luma."""
    unit = tuple(value / 255 for value in colour)
    return unit if channels == 3 else (sum(w * v for w, v in zip(_LUMA, unit, strict=True)),)


def rgb_to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in [0, 1), saturation and value in [0, 1], each (B, H, W), of (B, 3, H, W) float64 in [0, 1].

    Grey has hue and saturation 0. Where two channels are the largest, the later decides the hue.
    """
    red, green, blue = rgb.unbind(1)
    value = rgb.amax(1)
    delta = value - rgb.amin(1)
    grey = delta == 0
    saturation = torch.where(grey, 0.0, delta / value)
    hue = torch.where(value == red, (green - blue) / delta, 2 + (blue - red) / delta)
    hue = torch.where(value == green, 2 + (blue - red) / delta, hue)
    hue = torch.where(value == blue, 4 + (red - green) / delta, hue)
    hue = hue / 6
    hue = torch.where(hue < 0, hue + 1, hue)
    return torch.where(grey, 0.0, hue), saturation, value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The inverse of `rgb_to_hsv`: (B, 3, H, W)."""
    sector = (hue * 6).floor()
    part = hue * 6 - sector
    low = value * (1 - saturation)
    falling = value * (1 - part * saturation)
    rising = value * (1 - (1 - part) * saturation)
    levels = torch.stack([value, falling, rising, low], 1)
    sector = (sector % 6).long()
    order = _ORDER.to(hue.device)[sector].permute(0, 3, 1, 2)
    return levels.gather(1, order)


# Which of (value, falling, rising, low) red, green and blue are in each sixth of the colour circle.
_ORDER = torch.tensor([(0, 2, 3), (1, 0, 3), (3, 0, 2), (3, 1, 0), (2, 3, 0), (0, 3, 1)])
