"""CIFAR-10 and CIFAR-100, read and verified (md5) by torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from rift.data.download import fetching
from rift.data.splits import Source, Split
from rift.errors import UserError

# What torchvision raises for missing files and wrong md5 sums.
_UNREADABLE = RuntimeError


def read_cifar10(root: Path, *, download: bool, image_size: int | None, cache: Path) -> Source:
    """The official 50 000 and 10 000 images of ten classes, from `<root>/cifar-10-batches-py`."""
    return _read(CIFAR10, "cifar10", root, download)


def read_cifar100(root: Path, *, download: bool, image_size: int | None, cache: Path) -> Source:
    """The official 50 000 and 10 000 images with the hundred fine labels, from `<root>/cifar-100-python`."""
    return _read(CIFAR100, "cifar100", root, download)


def _read(kind: type[CIFAR10], name: str, root: Path, download: bool) -> Source:
    folder = root / kind.base_folder
    try:
        return _open(kind, root)
    except _UNREADABLE as error:
        # Files that are there are never fetched again, so a read-only folder does for download=True too.
        if download:
            return _fetch(kind, name, root)
        if not folder.is_dir():
            raise UserError(
                f"{name} was not found at {folder}: point dataset.root= to the folder that contains "
                f"{kind.base_folder}, or set dataset.download=true to fetch it."
            ) from error
        raise UserError(
            f"the files of {name} in {folder} are incomplete or damaged (their md5 sums are not the official "
            "ones): set dataset.download=true to fetch them again, or put the official files there."
        ) from error


def _fetch(kind: type[CIFAR10], name: str, root: Path) -> Source:
    with fetching(name, root):
        try:
            kind(str(root), download=True)
            return _open(kind, root)
        except _UNREADABLE as error:
            raise UserError(f"{name} from {kind.url} did not arrive whole: try again.") from error


def _open(kind: type[CIFAR10], root: Path) -> Source:
    train, test = (kind(str(root), train=part) for part in (True, False))
    return Source(_split(train), _split(test), tuple(train.classes))


def _split(official: CIFAR10) -> Split:
    images = torch.from_numpy(official.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(official.targets), torch.arange(len(images)))
