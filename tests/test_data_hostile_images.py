"""Image files that are none, or meant to harm: each is one sentence, soon, and nothing is executed."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from image_files import SOON, load, make_tree, refused
from PIL import EpsImagePlugin, Image
from tiny_jobs import TINY, command

from rift.errors import UserError


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "data")


# -- what would be executed -----------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` on the path that leaves a mark when it is started; returns the mark."""
    mark, program = tmp_path / "executed", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho run >> {mark}\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once
    return mark


@pytest.mark.parametrize("name", ["x.png", "x.JPEG", "x.eps", "x.ps"])
def test_postscript_is_not_executed(tmp_path, ghostscript, name):
    path = tmp_path / name
    path.write_bytes(POSTSCRIPT)
    assert "cannot be read as an image (of BMP, GIF, JPEG" in refused(path)
    assert not ghostscript.exists()
    with (
        pytest.raises(OSError),
        Image.open(path) as plain,
    ):  # the fault is real: left to itself Pillow runs it
        plain.load()
    assert ghostscript.exists()


def test_a_set_with_postscript_in_it_is_refused_at_the_command_line(tree, tmp_path, ghostscript, capsys):
    (tree / "train/cat/b.png").write_bytes(POSTSCRIPT)
    arguments = ["dataset=image_folder", f"dataset.root={tree}", f"output={tmp_path}/out", "logger=none"]
    assert command(*TINY, *arguments, "dataset.train_limit=null", "dataset.test_limit=null") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rift: error: ")]
    assert len(errors) == 1 and f"{tree}/train/cat/b.png cannot be read as an image" in errors[0]
    assert not ghostscript.exists()
    assert not list(tmp_path.glob("out/store/*/*/result.json")), "it was trained all the same"


@pytest.mark.parametrize("suffix", [".tga", ".psd", ".jp2"])
def test_a_format_that_is_not_read_is_said_and_not_left_out(tree, suffix):
    path = tree / "train/cat/b.bin"
    Image.new("RGB", (16, 16)).save(path, format={".tga": "TGA", ".psd": "PNG", ".jp2": "PNG"}[suffix])
    if suffix != ".tga":  # Pillow writes no PSD
        path.write_bytes(b"8BPS\0\1" + bytes(40))
    path.rename(path.with_suffix(suffix))
    with pytest.raises(UserError, match=r"b\.\w+ cannot be read as an image \(of BMP"):
        load(tree)


# -- what is no plain file ------------------------------------------------------------------------------


def fifo(path):
    os.mkfifo(path)


def a_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def loop(path):
    path.symlink_to(path.name)


def long_loop(path):
    path.symlink_to("other.png")
    (path.parent / "other.png").symlink_to(path.name)


def dangling(path):
    path.symlink_to("nowhere.png")


def link_to_fifo(path):
    os.mkfifo(path.parent / "pipe")
    path.symlink_to("pipe")


def endless_device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fifo, "is a FIFO and not a plain file"),
        (link_to_fifo, "is a FIFO"),
        (a_socket, "is a socket"),
        (endless_device, "is a device"),
        (folder, "is a folder"),
        (loop, "leads nowhere or in a circle"),
        (long_loop, "leads nowhere or in a circle"),
        (dangling, "leads nowhere or in a circle"),
    ],
)
def test_what_is_no_plain_file_is_named(tree, make, words):
    path = tree / "train/cat/b.png"
    make(path)
    assert words in refused(path)
    began = time.monotonic()
    with pytest.raises(UserError, match=words):
        load(tree)
    assert time.monotonic() - began < SOON


def test_a_link_to_a_plain_file_is_an_image(tree, tmp_path):
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "far.png")
    (tree / "train/cat/b.png").symlink_to(tmp_path / "far.png")
    assert load(tree).train.images[-1, 0, 0, 0] == 9


@pytest.mark.parametrize("make", [loop, dangling])
def test_a_class_folder_that_is_a_broken_link_is_not_left_out(tree, make):
    for part in ("train", "test"):  # in both, so that the classes would agree
        make(tree / part / "dog")
    with pytest.raises(UserError, match="train/dog is a link that leads nowhere"):
        load(tree)


def test_a_class_folder_that_leads_back_up_ends(tree):
    for part in ("train", "test"):
        (tree / part / "dog").symlink_to(".")
    with pytest.raises(UserError, match="train/dog holds no images"):
        load(tree)


# -- what would be obeyed by the terminal ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nrift: done", "a\r", "a\x85", b"\xff\xfe", "a\u2028b"])
def test_a_class_name_that_harms_is_refused_and_escaped(tree, name):
    for part in ("train", "test"):
        (tree / part / (os.fsdecode(name) if isinstance(name, bytes) else name)).mkdir()
    with pytest.raises(UserError, match="control characters or bytes that are not UTF-8") as error:
        load(tree)
    assert str(error.value).isprintable()
    str(error.value).encode()


def test_other_alphabets_and_spaces_are_fine_in_class_names(tree):
    names = ["Kätzchen", "猫", "no\u00a0break", "👩‍🔬", "a b"]
    for part in ("train", "test"):
        for name in names:
            (tree / part / name).mkdir()
            Image.new("RGB", (16, 16)).save(tree / part / name / "a.png")
    assert load(tree).classes == tuple(sorted([*names, "ant", "cat"]))


@pytest.mark.parametrize("name", [b"\x1b]0;owned\x07.png", b"a\nrift: done.png", b"\xff\xfe.png"])
def test_a_file_name_is_escaped(tree, name):
    """Such a file is an image like any other; only what is said of it is escaped."""
    path = tree / "train/cat" / os.fsdecode(name)
    (tree / "train/cat/a.png").rename(path)
    assert len(load(tree).train) == 2
    path.write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        load(tree)
    said = str(error.value)
    assert said.isprintable() and "cannot be read as an image" in said
    said.encode()
