"""Fetching a public data set, with failures said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from rift.errors import UserError


@contextmanager
def fetching(name: str, root: Path) -> Iterator[None]:
    """Around a download into `root`: one process at a time, and no traceback when the network is down.

    Raises:
        UserError: the folder cannot be written, or the download failed.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        # A sweep starts many jobs at once; the others wait here and then find the files.
        with FileLock(root / f".{name}.lock"):
            yield
    except (OSError, HTTPException) as error:  # URLError, timeouts, a full or read-only disk
        raise UserError(
            f"{name} could not be downloaded into {root} ({_one_line(error)}): check the connection and the "
            "folder, or put the files there by hand and leave dataset.download unset."
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
