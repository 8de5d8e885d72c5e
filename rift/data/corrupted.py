"""Corrupted versions of a test set, wherever they come from: read from published files, or generated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


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
