"""For the tests of images from elsewhere: a small folder of classes, a file of any header, a refusal."""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from rift.data import load_dataset
from rift.data.decode import decode_image
from rift.errors import UserError, shown

SOON = 10.0  # seconds, on a busy machine; each refusal takes a few milliseconds


def make_tree(root: Path) -> Path:
    """Two classes with one image each, for training and test; returns `root`."""
    for part in ("train", "test"):
        for name in ("ant", "cat"):
            folder = root / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (16, 16), (1, 2, 3)).save(folder / "a.png")
    return root


def load(root, **options):
    return load_dataset("image_folder", root=root, mean=(0.5,) * 3, std=(0.25,) * 3, **options)


def refused(path: Path, size: int | None = None) -> str:
    """What is said of one file; one printable line, and at once."""
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        decode_image(path, size)
    assert time.monotonic() - began < SOON
    said = str(error.value)
    assert shown(str(path)) in said and said.isprintable() and said.endswith(".")
    return said


def png(path, width, height, bits=8, colour=2, pixels=b""):
    """A PNG of any header, whatever its pixels are."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
