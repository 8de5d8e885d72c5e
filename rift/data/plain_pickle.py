"""Pickles of a known md5 sum, from which nothing but arrays, text, numbers and their containers comes."""

from __future__ import annotations

import hashlib
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

from rift.data.files import open_regular
from rift.errors import UserError

_MAX_BYTES = 1 << 28  # the largest official file has 155 MB
# What an array is made with, under the module's names of numpy 1 and 2.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class NotOfficialError(Exception):
    """A file is not the official one; the message is part of a sentence."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise NotOfficialError(f"a pickle asks for {module}.{name}")
        return super().find_class(module, name)


def read_pickle(path: Path, md5: str) -> dict[str, Any]:
    """The dictionary in a pickle of Python 2, whose text becomes Latin-1.

    The very bytes whose md5 sum was taken are unpickled: nobody can exchange the file in between.

    Raises:
        NotOfficialError: no plain file is there, or one of another md5 sum, of which nothing was unpickled;
            or it asks for more than arrays.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES)
    except (UserError, OSError) as error:
        raise NotOfficialError(f"{path.name} is missing, unreadable or no plain file") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise NotOfficialError(f"the md5 sum of {path.name} is not the official one")
    return _PlainUnpickler(BytesIO(content), encoding="latin1").load()
