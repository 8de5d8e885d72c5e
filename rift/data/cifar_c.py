"""CIFAR-10-C and CIFAR-100-C: one array for each corruption, mapped from disk and read batch by batch.

Hendrycks and Dietterich 2019. Rows (s-1)·10 000 to s·10 000 - 1 of a file are severity s of the official
test set in its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rift.corruption_names import SEVERITIES
from rift.data.arrays import open_array
from rift.data.cifar_c_sums import MD5
from rift.data.md5 import remembered_md5
from rift.data.splits import Split
from rift.data.versions import check_version
from rift.data.zenodo import Archive
from rift.errors import UserError

FOLDERS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
ARCHIVES = {
    "cifar10": Archive(
        "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar?download=1",
        "56bf5dcef84df0e2308c6dcbcbbd8499",
        2_918_471_680,
    ),
    "cifar100": Archive(
        "https://zenodo.org/records/3555552/files/CIFAR-100-C.tar?download=1",
        "11f0ed0f1191edbf9fa23466ae6021d3",
        2_918_473_216,
    ),
}
IMAGES = 10_000  # of each severity
_SIDE = 32


class CifarC:
    """A `CorruptedSet` out of mapped arrays; image n is image n of the clean test split.

    Args:
        name: of the set, for messages and the identity.
        arrays: for each corruption, (5 · IMAGES, 32, 32, 3) uint8.
        labels: (N,) int64 on the CPU.
        indices: (N,) official positions of the images.
        severities: those that may be asked for.
        md5: sum of each file by its name.
    """

    kind = "published"
    paired = True

    def __init__(
        self,
        name: str,
        arrays: dict[str, np.ndarray],
        labels: Tensor,
        indices: np.ndarray,
        severities: Sequence[int],
        md5: dict[str, str],
    ) -> None:
        self.labels = labels
        self.identity: dict[str, Any] = {"kind": self.kind, "set": name, "md5": md5}
        self._arrays, self._indices = arrays, indices
        self._versions = {(corruption, severity) for corruption in arrays for severity in severities}

    def batches(
        self, corruption: str, severity: int, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        """One version from its first image to its last: uint8 (B, 3, 32, 32) on the device.

        Raises:
            UserError: a version that the set was not opened for, or a batch size below 1.
        """
        check_version(corruption, severity, batch_size, self._versions)
        rows = (severity - 1) * IMAGES + self._indices
        return self._generate(self._arrays[corruption], rows, batch_size, device)

    @staticmethod
    def _generate(
        array: np.ndarray, rows: np.ndarray, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        for start in range(0, len(rows), batch_size):
            pixels = torch.from_numpy(np.asarray(array[rows[start : start + batch_size]]))
            yield pixels.to(device).permute(0, 3, 1, 2).contiguous()


def open_cifar_c(
    name: str, folder: Path, corruptions: Sequence[str], severities: Sequence[int], test: Split, cache: Path
) -> CifarC:
    """The published set in a folder, after every needed file was found to be the published one.

    Args:
        name: cifar10 or cifar100.
        folder: holds `<corruption>.npy` and `labels.npy`.
        corruptions, severities: what will be asked for; other files are not looked at.
        test: the clean test split or a part of it, of which every version holds the same images.
        cache: folder in which MD5 sums are remembered.

    Raises:
        UserError: files missing, damaged or of another set, all of them named; or labels unlike `test`'s.
    """
    wanted = [*corruptions, "labels"]
    arrays, sums, problems = _look_at(FOLDERS[name], folder, wanted, cache)
    if problems:
        raise UserError(
            f"{len(problems)} of the {len(wanted)} files needed in {folder} cannot be used: "
            f"{'; '.join(problems)}; put the published files there, from {ARCHIVES[name].url}, or "
            "remove the folder and set dataset.download=true."
        )
    indices = test.indices.cpu().numpy()
    labels = test.labels.cpu()
    _check_labels(arrays.pop("labels"), folder, indices, labels)
    return CifarC(FOLDERS[name], arrays, labels, indices, severities, sums)


def _look_at(
    name: str, folder: Path, wanted: Sequence[str], cache: Path
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """(arrays by stem, md5 sums by file name, what is wrong), in the order of `wanted`."""
    problems: dict[str, str] = {}
    arrays: dict[str, np.ndarray] = {}
    for stem in wanted:
        path = folder / f"{stem}.npy"
        if not path.is_file():
            problems[stem] = "missing"
            continue
        try:
            arrays[stem] = open_array(path)
        except ValueError as error:
            problems[stem] = str(error)
            continue
        problem = _shape_problem(stem, arrays[stem])
        if problem:
            problems[stem] = problem
    sound = [stem for stem in wanted if stem not in problems]
    try:
        sums = remembered_md5([folder / f"{stem}.npy" for stem in sound], cache / "published-md5.json")
    except OSError as error:
        raise UserError(
            f"the files in {folder} cannot be read ({error}): check the disk they lie on."
        ) from error
    by_file = {path.name: md5 for path, md5 in sums.items()}
    for stem in sound:
        if by_file[f"{stem}.npy"] != MD5[name][stem]:
            problems[stem] = _origin(by_file[f"{stem}.npy"])
    return arrays, by_file, [f"{stem}.npy ({problems[stem]})" for stem in wanted if stem in problems]


def _shape_problem(stem: str, array: np.ndarray) -> str | None:
    rows = IMAGES * len(SEVERITIES)
    if stem == "labels":
        fits, expected = array.shape == (rows,) and array.dtype.kind in "iu", f"({rows},) integers"
    else:
        shape = (rows, _SIDE, _SIDE, 3)
        fits, expected = array.shape == shape and array.dtype == np.uint8, f"{shape} uint8"
    return None if fits else f"holds {array.shape} {array.dtype} instead of {expected}"


def _origin(md5: str) -> str:
    """What to say of a file that is not the published one under its name."""
    for name, sums in MD5.items():
        for stem, known in sums.items():
            if known == md5:
                return f"is {stem}.npy of {name}"
    return "not the published file, by its md5 sum"


def _check_labels(labels: np.ndarray, folder: Path, indices: np.ndarray, expected: Tensor) -> None:
    if len(indices) and not 0 <= indices.min() <= indices.max() < IMAGES:
        raise UserError(
            f"the test set has an image {indices.max()}, but {folder} holds {IMAGES} of each severity: use "
            "the official test set."
        )
    for severity in SEVERITIES:
        found = np.asarray(labels[(severity - 1) * IMAGES + indices], dtype=np.int64)
        differing = (found != expected.numpy()).nonzero()[0]
        if len(differing):
            raise UserError(
                f"{folder / 'labels.npy'} is of another order than the test set: at severity {severity}, "
                f"image {indices[differing[0]]} is labelled {found[differing[0]]} instead of "
                f"{int(expected[differing[0]])} ({len(differing)} differ); use the published set with the "
                "official test set."
            )
