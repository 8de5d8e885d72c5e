"""Corrupted versions of a test split made on the spot, batch by batch; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rift.data.corruptions import constants_for, corrupt
from rift.data.splits import Split


class GeneratedSet:
    """A `CorruptedSet` of our own making: the published definitions, other random numbers.

    Args:
        test: the clean split, whose images are corrupted.
    """

    kind = "generated"
    paired = True
    _VERSION = 1  # raise it when an image changes, so that older results are not used

    def __init__(self, test: Split) -> None:
        self._test = test
        self.labels = test.labels.cpu()
        self.identity: dict[str, Any] = {
            "kind": self.kind,
            "version": self._VERSION,
            "constants": constants_for(min(test.images.shape[-2:])),
        }

    def batches(
        self, corruption: str, severity: int, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        """One version from its first image to its last: uint8 (B, C, H, W) on the device."""
        images, indices = self._test.images, self._test.indices
        for part, positions in zip(images.split(batch_size), indices.split(batch_size), strict=True):
            yield corrupt(part.to(device), positions.to(device), corruption, severity)
