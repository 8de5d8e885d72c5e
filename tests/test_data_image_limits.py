"""Images that are too large, or have more than 8 bits: refused by the header, never cut."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest
from image_files import load, make_tree, png, refused
from PIL import Image, ImageFile

from rift.data.decode import MAX_BYTES, MAX_PIXELS, decode_image
from rift.errors import UserError


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "data")


# -- what would fill the memory -------------------------------------------------------------------------


@pytest.fixture
def no_decoding(monkeypatch):
    def fail(self):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)


def test_a_real_bomb_is_refused_by_its_header(tmp_path, no_decoding):
    path = tmp_path / "bomb.png"
    Image.new("1", (13_000, 13_000)).save(path)
    assert path.stat().st_size < 100_000
    assert "bomb.png is 13000×13000, more than the 67 million pixels" in refused(path)
    assert "13000×13000" in refused(path, 32)


@pytest.mark.parametrize("side", [8193, 20_000, 2**31 - 1])
def test_a_header_that_claims_too_much_is_refused(tmp_path, no_decoding, side):
    png(tmp_path / "x.png", side, side)
    assert "more than the 67 million pixels" in refused(tmp_path / "x.png")


def test_the_largest_size_that_is_read(tmp_path):
    side = int(MAX_PIXELS**0.5)
    Image.new("1", (side, side)).save(tmp_path / "x.png")
    assert decode_image(tmp_path / "x.png", 8).shape == (8, 8, 3)


def test_a_needle_is_not_blown_up(tmp_path, no_decoding):
    Image.new("1", (1_000_000, 1)).save(tmp_path / "x.png")
    said = refused(tmp_path / "x.png", 32)
    assert "1000000×1, would have more than" in said and "smaller dataset.image_size" in said


def test_a_huge_file_is_not_read(tmp_path):
    """A chunk of text as long as the format allows, in a file that takes no space on the disk."""
    png(tmp_path / "x.png", 16, 16)
    head = (tmp_path / "x.png").read_bytes()[:33]
    (tmp_path / "x.png").write_bytes(head + struct.pack(">I", 2**31 - 1) + b"tEXt")
    os.truncate(tmp_path / "x.png", MAX_BYTES + 1)
    assert "MB, more than the" in refused(tmp_path / "x.png")


def test_a_set_that_no_memory_holds_is_refused(tree, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 100 if name == "SC_PHYS_PAGES" else 10)
    with pytest.raises(UserError, match=r"2 images of 16×16 pixels take .*set a smaller dataset.image_size"):
        load(tree)


# -- what would be cut to 8 bits ------------------------------------------------------------------------


def deep_png(path, colour, channels):
    row = b"\0" + np.full((16, channels), 0x1234, ">u2").tobytes()
    png(path, 16, 16, bits=16, colour=colour, pixels=row * 16)


def deep_ppm(path):
    path.write_bytes(b"P6 16 16 65535\n" + np.full((16, 16, 3), 0x1234, ">u2").tobytes())


def deep_tiff(path):
    """16-bit RGB in one strip, which Pillow reads and does not write."""
    pixels = np.full((16, 16, 3), 0x1234, "<u2").tobytes()
    tags = [
        (256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 16), (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    content = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)
    path.write_bytes(content + struct.pack("<3H", 16, 16, 16) + pixels)
    assert len(content) == 134


@pytest.mark.parametrize(
    "make",
    [
        lambda path: deep_png(path, 0, 1),
        lambda path: deep_png(path, 2, 3),
        lambda path: deep_png(path, 4, 2),
        lambda path: deep_png(path, 6, 4),
        deep_ppm,
        deep_tiff,
        lambda path: Image.new("F", (16, 16)).save(path, format="TIFF"),
    ],
    ids=["grey", "RGB", "grey with alpha", "RGBA", "PPM", "TIFF", "float"],
)
def test_more_than_8_bits_are_refused_and_never_cut(tmp_path, make):
    path = tmp_path / "x.png"
    make(path)
    with Image.open(path) as plain:
        plain.load()  # the fault is real: Pillow reads it
    assert "more than 8 bits per channel" in refused(path) and "convert it to 8 bits" in refused(path)


@pytest.mark.parametrize("kind", ["bmp", "gif", "jpeg", "png", "ppm", "tiff", "webp"])
def test_8_bits_are_read_as_pillow_reads_them(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = tmp_path / "x.dat"
    Image.fromarray(pixels).save(path, format=kind)
    with Image.open(path) as plain:
        assert np.array_equal(decode_image(path, None), np.asarray(plain.convert("RGB")))
