"""CIFAR: missing, damaged and unreachable files, and the real images where they are at hand."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from rift.data import load_dataset
from rift.errors import UserError

DATA = Path(os.environ.get("RIFT_TEST_DATA", "/nonexistent"))
NORMALISATION = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


@pytest.mark.parametrize(
    ("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
def test_missing_and_damaged_files(name, folder, tmp_path):
    with pytest.raises(UserError) as error:
        load_dataset(name, root=tmp_path, **NORMALISATION)
    for words in (str(tmp_path / folder), "dataset.root=", "dataset.download=true"):
        assert words in str(error.value)

    (tmp_path / folder).mkdir()
    for file in ("data_batch_1", "test_batch", "train", "test", "meta", "batches.meta"):
        (tmp_path / folder / file).write_bytes(b"not a pickle")
    with pytest.raises(UserError, match=r"damaged .*md5"):
        load_dataset(name, root=tmp_path, **NORMALISATION)


def test_failed_download_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nothing listens there
    with pytest.raises(UserError, match="could not be downloaded") as error:
        load_dataset("cifar10", root=tmp_path / "new", download=True, **NORMALISATION)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(
    not (DATA / "cifar-10-batches-py").is_dir(), reason="no CIFAR-10 under the folder in RIFT_TEST_DATA"
)
@pytest.mark.parametrize("download", [False, True])  # what is there is never fetched again
def test_real_cifar10(download, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/none")
    data = load_dataset("cifar10", root=DATA, download=download, holdout_fraction=0.02, **NORMALISATION)
    assert data.identity["counts"] == {"train": 49_000, "holdout": 1000, "test": 10_000}
    assert data.shape == (3, 32, 32) and data.classes[3] == "cat"
    assert data.holdout.labels.bincount().tolist() == [100] * 10
    assert data.test.images.is_contiguous()
    with (DATA / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        official = pickle.load(file, encoding="latin1")
    assert torch.equal(data.test.images, torch.from_numpy(np.array(official["data"])).view(-1, 3, 32, 32))
    assert data.test.labels.tolist() == official["labels"]
