"""CIFAR-10 and CIFAR-100: fetched by torchvision, verified by its md5 sums, unpickled with care."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import download_and_extract_archive

from rift.data.download import fetching
from rift.data.plain_pickle import NotOfficialError, read_pickle
from rift.data.splits import Source, Split
from rift.errors import UserError
from rift.places import check_folders


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
    except NotOfficialError as error:
        # Files that are there are never fetched again, so a read-only folder does for download=True too.
        if download:
            return _fetch(kind, name, root)
        check_folders(name, root)
        raise UserError(
            f"the files of {name} in {folder} are incomplete or damaged ({error}): set "
            "dataset.download=true to fetch them again, or put the official files there."
        ) from error


def _fetch(kind: type[CIFAR10], name: str, root: Path) -> Source:
    with fetching(name, root):
        with suppress(NotOfficialError):
            return _open(kind, root)  # another process was faster
        try:
            download_and_extract_archive(kind.url, str(root), filename=kind.filename, md5=kind.tgz_md5)
            return _open(kind, root)
        except (NotOfficialError, RuntimeError) as error:  # torchvision's for a wrong md5 sum is the latter
            raise UserError(f"{name} from {kind.url} did not arrive whole: try again.") from error


def _open(kind: type[CIFAR10], root: Path) -> Source:
    """Reads the files that torchvision names, by the md5 sums that it knows."""
    folder = root / kind.base_folder
    meta = read_pickle(folder / kind.meta["filename"], kind.meta["md5"])
    train, test = (_split(folder, files) for files in (kind.train_list, kind.test_list))
    return Source(train, test, tuple(meta[kind.meta["key"]]))


def _split(folder: Path, files: list[list[str]]) -> Split:
    pickles = [read_pickle(folder / name, md5) for name, md5 in files]
    pixels = np.concatenate([part["data"] for part in pickles]).reshape(-1, 3, 32, 32)
    labels = [label for part in pickles for label in part.get("labels", part.get("fine_labels"))]
    return Split(torch.from_numpy(pixels), torch.tensor(labels), torch.arange(len(pixels)))
