"""Joins the results of other machines: what one output folder has and another lacks is copied, or said."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rift import foreign
from rift.checkpoint import free_bytes
from rift.errors import UserError
from rift.foreign import RESULT, SUMMARY, Finished
from rift.job_state import LOCK_FILE
from rift.locks import is_held
from rift.progress import measured
from rift.store import MANIFEST, lock_of
from rift.transfer import clear, copy_whole, is_clear

COPIED, THERE, DIFFERENT, DAMAGED, UNFINISHED, IN_USE = OUTCOMES = (
    "copied", "already there", "different", "damaged", "unfinished", "in use",
)  # fmt: skip
_MIB = 2**20
_SPARE = 64 * _MIB  # a disk is not filled to its last byte
# What two machines that made the same result tell differently.
_CIRCUMSTANCES = frozenset(
    (
        "seconds", "images_per_s", "tflops", "of_matmul_rate", "cached", "resumed", "device", "fallbacks",
        "command", "commit", "dirty", "versions", "platform", "finished",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one folder of a source.

    Attributes:
        kind: `store` or `jobs`.
        folder: of the source.
        outcome: one of `OUTCOMES`.
        reason: one sentence, where there is something to say.
    """

    kind: str
    folder: Path
    outcome: str
    reason: str = ""


def merge(target: Path, sources: Sequence[Path], *, dry_run: bool = False) -> list[Outcome]:
    """Copies every finished result and job that `target` lacks; the first source that has it whole gives it.

    A folder arrives whole or not at all, so a merge that was killed is given again. What `target` has
    finished is never touched.

    Args:
        target: an output folder, made if it is not there.
        sources: output folders of other machines, not trusted.
        dry_run: finds out what would be done, and writes nothing.

    Returns:
        The outcome of every folder of the sources.

    Raises:
        UserError: something else than output folders was given, one twice, or the disk has no room.
        OSError: the target cannot be written, or a source's folders cannot be listed.
    """
    _check_folders(target, sources)
    found = [piece for source in sources for piece in _survey(source)]
    work = _Merge(target, dry_run)
    size = _lacking(work, found)
    if size:
        _check_room(target, size)
    passes = 1 if dry_run else 3  # checked, copied, checked again
    with measured("merge", passes * size // _MIB, "MiB") as meter:
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            meter.advance(done // _MIB - meter.done)

        return [work.take(piece, tell) for piece in found]


@dataclass(frozen=True)
class _Piece:
    """A folder of a source: `finished` is None if it is unfinished, or if something is `wrong` with it."""

    kind: str
    folder: Path
    finished: Finished | None = None
    wrong: str | None = None


def _survey(source: Path) -> Iterator[_Piece]:
    for kind in ("store", "jobs"):
        for folder, wrong in foreign.folders_below(source / kind):
            finished = None
            try:
                if wrong is None:
                    finished = _read(kind, folder, like=folder)
            except UserError as error:
                wrong = str(error)
            yield _Piece(kind, folder, finished, wrong)


def _read(kind: str, folder: Path, like: Path) -> Finished | None:
    """A result or a job, which must be what the place `like` says."""
    key = foreign.key_of(like.name)
    if kind == "store":
        return foreign.read_result(folder, like.parent.name, key)
    return foreign.read_job(folder, key)


def _lacking(work: _Merge, pieces: Sequence[_Piece]) -> int:
    """Bytes of what is to be copied."""
    sizes = {}
    for piece in pieces:
        if piece.finished is not None and not work.has(piece):
            sizes.setdefault(work.destination(piece), piece.finished.size)
    return sum(sizes.values())


@dataclass
class _Merge:
    target: Path
    dry_run: bool
    would_have: dict[Path, Path] = field(default_factory=dict)  # a dry run's copies, by destination

    def destination(self, piece: _Piece) -> Path:
        """Where it belongs: a job's folder is known by its key, whatever it is called."""
        parent = self.target / piece.kind / piece.folder.parent.name
        if piece.kind == "jobs":
            there = sorted(parent.glob(f"*-{foreign.key_of(piece.folder.name)}"))
            return there[0] if there else parent / piece.folder.name
        return parent / piece.folder.name

    def has(self, piece: _Piece) -> bool:
        """Whether the target has it, finished."""
        there = self.destination(piece)
        return there in self.would_have or (there / _mark(piece)).is_file()

    def take(self, piece: _Piece, tell: Callable[[int], None]) -> Outcome:
        """Copies the piece if the target lacks it."""
        try:
            outcome, reason = self._take(piece, tell)
        except UserError as error:
            outcome, reason = DAMAGED, str(error)
        return Outcome(piece.kind, piece.folder, outcome, reason)

    def _take(self, piece: _Piece, tell: Callable[[int], None]) -> tuple[str, str]:
        if piece.wrong is not None:
            return DAMAGED, piece.wrong
        if piece.finished is None:
            return UNFINISHED, ""
        there = self.destination(piece)
        if self.has(piece):
            if not self.dry_run and not is_clear(there):
                with suppress(Timeout), _holding(_lock(piece, there)):
                    clear(there)
            return self._compared(piece, there)
        foreign.check(piece.finished, tell)
        in_use = IN_USE, f"{there} is being worked on here: give the command again when that has ended."
        if self.dry_run:
            if is_held(_lock(piece, there)):
                return in_use
            self.would_have[there] = piece.folder
            return COPIED, ""
        try:
            with _holding(_lock(piece, there)):
                if self.has(piece):  # a job of ours was faster
                    return self._compared(piece, there)
                copy_whole(piece.finished, there, lambda copy: _read(piece.kind, copy, like=there), tell)
        except Timeout:
            return in_use
        return COPIED, ""

    def _compared(self, piece: _Piece, there: Path) -> tuple[str, str]:
        if piece.kind == "store":
            ours = _read("store", self.would_have.get(there, there), like=there)
            if _essence(ours) != _essence(piece.finished):
                return DIFFERENT, f"{there} stays: {piece.folder} has the same key and other numbers."
        return THERE, ""


def _mark(piece: _Piece) -> str:
    """The file that says that a folder is finished."""
    return MANIFEST if piece.kind == "store" else SUMMARY


def _lock(piece: _Piece, there: Path) -> Path:
    return lock_of(there) if piece.kind == "store" else there / LOCK_FILE


@contextmanager
def _holding(path: Path) -> Iterator[None]:
    ours = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path).acquire(timeout=1):  # whoever reads a job's state holds its lock for an instant
        try:
            yield
        except BaseException:
            if ours and list(path.parent.iterdir()) == [path]:  # nothing came into the folder that we made
                shutil.rmtree(path.parent)
            raise


def _essence(result: Finished) -> tuple[dict[str, str], Any]:
    """What must be equal in two results of one key: the digests of all tensors, and the numbers."""
    tensors = {name: sha for name, sha in result.files.items() if name.endswith(".safetensors")}
    return tensors, _without_circumstances(foreign.read_object(result.folder / RESULT))


def _without_circumstances(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_circumstances(part) for name, part in value.items() if name not in _CIRCUMSTANCES
        }
    return [_without_circumstances(part) for part in value] if isinstance(value, list) else value


# -- what was asked for ------------------------------------------------------------------------------------


def check_output(folder: Path) -> None:
    """Raises `UserError` unless this is an output folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist or is no folder: give output folders, as in outputs.")
    if not any((folder / kind).is_dir() for kind in ("store", "jobs")):
        raise UserError(f"{folder} is no output folder: give the one that holds store/ and jobs/.")


def _check_folders(target: Path, sources: Sequence[Path]) -> None:
    for source in sources:
        check_output(source)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        check_output(target)
    known: dict[Path, Path] = {}
    for folder in (target, *sources):
        first = known.setdefault(folder.resolve(), folder)
        if first is not folder:
            raise UserError(f"{first} and {folder} are the same folder: give each folder once.")


def _check_room(target: Path, size: int) -> None:
    free = free_bytes(target)
    if size + _SPARE > free:
        raise UserError(
            f"{target} has room for {free // _MIB:,} MiB and {(size + _SPARE) // _MIB:,} are needed: "
            "make room and give the command again."
        )
