"""The two kinds of files that torch.save has written: a zip archive, and before torch 1.6 a row of pickles.

What a file claims is held against its size before anything of that size is made.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rift.models.checkpoint_pickle import Claim, Malformed, read_pickle

MAX_STRUCTURE = 64 << 20  # bytes of a pickle; that of 1000 tensors takes 100 KiB
MAX_DIRECTORY = 4 << 20  # bytes of a zip archive's list of contents; that of 1000 tensors takes 64 KiB
_ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Archive:
    """A file of torch.save.

    Args:
        file: open for reading, at its beginning; kept.
        size: its length in bytes.

    Raises:
        Malformed: see `rift.models.checkpoint_pickle`; so too for the rest.
        Forbidden: it names an object that no state dict needs.
        Exception: of any other kind if it is damaged.
    """

    structure: Any  # what was saved, with a `Claim` for each tensor

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._read: dict[str, Tensor] = {}
        begins = file.read(len(_ZIP))
        file.seek(0)
        self._bytes_of = self._open_zip() if begins == _ZIP else self._open_row()

    def tensor(self, claim: Claim) -> Tensor:
        """Reads a tensor; those that were saved with shared memory share it again.

        Raises:
            Malformed: it claims more values than the file has for it, or repeats some by a stride of 0.
            Exception: of any other kind if it is damaged.
        """
        storage, width = claim.storage, claim.dtype.itemsize
        if storage.key not in self._read:
            self._read[storage.key] = self._bytes_of(storage.key)
        start = storage.first * storage.dtype.itemsize
        raw = self._read[storage.key][start : start + storage.count * storage.dtype.itemsize]
        values = raw[: len(raw) // width * width].view(claim.dtype)
        claimed = math.prod(claim.size)
        reach = sum((size - 1) * stride for size, stride in zip(claim.size, claim.stride, strict=True))
        if claimed and max(claimed, claim.first + reach + 1) > len(values):
            shown = claimed if claimed < 10**18 else "more than 10^18"
            raise Malformed(f"claims a tensor of {shown} values where it has {len(values)}")
        if not claimed:
            return values[:0].view(claim.size)
        return values.as_strided(claim.size, claim.stride, values.storage_offset() + claim.first)

    def _open_zip(self) -> Callable[[str], Tensor]:
        cautious = _Cautious(self._file)
        archive = zipfile.ZipFile(cautious)
        cautious.limit = self._size
        claimed = sum(record.file_size for record in archive.infolist())
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise Malformed("is compressed, which torch.save never does")
        if claimed > self._size:
            raise Malformed(f"claims {claimed} bytes of contents in a file of {self._size}")
        sizes = {record.filename: record.file_size for record in archive.infolist()}
        description = next((name for name in sizes if name.endswith("/data.pkl")), None)
        if description is None:
            raise Malformed("is a zip archive of another program")
        folder = description.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in sizes:
            raise Malformed("is a TorchScript archive, which holds code")
        if f"{folder}byteorder" in sizes and archive.read(f"{folder}byteorder") != b"little":
            raise Malformed("was written on a machine with another order of bytes")
        if sizes[description] > MAX_STRUCTURE:
            raise Malformed(f"describes its contents in more than {MAX_STRUCTURE} bytes")
        self.structure = read_pickle(BytesIO(archive.read(description)))
        return lambda key: _as_tensor(archive.read(f"{folder}data/{key}"))

    def _open_row(self) -> Callable[[str], Tensor]:
        pickles = BytesIO(self._file.read(min(self._size, MAX_STRUCTURE)))
        if read_pickle(pickles) != _MAGIC or read_pickle(pickles) != _PROTOCOL:
            raise Malformed("does not begin as those of torch.save do")
        read_pickle(pickles)  # about the machine
        widths: dict[str, int] = {}
        self.structure = read_pickle(pickles, widths)
        pieces = {}
        keys = read_pickle(pickles)
        position = pickles.tell()
        for key in keys:
            self._file.seek(position)
            (count,) = struct.unpack("<q", self._file.read(8))
            length, position = count * widths[key], position + 8
            if not 0 <= length <= self._size - position:
                raise Malformed(f"claims {length} bytes where {self._size - position} are left")
            pieces[key] = position, length
            position += length
        return lambda key: self._piece(*pieces[key])

    def _piece(self, position: int, length: int) -> Tensor:
        self._file.seek(position)
        return _as_tensor(self._file.read(length))


class _Cautious:
    """A file of which zipfile cannot read more than `limit` bytes at once, whatever the file tells it to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.limit = MAX_DIRECTORY

    def read(self, count: int = -1) -> bytes:
        if count > self.limit:
            raise Malformed(f"has a list of contents of {count} bytes")
        return self._file.read(count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _as_tensor(content: bytes) -> Tensor:
    # From a bytearray, since torch wants memory that may be written to; it takes none that is empty.
    return torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[: len(content)]
