"""The published corrupted versions of a test set: found or fetched, checked, and opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rift.corruption_names import EXTRA
from rift.data import cifar_c, tiny_imagenet_c
from rift.data.corrupted import CorruptedSet
from rift.data.splits import Split
from rift.data.versions import check_names
from rift.data.zenodo import fetch_folder
from rift.errors import UserError

FOLDERS = {**cifar_c.FOLDERS, "tiny_imagenet": tiny_imagenet_c.FOLDER}


def open_published(
    name: str,
    root: Path,
    *,
    corruptions: Sequence[str],
    severities: Sequence[int],
    test: Split,
    classes: Sequence[str],
    download: bool,
    cache: Path,
) -> CorruptedSet:
    """CIFAR-10-C, CIFAR-100-C or Tiny-ImageNet-C (Hendrycks and Dietterich 2019), from a folder below `root`.

    Args:
        name: of the clean data set: cifar10, cifar100 or tiny_imagenet.
        root: the folder that holds `CIFAR-10-C`, `CIFAR-100-C` or `Tiny-ImageNet-C`.
        corruptions: of `rift.corruption_names.ALL`; files of others are neither needed nor looked at.
        severities: from 1 to 5.
        test: the clean test split. For CIFAR its `indices` choose the images and its labels are compared; for
            Tiny-ImageNet it gives their number.
        classes: class names by label; for Tiny-ImageNet, the wnids whose images are used.
        download: fetch the set if its folder is not there.
        cache: folder for decoded images and for MD5 sums already computed.

    Returns:
        The set. Its `identity` holds `kind`, `set`, and the `md5` of each file used (CIFAR), or `images` and
        the SHA-256 of the names and sizes of the files used (Tiny-ImageNet).

    Raises:
        UserError: a set that has no published versions, unknown names, or files that are missing, damaged,
            foreign or out of order.
    """
    if name not in FOLDERS:
        raise UserError(
            f"no corrupted versions of {name} are published, only of {', '.join(FOLDERS)}: leave "
            "dataset.corrupted_root unset, and they are generated."
        )
    corruptions, severities = check_names(corruptions, severities)
    folder = root / FOLDERS[name]
    if download:
        _fetch(name, root, folder, corruptions)
    if not folder.is_dir():
        raise UserError(
            f"{folder.name} was not found at {folder}: point dataset.corrupted_root= to the folder that "
            f"contains {folder.name}, or set dataset.download=true to fetch it."
        )
    if name == "tiny_imagenet":
        return tiny_imagenet_c.open_tiny_imagenet_c(folder, corruptions, severities, test, classes, cache)
    return cifar_c.open_cifar_c(name, folder, corruptions, severities, test, cache)


def _fetch(name: str, root: Path, folder: Path, corruptions: Sequence[str]) -> None:
    if not folder.is_dir():
        archive = tiny_imagenet_c.ARCHIVE if name == "tiny_imagenet" else cifar_c.ARCHIVES[name]
        fetch_folder(archive, root, folder.name)
    extra = tuple(corruption for corruption in corruptions if corruption in EXTRA)
    if name == "tiny_imagenet" and not all((folder / corruption).exists() for corruption in extra):
        fetch_folder(tiny_imagenet_c.EXTRA_ARCHIVE, root, folder.name, needs=extra)
