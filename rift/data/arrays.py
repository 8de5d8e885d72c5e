"""Arrays from .npy files of unknown origin: memory-mapped, never unpickled."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

# What numpy raises for files that are empty, cut short, of another kind, or made to confuse it.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RecursionError,
    TokenError,
    BadZipFile,
)


def open_array(path: Path) -> np.memmap:
    """The array in a .npy file, of which only what is looked at is read.

    Raises:
        ValueError: empty, truncated, pickled, or not a .npy file; the message is part of a sentence.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise ValueError(_reason(path, error)) from error
    if not isinstance(array, np.memmap):  # an .npz under the name of a .npy
        array.close()
        raise ValueError("not a .npy file")
    return array


def _reason(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as failure:
        return failure.strerror or type(failure).__name__
    if not magic:
        return "empty"
    if magic == b"\x93NUMPY" and "Python objects" in str(error):
        return "of pickled objects"
    return "truncated or damaged" if magic == b"\x93NUMPY" else "not a .npy file"
