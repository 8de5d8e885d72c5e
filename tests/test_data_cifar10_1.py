"""CIFAR-10.1: read as it is, and refused in one sentence when it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rift.data import read_cifar10_1
from rift.errors import UserError

IMAGES, LABELS = "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy"
# A header that trips numpy's own parser.
HEADER = b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr': '|u1', ((".ljust(63) + b"\n"


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    return images, random.integers(0, 10, 2000).astype(np.int32)


@pytest.mark.parametrize("below", [".", "CIFAR-10.1"])
def test_read_from_either_folder(tmp_path, arrays, below):
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    np.save(folder / IMAGES, arrays[0])
    np.save(folder / LABELS, arrays[1])
    images, labels = read_cifar10_1(tmp_path)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64 and images.is_contiguous()
    assert torch.equal(images, torch.from_numpy(arrays[0]).permute(0, 3, 1, 2))
    assert labels.tolist() == arrays[1].tolist()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: [(root / name).unlink() for name in (IMAGES, LABELS)], "found neither in .* nor in"),
        (lambda root: (root / IMAGES).unlink(), rf"{IMAGES} is missing beside {LABELS}"),
        (lambda root: (root / LABELS).unlink(), rf"{LABELS} is missing beside {IMAGES}"),
        (lambda root: cut(root / IMAGES), rf"{IMAGES} cannot be read \(truncated"),
        (lambda root: (root / LABELS).write_bytes(b""), rf"{LABELS} cannot be read \(empty"),
        (lambda root: (root / IMAGES).write_bytes(b"<html>"), r"\(not a \.npy file\)"),
        (
            lambda root: np.savez((root / "x.npz"), a=1) or (root / "x.npz").replace(root / LABELS),
            "not a .npy",
        ),
        (lambda root: (root / LABELS).write_bytes(b"PK\x03\x04"), "not a .npy"),
        (lambda root: (root / LABELS).write_bytes(HEADER), r"\(truncated or damaged\)"),
        (lambda root: np.save(root / LABELS, np.array([{}] * 2000)), "of pickled objects"),
        (lambda root: np.save(root / IMAGES, np.zeros((2021, 32, 32, 3), np.uint8)), r"holds \(2021, 32"),
        (lambda root: np.save(root / IMAGES, np.zeros((2000, 32, 32, 3), np.float32)), "float32 instead"),
        (lambda root: np.save(root / LABELS, np.zeros(2000)), "float64 instead of"),
        (lambda root: np.save(root / LABELS, np.full(2000, 10)), "labels from 10 to 10 instead of 0 to 9"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, arrays, damage, words):
    np.save(tmp_path / IMAGES, arrays[0])
    np.save(tmp_path / LABELS, arrays[1])
    damage(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        read_cifar10_1(tmp_path)
    assert "\n" not in str(error.value) and "put cifar10.1_v6_data.npy" in str(error.value)
