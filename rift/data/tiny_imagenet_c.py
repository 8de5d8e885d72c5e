"""Tiny-ImageNet-C: JPEG files by corruption, severity and class, decoded once for each version.

Hendrycks and Dietterich 2019. The images were not made from `tiny-imagenet-200/val`: the file names are the
same, but the crops are others, so accuracies on it do not pair with clean ones image by image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rift.corruption_names import EXTRA
from rift.data.cache import decode_cached
from rift.data.decode import decode_image
from rift.data.files import regular_stat
from rift.data.splits import Split
from rift.data.versions import check_version
from rift.data.zenodo import Archive
from rift.errors import UserError

log = logging.getLogger(__name__)

FOLDER = "Tiny-ImageNet-C"
ARCHIVE = Archive(
    "https://zenodo.org/records/2536630/files/Tiny-ImageNet-C.tar?download=1",
    "f9c9a9dbdc11469f0b850190f7ad8be1",
)
# The four corruptions of `EXTRA`, in a later version of the same record.
EXTRA_ARCHIVE = Archive(
    "https://zenodo.org/records/8206060/files/Tiny-ImageNet-C-extra.tar?download=1",
    "0db0588d243cf403ef93449ec52b70eb",
)
IMAGES_PER_CLASS = 50  # as published

Version = tuple[str, int]  # corruption, severity


class _File(NamedTuple):
    name: str
    size: int  # bytes


class TinyImageNetC:
    """A `CorruptedSet` out of decoded files, ordered by class and then by name.

    Args:
        folder: holds `<corruption>/<severity>/<wnid>/<file>`.
        files: for each version, paths below its folder in the order of the images; equal for all versions.
        labels: (N,) int64.
        shape: (C, H, W) that every image must have.
        digest: SHA-256 of the names and sizes of all files.
        cache: folder for decoded images.
    """

    kind = "published"
    paired = False

    def __init__(
        self,
        folder: Path,
        versions: Sequence[Version],
        files: Sequence[str],
        labels: Tensor,
        shape: tuple[int, ...],
        digest: str,
        cache: Path,
    ) -> None:
        self.labels = labels
        self.identity: dict[str, Any] = {
            "kind": self.kind,
            "set": FOLDER,
            "images": len(labels),
            "names_and_sizes_sha256": digest,
        }
        self._folder, self._versions, self._files = folder, set(versions), files
        self._shape, self._cache = shape, cache

    def batches(
        self, corruption: str, severity: int, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        """One version from its first image to its last: uint8 (B, 3, 64, 64) on the device.

        The version is decoded here if no cache file holds it, and is in memory whole while it is read.

        Raises:
            UserError: a version that the set was not opened for, a batch size below 1, or a damaged image.
        """
        check_version(corruption, severity, batch_size, self._versions)
        images = self._decode(corruption, severity)
        return (images[start : start + batch_size].to(device) for start in range(0, len(images), batch_size))

    def _decode(self, corruption: str, severity: int) -> Tensor:
        root = self._folder / corruption / str(severity)
        parts = {"images": [root / file for file in self._files]}
        name = f"tiny_imagenet_c-{corruption}-{severity}"
        images = decode_cached(name, self._folder, parts, size=None, cache=self._cache)["images"]
        _check_shape(images.shape[1:], self._shape, root)
        return images


def open_tiny_imagenet_c(
    folder: Path,
    corruptions: Sequence[str],
    severities: Sequence[int],
    test: Split,
    classes: Sequence[str],
    cache: Path,
) -> TinyImageNetC:
    """The published set in a folder, after every needed version was found to hold the same files.

    Args:
        folder: holds `<corruption>/<severity>/<wnid>/*.JPEG`.
        corruptions, severities: what will be asked for; other folders are not looked at.
        test: the clean test split, which gives the number of images (if it has fewer, the first of each
            class) and their size.
        classes: wnids in the order of the labels; only their folders are used.
        cache: folder for decoded images, one file for each version.

    Raises:
        UserError: folders or images missing, all versions concerned being named.
    """
    versions = [(corruption, severity) for corruption in corruptions for severity in severities]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # listing a million files waits for the disk
        listings = dict(
            zip(versions, pool.map(lambda version: _list(folder, version, classes), versions), strict=True)
        )
    _check_alike(folder, listings, classes)
    available = [len(listings[versions[0]][wnid]) for wnid in classes]
    if available[0] != IMAGES_PER_CLASS:
        log.warning("%s holds %d images of each class instead of %d", folder, available[0], IMAGES_PER_CLASS)
    counts = _counts(len(test), available)
    kept = {
        version: {wnid: listing[wnid][:count] for wnid, count in zip(classes, counts, strict=True)}
        for version, listing in listings.items()
    }
    files = [f"{wnid}/{file.name}" for wnid, members in kept[versions[0]].items() for file in members]
    shape = tuple(test.images.shape[1:])
    for corruption, severity in versions:
        first = folder / corruption / str(severity) / files[0]
        height, width, channels = decode_image(first, None).shape
        _check_shape((channels, height, width), shape, first)
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))
    return TinyImageNetC(folder, versions, files, labels, shape, _digest(kept), cache)


def _list(folder: Path, version: Version, classes: Sequence[str]) -> dict[str, list[_File]]:
    """The images of each class in the order of their names; a class without a folder is left out."""
    listing = {}
    for wnid in classes:
        try:
            with os.scandir(folder / version[0] / str(version[1]) / wnid) as entries:
                listing[wnid] = sorted(
                    _File(entry.name, _size(entry))
                    for entry in entries
                    if entry.name.lower().endswith((".jpeg", ".jpg")) and not entry.name.startswith(".")
                )
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(
                f"{folder} cannot be read ({error}): check the disk and its permissions."
            ) from error
    return listing


def _size(entry: os.DirEntry[str]) -> int:
    """Bytes of an image; a million are listed, so only what is no plain file is looked at more than once."""
    plain = entry.is_file(follow_symlinks=False)
    return (entry.stat() if plain else regular_stat(Path(entry.path))).st_size


def _check_alike(
    folder: Path, listings: dict[Version, dict[str, list[_File]]], classes: Sequence[str]
) -> None:
    """Names every version that lacks class folders, or has other images (by number or name) than the rest."""
    sizes = Counter(len(files) for listing in listings.values() for files in listing.values() if files)
    usual = max(sizes, key=lambda size: (sizes[size], size), default=IMAGES_PER_CLASS)
    names: dict[str, list[str]] = {}
    problems = []
    for (corruption, severity), listing in listings.items():
        version = f"{corruption}/{severity}"
        absent = [wnid for wnid in classes if wnid not in listing]
        if not (folder / version).is_dir():
            problems.append(f"{version} (missing)")
        elif absent:
            problems.append(f"{version} (no folder {_some(absent)})")
        elif odd := [wnid for wnid in classes if len(listing[wnid]) != usual]:
            found = _some([f"{len(listing[wnid])} of {wnid}" for wnid in odd])
            problems.append(f"{version} ({found} instead of {usual} images)")
        else:
            for wnid, files in listing.items():
                called = [file.name for file in files]
                if names.setdefault(wnid, called) != called:
                    problems.append(f"{version} (other file names in {wnid})")
                    break
    if problems:
        archives = [EXTRA_ARCHIVE if problem.split("/")[0] in EXTRA else ARCHIVE for problem in problems]
        urls = " and ".join(sorted({archive.url for archive in archives}))
        raise UserError(
            f"{len(problems)} of the {len(listings)} versions needed in {folder} are not whole: "
            f"{'; '.join(problems)}; unpack {urls} there again."
        )


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more


def _counts(limit: int, available: Sequence[int]) -> list[int]:
    """Images to use of each class, `limit` together and as even as can be; odd ones go to the first classes.

    The same rule as for a limited test set.
    """
    if limit >= sum(available):
        return list(available)
    each, odd = divmod(limit, len(available))
    return [each + (label < odd) for label in range(len(available))]


def _digest(kept: dict[Version, dict[str, list[_File]]]) -> str:
    digest = hashlib.sha256()
    for version, listing in sorted(kept.items()):
        digest.update(json.dumps([version, list(listing.items())]).encode())
    return digest.hexdigest()


def _check_shape(found: Sequence[int], expected: Sequence[int], where: Path) -> None:
    if tuple(found) != tuple(expected):
        raise UserError(
            f"{where} holds images of {tuple(found)} but the test set's are {tuple(expected)}: use the set "
            "that belongs to it."
        )
