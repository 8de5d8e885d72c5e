"""Decoded images, kept as one safetensors file that says what it was made from and what it holds."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rift.checkpoint import content_digest, write_atomically
from rift.data.decode import decode_all
from rift.data.files import regular_stat
from rift.errors import UserError, shown

log = logging.getLogger(__name__)

_keeping = ContextVar("keeping", default=True)
_FORMAT = 1  # raise it when decoding changes, so that older caches are not used


def decode_cached(
    name: str, root: Path, parts: dict[str, Sequence[Path]], *, size: int | None, cache: Path
) -> dict[str, Tensor]:
    """Images of several lists of files under `root`, from the cache if the files have not changed since.

    The cache is of these files if it has the SHA-256 of their listing: each one's relative path, size and
    modification time, and `size`. (Not of their contents: reading all of them takes as long as this saves.)
    It is whole if the images have the SHA-256 that it gives. One that is damaged or of other files is a
    warning and made anew; one that cannot be written is a warning, and the images are decoded all the same.

    Raises:
        UserError: a file is no plain file or cannot be decoded; see `decode_all`.
    """
    source = _source(root, parts, size)
    path = cache / f"{name}-{source[:16]}.safetensors"
    kept = _load(path, source, parts)
    if kept is not None:
        return kept
    with alone(path):
        kept = _load(path, source, parts, say=True)
        if kept is None:
            count = sum(map(len, parts.values()))
            where = f"once, into {shown(str(path))}" if may_keep() else "for this check, keeping nothing"
            log.info("decoding %d images of %s %s", count, name, where)
            kept = {part: decode_all(paths, size) for part, paths in parts.items()}
            if may_keep():
                _save(kept, path, source)
        return kept


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Within it no cache file is written, nor a lock beside one; what is there is read as ever."""
    before = _keeping.set(False)
    try:
        yield
    finally:
        _keeping.reset(before)


def may_keep() -> bool:
    """Whether cache files may be written, see `nothing_kept`."""
    return _keeping.get()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Jobs that start together fill a cache file once: the others wait here, and then find it."""
    if not may_keep():
        yield
        return
    with ExitStack() as stack:
        # Where no lock can be written no cache can be either; who writes it says so. Some file systems know
        # no locks: there each job fills the cache, one after the other, with the same.
        with suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        yield


def _source(root: Path, parts: dict[str, Sequence[Path]], size: int | None) -> str:
    """SHA-256 of the listing of all files and of what is done to them."""
    digest = hashlib.sha256(json.dumps([_FORMAT, size]).encode())
    for part, paths in parts.items():
        for path in paths:
            stat = regular_stat(path)
            line = [part, path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns]
            digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def _load(
    path: Path, source: str, parts: dict[str, Sequence[Path]], *, say: bool = False
) -> dict[str, Tensor] | None:
    """What is kept, if it is whole and made from `source`; else None, and if it is to be said, why."""
    try:
        regular_stat(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        problem = _problem(kept, header, source, parts)
    except UserError:  # not there, or no plain file
        return None
    except OSError as error:
        problem = f"cannot be read ({shown(str(error))})"
    # numpy knows fewer types than safetensors, and a header can ask for more memory than there is.
    except (SafetensorError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        problem = f"are damaged ({shown(str(error)) or type(error).__name__})"
    if problem is None:
        return kept
    if say:
        log.warning("the decoded images in %s %s and are made again", shown(str(path)), problem)
    return None


def _problem(
    kept: dict[str, Tensor], header: dict[str, str], source: str, parts: dict[str, Sequence[Path]]
) -> str | None:
    if header.get("source") != source:
        return "were made from other files" if "source" in header else "do not say what they were made from"
    counts = {part: len(paths) for part, paths in parts.items()}
    fits = all(tensor.dtype == torch.uint8 and tensor.dim() == 4 for tensor in kept.values())
    if not fits or {part: len(tensor) for part, tensor in kept.items()} != counts:
        return "are damaged (not one image for each file)"
    whole = header.get("sha256") == content_digest(kept)
    return None if whole else "are damaged (another SHA-256 than noted)"


def _save(tensors: dict[str, Tensor], path: Path, source: str) -> None:
    """A reader finds a whole file or none. A failure is only a warning."""
    header = {"source": source, "sha256": content_digest(tensors)}
    try:
        write_atomically(path, lambda partial: save_file(tensors, partial, metadata=header))
    except (SafetensorError, OSError) as error:
        log.warning(
            "decoded images cannot be kept in %s (%s), so each run decodes them again",
            shown(str(path.parent)),
            shown(str(error)),
        )
