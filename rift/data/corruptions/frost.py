"""Frost, from textures of our own: the six photographs of the published script are not ours to ship."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rift.data.corruptions.arithmetic import Draws
from rift.data.corruptions.colour import luma
from rift.randomness import uniform

_TEXTURES = 5  # as many as the published script uses of its photographs
_SIDE = 256  # pixels of a texture, which continues at its other side
_DARK, _LIGHT = (40.0, 62.0, 92.0), (226.0, 238.0, 250.0)  # between which ice is coloured, in bytes


def frost(images: Tensor, draws: Draws, image_weight: float, frost_weight: float) -> Tensor:
    """Adds a random part of a texture of ice crystals to the image.

    The textures are drawn by `textures`; they are not the published photographs. Severities have the
    published weights, but results are comparable with published frost in kind alone.
    """
    height, width = images.shape[2:]
    device = images.device
    picks = draws.uniform(3)
    which = (picks[:, 0] * _TEXTURES).long()
    top, left = (picks[:, 1] * _SIDE).long(), (picks[:, 2] * _SIDE).long()
    rows = (top[:, None] + torch.arange(height, device=device)) % _SIDE
    columns = (left[:, None] + torch.arange(width, device=device)) % _SIDE
    ice = textures(images.shape[1], device)[which[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    mixed = images.double() * image_weight + ice.permute(0, 3, 1, 2) * frost_weight
    return mixed.clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=4)
def textures(channels: int, device: torch.device) -> Tensor:
    """The textures of frost, (5, C, 256, 256) float64 whole numbers in [0, 255].

    Needles of ice are the crests of smooth noise stretched along a direction; several directions and sizes
    lie over one another, slower noise bends them, and slow noise again says where they lie densely.
    """
    sheets = torch.stack([_ice(number) for number in range(_TEXTURES)])
    dark, light = (torch.tensor(c, dtype=torch.float64)[:, None, None] for c in (_DARK, _LIGHT))
    coloured = dark + sheets[:, None] * (light - dark)
    return (coloured if channels == 3 else luma(coloured)).floor().to(device)


def _ice(number: int) -> Tensor:
    """How white each pixel of a texture is, (256, 256) float64 in [0, 1]."""
    axis = torch.arange(_SIDE, dtype=torch.float64) / _SIDE
    y, x = axis[:, None].expand(_SIDE, _SIDE), axis.expand(_SIDE, _SIDE)
    bend = [_noise((number, "bend", part), y, x, 4, 4) - 0.5 for part in range(2)]
    y, x = y + 0.10 * bend[0], x + 0.10 * bend[1]
    cover = _noise((number, "cover"), y, x, 3, 3) * 0.65 + _noise((number, "patch"), y, x, 9, 9) * 0.35
    needles = torch.zeros_like(cover)
    # (cells down, cells across, how much x leans on y): whole numbers, so that the texture continues.
    layers = ((8, 40, 1), (40, 8, 1), (10, 48, -1), (56, 12, -2), (20, 90, 2), (90, 24, 0), (64, 64, 1))
    for place, (down, across, lean) in enumerate(layers):
        noise = _noise((number, "needles", place), y, x + lean * y, down, across)
        crest = 1 - (noise - 0.5).abs() * 4
        needles = torch.maximum(needles, crest.clamp_min(0) * (1 - 0.06 * place))
    grain = _noise((number, "grain"), y, x, 128, 128)
    white = 0.08 + 1.1 * (cover * 1.5 - 0.25).clamp(0, 1) * needles * needles + 0.25 * (cover * grain)
    return white.clamp(0, 1)


def _noise(use: tuple[int | str, ...], y: Tensor, x: Tensor, down: int, across: int) -> Tensor:
    """Smooth noise in [0, 1] on a lattice of `down` by `across` cells that continues at its other side."""
    lattice = uniform(("frost texture", *use), torch.zeros(1, dtype=torch.int64), down * across)
    lattice = lattice.view(down, across).double()
    row, column = y * down, x * across
    top, left = row.floor(), column.floor()
    s, t = row - top, column - left
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    top, left = top.long(), left.long()
    a, b = (lattice[(top + d) % down, left % across] for d in (0, 1))
    c, d = (lattice[(top + d) % down, (left + 1) % across] for d in (0, 1))
    return (a * (1 - s) + b * s) * (1 - t) + (c * (1 - s) + d * s) * t
