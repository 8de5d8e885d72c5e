"""The cache of decoded images, damaged, foreign, cut off, or without a place: the images stay the same."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rift.data import cache as decoded
from rift.data import load_dataset
from rift.data.md5 import remembered_md5


def make_tree(root, seed):
    generator = np.random.default_rng(seed)
    for part in ("train", "test"):
        for name in ("ant", "cat"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                path = folder / f"{number}.bmp"
                Image.fromarray(pixels).save(path)
                os.utime(path, (1e9, 1e9))  # so that two sets differ in nothing but their pixels
    return root


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "data", 0)


def load(root, **options):
    return load_dataset("image_folder", root=root, mean=(0.5,) * 3, std=(0.25,) * 3, **options)


def the_cache(root):
    (path,) = root.glob(".rift-cache/*.safetensors")
    return path


def said(caplog):
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    assert all(line.isprintable() for line in lines)
    return lines


@pytest.fixture
def once(tree):
    """(folder, its identity) of a set whose images are decoded and kept."""
    return tree, load(tree).identity


def test_a_whole_cache_is_used_and_nothing_is_said(once, monkeypatch, caplog):
    tree, identity = once
    monkeypatch.setattr(decoded, "decode_all", None)
    assert load(tree).identity == identity
    assert not said(caplog)


def test_no_flipped_bit_is_used(once, caplog):
    """One bit in every stretch of the file: header, digests and pixels."""
    tree, identity = once
    path = the_cache(tree)
    whole = path.read_bytes()
    choice = random.Random(0)
    positions = [*range(0, 400, 8), *range(400, len(whole), 29)]
    noticed = 0
    for position in positions:
        spoilt = bytearray(whole)
        spoilt[position] ^= 1 << choice.randrange(8)
        path.write_bytes(spoilt)
        assert load(tree).identity == identity, f"the bit at {position} was used"
        lines = said(caplog)
        noticed += bool(lines)
        assert len(lines) <= 1 and all("made again" in line for line in lines)
        if lines:
            assert path.read_bytes() != spoilt
    # What is not noticed is in the header's padding or in the order of its entries, and changes no image.
    assert noticed >= len(positions) - 2


@pytest.mark.parametrize("length", [0, 7, 8, 200, 1000, -1])
def test_a_cut_off_cache_is_made_again(once, caplog, length):
    tree, identity = once
    path = the_cache(tree)
    path.write_bytes(path.read_bytes()[:length])
    assert load(tree).identity == identity
    (line,) = said(caplog)
    assert str(path) in line and "damaged" in line and "made again" in line
    assert load(tree).identity == identity and not said(caplog)


def test_the_cache_of_another_set_is_not_used(once, tmp_path, caplog):
    """Of the same shape and number of images, whole by itself, and under the right name."""
    tree, identity = once
    other = make_tree(tmp_path / "other", 1)
    (other / "train/ant/0.bmp").rename(other / "train/ant/9.bmp")
    assert load(other).identity["sha256"] != identity["sha256"]
    shutil.copy(the_cache(other), the_cache(tree))
    caplog.clear()
    assert load(tree).identity == identity
    (line,) = said(caplog)
    assert "were made from other files and are made again" in line


def test_the_images_of_another_part_are_not_used(once, caplog):
    """Training images where the test images were, under the digests of before."""
    tree, identity = once
    path = the_cache(tree)
    with decoded.safe_open(path, framework="pt") as file:
        header = file.metadata()
    kept = load_file(path)
    save_file({"train": kept["test"], "test": kept["train"]}, path, metadata=header)
    assert load(tree).identity == identity
    assert "another SHA-256 than noted" in said(caplog)[0]


@pytest.mark.parametrize(
    "tensors", [{}, {"train": torch.zeros(1)}, {"x": torch.zeros(2, dtype=torch.bfloat16)}]
)
@pytest.mark.parametrize("forged", [False, True])
def test_a_cache_of_something_else_is_made_again(once, caplog, tensors, forged):
    tree, identity = once
    path = the_cache(tree)
    with decoded.safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file(tensors, path, metadata=header if forged else None)
    assert load(tree).identity == identity
    assert len(said(caplog)) == 1


def test_a_changed_image_is_noticed_by_its_time(once, caplog):
    tree, identity = once
    Image.new("RGB", (8, 8)).save(tree / "train/ant/0.bmp")  # of the same size in bytes
    assert load(tree).identity["sha256"] != identity["sha256"]


# -- no place for it ------------------------------------------------------------------------------------


def a_fifo(place):
    os.mkfifo(place)


def a_file(place):
    place.write_text("")


def a_loop(place):
    place.symlink_to(place.name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [a_fifo, a_file, a_loop, None])
def test_without_a_place_the_images_are_decoded_all_the_same(tree, tmp_path, caplog, make):
    place = tmp_path / "place" if make else "/proc/rift"
    if make:
        make(place)
    identity = load(tree).identity
    caplog.clear()
    assert load(tree, cache=place).identity == identity
    (line,) = said(caplog)
    assert f"cannot be kept in {place}" in line and "decodes them again" in line


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [a_fifo, a_loop, os.mkdir])
def test_something_else_under_its_name_is_no_cache(once, caplog, make):
    tree, identity = once
    path = the_cache(tree)
    path.unlink()
    make(path)
    assert load(tree).identity == identity
    assert load(tree).identity == identity
    assert all("cannot be kept" in line for line in said(caplog))


def test_a_disk_that_fills_up_costs_the_cache_alone(tree, caplog):
    identity = load(tree).identity
    whole = the_cache(tree).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 1, whole // 2, whole - 1):
        shutil.rmtree(tree / ".rift-cache")
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # real writes fail from there on
        try:
            found = load(tree).identity
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert found == identity
        (line,) = said(caplog)
        assert "cannot be kept" in line
        assert not list(tree.glob(".rift-cache/*safetensors*")), "half a cache was left"
        assert not list(tree.glob(".rift-cache/.*partial")), "half a cache was left"


@pytest.mark.skipif(os.geteuid() != 0, reason="waits for root, who may mount a small file system")
def test_a_read_only_place_is_read_and_not_written(tree, tmp_path, caplog):
    place = tmp_path / "place"
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("waits for a machine where a small file system can be mounted")
    try:
        identity = load(tree, cache=place).identity
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert load(tree, cache=place).identity == identity and not said(caplog)  # used as it is
        assert load(tree, cache=place, image_size=4).shape == (3, 4, 4)
        (line,) = said(caplog)
        assert "cannot be kept" in line and "read-only" in line.lower()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# -- killed as it is written ----------------------------------------------------------------------------


def test_killed_while_it_is_written_it_is_whole(tmp_path):
    """A process writes two caches in turn and is killed anywhere: what is found is one of the two, whole."""
    path = tmp_path / "set.safetensors"
    contents = [torch.full((40, 3, 64, 64), value, dtype=torch.uint8) for value in (1, 2)]
    parts = {"images": [path] * 40}
    choice = random.Random(0)
    for _ in range(30):
        begun, says_so = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                for number, images in enumerate(contents):
                    decoded._save({"images": images}, path, f"source {number}")
                    os.write(says_so, b".")
        os.close(says_so)
        assert os.read(begun, 1)  # however slow the machine is, it is killed while it works
        time.sleep(choice.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun)
        either = [decoded._load(path, f"source {number}", parts) for number in (0, 1)]
        assert sum(kept is not None for kept in either) == 1
        for kept, images in zip(either, contents, strict=True):
            assert kept is None or torch.equal(kept["images"], images)


# -- the notebook of md5 sums ---------------------------------------------------------------------------


def test_no_flipped_bit_in_the_notebook_is_used(tmp_path, caplog):
    """A sum that is noted wrong would refuse the published file, or pass another one."""
    paths = [tmp_path / f"{number}.npy" for number in range(2)]
    for path in paths:
        path.write_bytes(path.name.encode())
    notebook = tmp_path / "cache" / "published-md5.json"
    true = remembered_md5(paths, notebook)
    whole = notebook.read_bytes()
    for position in range(0, len(whole), 3):
        spoilt = bytearray(whole)
        spoilt[position] ^= 1 << position % 7
        notebook.write_bytes(spoilt)
        assert remembered_md5(paths, notebook) == true, f"the bit at {position} was used"
        assert all("cannot be read" in line for line in said(caplog))
    text = json.loads(whole)
    text["sums"] = {name: [*entry[:2], "0" * 32] for name, entry in text["sums"].items()}
    notebook.write_text(json.dumps(text))
    assert remembered_md5(paths, notebook) == true
