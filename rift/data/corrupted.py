"""Corrupted versions of a test set, wherever they come from: read from published files, or generated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

# Hendrycks and Dietterich 2019; the order of the paper's tables.
STANDARD = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
ALL = STANDARD + EXTRA
SEVERITIES = (1, 2, 3, 4, 5)
# The sets that papers average over: RiFT's text says 15, its published code takes all but glass_blur.
SELECTIONS = {
    "paper15": STANDARD,
    "official18": tuple(name for name in ALL if name != "glass_blur"),
    "all19": ALL,
}


class CorruptedSet(Protocol):
    """A test set in many corrupted versions; every version holds the same images in the same order.

    Attributes:
        kind: `published` or `generated`; numbers of the two are never compared.
        labels: (N,) int64 on the CPU.
        paired: whether image n is image n of the clean test split.
        identity: what decides the images, JSON-able, in a key.
    """

    kind: str
    labels: Tensor
    paired: bool
    identity: dict[str, Any]

    def batches(
        self, corruption: str, severity: int, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        """One version from its first image to its last: uint8 (B, C, H, W) on the device."""
        ...
