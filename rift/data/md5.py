"""MD5 sums of large files, computed once and remembered for as long as a file's size and time stay."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rift.checkpoint import save_json
from rift.data.cache import alone, may_keep

log = logging.getLogger(__name__)

_THREADS = 4  # hashing lets go of the interpreter; more readers than that only make a disk seek


def file_md5(path: Path) -> str:
    """The MD5 sum of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def remembered_md5(paths: Sequence[Path], notebook: Path) -> dict[Path, str]:
    """The MD5 sums of files, hashing only those that changed in size or time since they were noted.

    Args:
        paths: existing files.
        notebook: JSON file of what was hashed before, with a digest of itself. If it cannot be read or is
            damaged that is a warning and the files are hashed again; if it cannot be written that is a
            warning, and the next run hashes them again.
    """
    with alone(notebook):
        noted = _read(notebook)
        stamps = {path: _stamp(path) for path in paths}
        stale = [path for path in paths if not _holds(noted.get(_key(path)), stamps[path])]
        if stale:
            size = sum(stamps[path][0] for path in stale)
            log.info(
                "checking the md5 sums of %d files (%.1f GB) in %s", len(stale), size / 1e9, _homes(stale)
            )
            with ThreadPoolExecutor(_THREADS) as pool:
                for path, md5 in zip(stale, pool.map(file_md5, stale), strict=True):
                    noted[_key(path)] = [*stamps[path], md5]
            if may_keep():
                _write(noted, notebook)
        return {path: noted[_key(path)][2] for path in paths}


def _key(path: Path) -> str:
    return str(path.resolve())


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _holds(entry: Any, stamp: list[int]) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and entry[:2] == stamp and isinstance(entry[2], str)


def _homes(paths: Sequence[Path]) -> str:
    return ", ".join(sorted({str(path.parent) for path in paths}))


def _read(notebook: Path) -> dict[str, Any]:
    try:
        page = json.loads(notebook.read_bytes())
        noted = page["sums"]
        if page["sha256"] != _digest(noted):
            raise ValueError("its own SHA-256 is another")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning(
            "the md5 sums noted in %s cannot be read (%s), so files are checked again", notebook, error
        )
        return {}
    return noted if isinstance(noted, dict) else {}


def _digest(noted: Any) -> str:
    return hashlib.sha256(json.dumps(noted, sort_keys=True).encode()).hexdigest()


def _write(noted: dict[str, Any], notebook: Path) -> None:
    """A failure is only a warning."""
    try:
        notebook.parent.mkdir(parents=True, exist_ok=True)
        save_json(notebook, {"sums": noted, "sha256": _digest(noted)})
    except OSError as error:
        log.warning("md5 sums cannot be kept in %s (%s), so each run computes them again", notebook, error)
