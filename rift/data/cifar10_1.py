"""CIFAR-10.1 v6: 2000 new test images for networks trained on CIFAR-10 (Recht et al. 2018)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rift.data.arrays import open_array
from rift.errors import UserError

FOLDER = "CIFAR-10.1"
IMAGES_FILE, LABELS_FILE = "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy"
SOURCE = "https://github.com/modestyachts/CIFAR-10.1"
IMAGES = 2000
_CLASSES = 10


def read_cifar10_1(root: Path) -> tuple[Tensor, Tensor]:
    """The images, (2000, 3, 32, 32) uint8, and their CIFAR-10 labels, (2000,) int64 in [0, 10).

    Args:
        root: folder that holds `cifar10.1_v6_data.npy` and `cifar10.1_v6_labels.npy`, or holds a folder
            `CIFAR-10.1` with them.

    Raises:
        UserError: a file is missing, damaged, or not what it should be.
    """
    folder = _find(root)
    images = _open(folder / IMAGES_FILE)
    if images.shape != (IMAGES, 32, 32, 3) or images.dtype != np.uint8:
        raise UserError(
            f"{folder / IMAGES_FILE} holds {images.shape} {images.dtype} instead of "
            f"({IMAGES}, 32, 32, 3) uint8: {_remedy()}."
        )
    labels = _open(folder / LABELS_FILE)
    if labels.shape != (IMAGES,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{folder / LABELS_FILE} holds {labels.shape} {labels.dtype} instead of ({IMAGES},) integers: "
            f"{_remedy()}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= _CLASSES:
        raise UserError(
            f"{folder / LABELS_FILE} holds labels from {low} to {high} instead of 0 to {_CLASSES - 1}: "
            f"{_remedy()}."
        )
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def _find(root: Path) -> Path:
    for folder in (root, root / FOLDER):
        present = [name for name in (IMAGES_FILE, LABELS_FILE) if (folder / name).is_file()]
        if len(present) == 2:
            return folder
        if present:
            absent = LABELS_FILE if present == [IMAGES_FILE] else IMAGES_FILE
            raise UserError(f"{folder / absent} is missing beside {present[0]}: {_remedy()}.")
    raise UserError(f"CIFAR-10.1 was found neither in {root} nor in {root / FOLDER}: {_remedy()}.")


def _open(path: Path) -> np.ndarray:
    try:
        return open_array(path)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): {_remedy()}.") from error


def _remedy() -> str:
    return f"put {IMAGES_FILE} and {LABELS_FILE} from {SOURCE} (datasets) there"
