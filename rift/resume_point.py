"""Where an unfinished stage goes on: the last point that was saved, and the one before to fall back on.

Each point carries a digest of itself, since a flipped bit in a half-trained network would otherwise end in a
finished result that nobody can tell from a right one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rift.checkpoint import content_digest, load_tensors, save_tensors, sync_folder
from rift.errors import UserError

log = logging.getLogger(__name__)

RESUME = "resume.safetensors"
BEFORE = "resume.before.safetensors"
_SEAL = "sha256"


def write_resume_point(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Writes a point at `<folder>/resume.safetensors`; the one that is there becomes the one before.

    Args:
        path: of the point.
        tensors: by name, on any device.
        note: what JSON can hold.

    Raises:
        OSError: the disk is full, read-only, …; the points that are there stay.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    fresh = path.with_name(f".{path.name}.partial")
    try:
        save_tensors(fresh, plain, {**note, _SEAL: content_digest(plain, note)})
        if path.is_file():
            path.replace(path.with_name(BEFORE))
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_resume_point(
    folder: Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest point that is whole, with its note; None if there is none.

    A damaged point is said in one line, and the one before, or the beginning, taken instead.
    """
    for path in points(folder):
        try:
            tensors, note = load_tensors(path, "cpu")
            told = note.pop(_SEAL) if isinstance(note, dict) and _SEAL in note else None
            if told != content_digest(tensors, note):
                raise UserError("its digest does not fit its contents")
        except UserError as error:
            log.warning("%s is damaged (%s): not used, what came after it is computed anew", path, error)
            continue
        return {name: tensor.to(device) for name, tensor in tensors.items()}, note
    return None


def noted_rows(folder: Path) -> list[dict[str, Any]] | None:
    """The metrics that the newest point has, from its header alone; None if there is no point.

    For a plan: the point's tensors are not read, and so it is not known whether they are whole.
    """
    for path in points(folder):
        damaged = (OSError, SafetensorError, ValueError, TypeError, KeyError, RecursionError)
        with suppress(*damaged), safe_open(path, framework="pt") as file:
            return list(json.loads((file.metadata() or {})["note"])["rows"])
    return None


def points(folder: Path) -> Iterator[Path]:
    """The points that are there, the newest first."""
    yield from (path for name in (RESUME, BEFORE) if (path := folder / name).is_file())


def drop_resume_points(folder: Path) -> None:
    """Removes what a finished stage needs no more; on a read-only disk it stays."""
    with suppress(OSError):
        for path in [*points(folder), *folder.glob(".*.partial")]:
            path.unlink(missing_ok=True)
