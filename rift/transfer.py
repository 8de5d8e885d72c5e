"""Brings a finished folder to another place: there as a whole, checked and durable, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rift import foreign
from rift.checkpoint import sync_folder
from rift.errors import UserError
from rift.foreign import Finished


def copy_whole(
    finished: Finished,
    there: Path,
    reread: Callable[[Path], Finished | None],
    tell: Callable[[int], None],
) -> None:
    """Makes the copy beside, checks it, and moves it into place; what is unfinished there gives way.

    Only for who holds the lock of `there`.

    Args:
        finished: what to copy; nothing but the files that it lists.
        there: the folder to be.
        reread: reads the copy as `finished` was read.
        tell: is given the number of bytes that were copied or checked, after each chunk.

    Raises:
        UserError: the copy is not what it should be; nothing has changed then.
        OSError: it cannot be written; likewise.
    """
    clear(there)
    beside, aside = _places(there)
    try:
        for name in finished.files:
            _copy_file(finished.folder / name, beside / name, tell)
        for folder in {(beside / name).parent for name in finished.files}:
            sync_folder(folder)
        copied = reread(beside)
        if copied is None or copied.files != finished.files:
            raise UserError(f"{finished.folder} changed while it was copied.")
        foreign.check(copied, tell)
        if there.exists():
            there.rename(aside)
        beside.rename(there)
        sync_folder(there.parent)
    finally:
        clear(there)


def is_clear(there: Path) -> bool:
    """Whether no merge that was killed has left anything beside this folder."""
    return not any(path.exists() for path in _places(there))


def clear(there: Path) -> None:
    """Drops half a copy, and an unfinished folder that gave way; one whose successor never came returns.

    W&B's files move on into the new folder: they may be of runs that have not been sent yet.
    """
    beside, aside = _places(there)
    shutil.rmtree(beside, ignore_errors=True)
    if not aside.exists():
        return
    if not there.exists():
        aside.rename(there)
        return
    runs = aside / "wandb"
    if runs.is_dir() and not (there / "wandb").exists():
        runs.rename(there / "wandb")
    shutil.rmtree(aside)


def _places(there: Path) -> tuple[Path, Path]:
    """Where the copy grows, and where what it replaces waits; short names, whatever the folder's is."""
    key = foreign.key_of(there.name)
    return there.parent / f".{key}.merging", there.parent / f".{key}.replaced"


def _copy_file(source: Path, target: Path, tell: Callable[[int], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for chunk in foreign.chunks(source):
            file.write(chunk)
            tell(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    found = source.stat()  # reports tell by it which of two jobs is newer
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
