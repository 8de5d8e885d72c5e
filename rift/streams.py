"""Standard input, output and error as they may be found: closed, not UTF-8, a pipe without a reader.

What is printed there is for people; a run's results are in its files, and none is lost for what a terminal
cannot take.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Deaf(io.FileIO):
    """Drops what cannot be written: a pipe's reader has gone, the terminal was closed, a disk is full."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Makes the standard streams take whatever is written to them; again, it does nothing.

    Streams that somebody has put in their places (a test, a notebook) are left as they are.
    """
    # Else the next file to be opened gets a closed stream's number, and warnings are written into it.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # git and W&B's service want it too
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 (for as long as the process)
    if sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = _tolerant(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = _tolerant(sys.stderr, 2)


def _tolerant(stream: Any, number: int) -> Any:
    """The stream of that number, in its own encoding, with a question mark for what that does not have."""
    if stream is not None:
        if isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _Deaf):
            return stream
        stream.flush()
    at_once = number == 2 or (stream is not None and (stream.line_buffering or stream.write_through))
    return io.TextIOWrapper(
        io.BufferedWriter(_Deaf(number, "w", closefd=False)),
        encoding="utf-8" if stream is None else stream.encoding,
        errors="replace",
        line_buffering=at_once,
    )
