"""Files that are whole or absent: written beside, synced, renamed; read with care."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rift.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, then moves it into place in one step.

    A reader sees the old file or the new one; a crash leaves the old one and perhaps a `.partial` beside it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes what was made, renamed or removed in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_json(path: Path, value: Any) -> None:
    """Writes JSON atomically; a number that JSON has no word for (NaN, infinity) is an error."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], note: Any = None) -> None:
    """Writes tensors as safetensors, atomically.

    Args:
        path: the file.
        tensors: by name, on any device, in any memory format; shared storage is written twice.
        note: anything that JSON can hold, kept in the file's header.

    Raises:
        OSError: the disk is full, read-only, …
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"note": json.dumps(note, allow_nan=False)}

    def write(partial: Path) -> None:
        try:
            save_file(plain, partial, metadata=header)
        except SafetensorError as error:
            # Older versions of the library print the error's fields.
            found = re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error))
            if found is None:
                raise
            number = int(found[1] or found[2])
            raise OSError(number, os.strerror(number), str(path)) from error

    write_atomically(path, write)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], Any]:
    """Reads what `save_tensors` wrote: the tensors and the note.

    Raises:
        UserError: the file is missing, damaged, or none of `save_tensors`.
        RuntimeError: the device has no room, …
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        # On the CPU first, so that whatever goes wrong in here is the file's fault and not the device's.
        with safe_open(path, framework="pt", device="cpu") as file:
            note = json.loads((file.metadata() or {}).get("note", "null"), parse_constant=_no_constant)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # Beyond what the library finds itself, a header may have sizes and types that torch does not take, and a
    # note that is no JSON or nested too deep.
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path} cannot be read ({str(error)[:200]}): delete its folder and give the command again to "
            "make it anew."
        ) from error
    return {name: tensor.to(device) for name, tensor in tensors.items()}, note


def to_bytes(value: Any) -> bytes:
    """Numbers, texts and tensors, in lists, tuples and dictionaries, as `from_bytes` reads them."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def from_bytes(content: bytes, device: torch.device | str | None = None) -> Any:
    """What `to_bytes` was given, on the device or where its tensors were. Nothing of it can run."""
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} in its note")


def content_digest(tensors: Mapping[str, Tensor], note: Any = None) -> str:
    """SHA-256 of a note, and of every tensor's name, type, shape and bits; tensors on the CPU."""
    digest = hashlib.sha256(json.dumps(note, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def nearest_existing(path: Path) -> Path:
    """The path itself, or the first folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def free_bytes(path: Path) -> int:
    """Room on the disk that a path is on, or would be."""
    return shutil.disk_usage(nearest_existing(path)).free


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
