"""Tiny-ImageNet: a flat `val` is labelled right, what does not fit is refused, decoding happens once."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from rift.data import cache, load_dataset, tiny_imagenet
from rift.errors import UserError

DATA = Path(os.environ.get("RIFT_TEST_DATA", "/nonexistent"))
WNIDS = ("n01", "n02", "n05")
SHADES = (20, 120, 220)  # the grey level of all images of a class


def load(root, **options):
    return load_dataset("tiny_imagenet", root=root, mean=(0.5,) * 3, std=(0.25,) * 3, **options)


def save(path, label):
    """A plain image whose shade is its class; half of them are greyscale files, as in the real set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "L" if len(path.stem) % 2 else "RGB"
    shade = SHADES[label] if mode == "L" else (SHADES[label],) * 3
    Image.new(mode, (64, 64), shade).save(path, format="JPEG", quality=95)


@pytest.fixture
def tree(tmp_path):
    """A small set whose file names say nothing about the classes."""
    folder = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for number in range(4):
            save(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", label)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for number, label in enumerate([2, 0, 1, 1, 2, 0, 0, 2, 1, 0, 1, 2]):
        save(folder / "val" / "images" / f"val_{number}.JPEG", label)
        lines.append(f"val_{number}.JPEG\t{WNIDS[label]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def assert_pixels_tell_the_class(split):
    shades = torch.tensor(SHADES)[split.labels]
    assert ((split.images.flatten(1).int() - shades[:, None]).abs() <= 1).all()


def test_labels_agree_with_the_pixels(tree):
    data = load(tree)
    assert data.classes == WNIDS and data.shape == (3, 64, 64)
    assert (len(data.train), len(data.test)) == (12, 12)
    assert data.test.labels.tolist() == [2, 0, 1, 1, 2, 0, 0, 2, 1, 0, 1, 2]
    assert_pixels_tell_the_class(data.train)
    assert_pixels_tell_the_class(data.test)


def edit_annotations(tree, change):
    path = tree / "tiny-imagenet-200/val/val_annotations.txt"
    path.write_text(change(path.read_text()))


def rearrange(tree):
    """What a widespread script does to `val`: one folder for each class, no annotations."""
    val = tree / "tiny-imagenet-200/val"
    (val / "val_annotations.txt").unlink()
    (val / "images").rename(val / "n01")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda tree: edit_annotations(tree, lambda text: text.replace("n05", "n09")),
            "n09, which has no folder",
        ),
        (lambda tree: shutil.rmtree(tree / "tiny-imagenet-200/train/n05"), "n05, which has no folder"),
        (
            lambda tree: edit_annotations(tree, lambda text: text[text.index("\n") + 1 :]),
            "val_0.JPEG has no line",
        ),
        (
            lambda tree: (tree / "tiny-imagenet-200/val/images/val_3.JPEG").unlink(),
            "labels val_3.JPEG, which is not",
        ),
        (lambda tree: edit_annotations(tree, lambda text: text + text), "line 13 .* second time"),
        (lambda tree: edit_annotations(tree, lambda text: text.replace("\t", " ")), "line 1 of .* TAB"),
        (rearrange, "original layout"),
        (lambda tree: shutil.rmtree(tree / "tiny-imagenet-200/train/n02/images"), "n02.* holds no .JPEG"),
        (lambda tree: shutil.rmtree(tree / "tiny-imagenet-200/train"), "no class folders"),
        (lambda tree: shutil.rmtree(tree / "tiny-imagenet-200"), "dataset.root=.* dataset.download=true"),
        (
            lambda tree: (tree / "tiny-imagenet-200/val/images/val_3.JPEG").write_bytes(
                b"\xff\xd8 cut short"
            ),
            "val_3.JPEG cannot be read",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tree, damage, words):
    damage(tree)
    with pytest.raises(UserError, match=words) as error:
        load(tree)
    assert "\n" not in str(error.value)


def forbid_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "decode_all", fail)


@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_decoded_once(tree, tmp_path, monkeypatch, place):
    folder = tree / ".rift-cache" if place is None else tmp_path / place
    options = {} if place is None else {"cache": folder}
    first = load(tree, **options)
    (kept,) = folder.glob("*.safetensors")
    assert not list(folder.glob(".*.partial"))
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        second = load(tree, **options)
    assert second.identity == first.identity
    assert torch.equal(second.train.images, first.train.images)

    kept.write_bytes(kept.read_bytes()[:1000])  # a damaged cache is made again
    assert load(tree, **options).identity == first.identity

    save(tree / "tiny-imagenet-200/train/n01/images/n01_1.JPEG", 2)  # a changed image is noticed
    assert load(tree, **options).identity["sha256"] != first.identity["sha256"]


def test_cache_that_cannot_be_written_is_a_warning(tree, caplog):
    blocker = tree / "file"
    blocker.write_text("")
    with caplog.at_level(logging.WARNING):
        data = load(tree, cache=blocker / "cache")
    assert_pixels_tell_the_class(data.test)
    assert [record.message for record in caplog.records if "cannot be kept" in record.message]


@pytest.fixture
def served(tmp_path):
    """A folder, and the address at which this process serves it."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_download_checks_and_unpacks(tree, tmp_path, served, monkeypatch):
    folder, address = served
    archive = shutil.make_archive(str(folder / "tiny-imagenet-200"), "zip", tree, "tiny-imagenet-200")
    monkeypatch.setattr(tiny_imagenet, "URL", f"{address}/tiny-imagenet-200.zip")
    new = tmp_path / "new"
    with pytest.raises(UserError, match="md5"):
        load(new, download=True)
    assert not (new / "tiny-imagenet-200").exists()
    digest = hashlib.md5(Path(archive).read_bytes()).hexdigest()
    monkeypatch.setattr(tiny_imagenet, "MD5", digest)
    data = load(new, download=True)
    assert data.identity == load(tree).identity
    assert not list(new.glob("*.zip")) and not list(new.glob("*unpacking"))
    monkeypatch.setattr(tiny_imagenet, "URL", "http://127.0.0.1:9/none")
    assert load(new, download=True).identity == data.identity
    with pytest.raises(UserError, match="could not be downloaded"):
        load(tmp_path / "third", download=True)


@pytest.mark.skipif(
    not (DATA / "tiny-imagenet-200").is_dir(), reason="no Tiny-ImageNet under the folder in RIFT_TEST_DATA"
)
def test_real_files(tmp_path):
    data = load(DATA, cache=tmp_path)
    folder = DATA / "tiny-imagenet-200"
    with (folder / "val/val_annotations.txt").open(newline="") as file:
        truth = [(row[0], row[1]) for row in csv.reader(file, delimiter="\t")]
    assert [data.classes[label] for label in data.test.labels] == [wnid for _, wnid in truth]
    assert data.classes == tuple(sorted(path.name for path in (folder / "train").iterdir()))
    assert data.train.labels.bincount().tolist() == [500] * data.num_classes
    assert data.test.labels.bincount().tolist() == [50] * data.num_classes
    for position in range(0, len(truth), 37):
        with Image.open(folder / "val/images" / truth[position][0]) as image:
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(data.test.images[position].numpy(), pixels)
