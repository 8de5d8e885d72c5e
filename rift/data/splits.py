"""What a data set is once it is loaded: three splits of images, all on one device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rift.errors import UserError, choose_from

SPLITS = ("train", "holdout", "test")


@dataclass(
    frozen=True, eq=False
)  # compared and hashed by identity, so that padded copies can be kept per split
class Split:
    """A set of labelled images.

    Attributes:
        images: (N, C, H, W), contiguous; uint8, as data sets are loaded, or float32 in [0, 1], as they are
            handed to the Python interface.
        labels: (N,) int64 in [0, number of classes).
        indices: (N,) int64, each image's position in the official split. Random numbers are drawn for this
            position, so an image keeps its crops and random starts whatever subset it is part of.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: torch.device | str) -> Split:
        """The split on `device`; itself if it is there already."""
        images = self.images.to(device)
        if images is self.images:
            return self
        return Split(images, self.labels.to(device), self.indices.to(device))

    def subset(self, positions: Tensor) -> Split:
        """The images at `positions`, (M,) int64 in [0, N), in that order; `indices` remain official."""
        positions = positions.to(self.device)
        return Split(*(part.index_select(0, positions) for part in (self.images, self.labels, self.indices)))


def as_floats(images: Tensor) -> Tensor:
    """A split's images as networks take them: float32 in [0, 1]."""
    return images if images.is_floating_point() else images / 255


class Source(NamedTuple):
    """What a reader of one kind of data set returns: the official splits, whole and in official order."""

    train: Split
    test: Split
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready for use.

    Attributes:
        name: its name in the registry.
        train, test: the splits. `train` is without the held-out images.
        holdout: class-balanced images taken out of the training set, or None.
        classes: class names; the position is the label.
        mean, std: one number for each channel, for images in [0, 1].
        identity: JSON-able account of exactly which images and labels these are (see `load_dataset`).
    """

    name: str
    train: Split
    holdout: Split | None
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    identity: dict[str, Any]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def split(self, name: str) -> Split:
        """The split called "train", "holdout" or "test".

        Raises:
            UserError: unknown name, or a holdout was asked for and none was set aside.
        """
        if name not in SPLITS:
            raise UserError(f"unknown split '{name}': {choose_from(name, SPLITS)}.")
        if name == "holdout" and self.holdout is None:
            raise UserError(
                f"dataset {self.name} has no holdout split: set dataset.holdout_fraction (e.g. 0.1) "
                "or protocol=holdout."
            )
        return getattr(self, name)

    def to(self, device: torch.device | str) -> Dataset:
        """The data set with all splits on `device`."""
        holdout = None if self.holdout is None else self.holdout.to(device)
        return replace(self, train=self.train.to(device), holdout=holdout, test=self.test.to(device))
