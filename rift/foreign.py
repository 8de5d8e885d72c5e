"""Finished folders that come from another machine, read without trust: only plain files of plain names."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rift.errors import UserError
from rift.resume_point import BEFORE, RESUME
from rift.store import MANIFEST, digest

SUMMARY = "summary.json"
OPTIONS, RESULT = "options.json", "result.json"
LARGEST_TEXT = 2**26  # bytes of a JSON file; the largest of ours has a thousandth
LONGEST_NAME = 240  # bytes; a lock's name is a little longer
CHUNK = 2**22  # bytes
_JOB_FILES = ("config.json", "job.log", "report.md", "state.json", SUMMARY)  # no W&B files, no locks
_FIGURES = (".png", ".pdf")


@dataclass(frozen=True)
class Finished:
    """A finished folder.

    Attributes:
        folder: where it lies.
        files: what belongs to it: the SHA-256 that each file should have, by its path in the folder.
        size: of all of them, in bytes.
    """

    folder: Path
    files: dict[str, str]
    size: int


def folders_below(root: Path, *, links: bool = False) -> Iterator[tuple[Path, str | None]]:
    """The folders two levels below `root`, each with what is wrong with it or None, in order of their names.

    Args:
        root: `store` or `jobs` of an output folder; need not exist.
        links: whether folders may be links, as they may on our own machine.
    """
    for outer, wrong in _children(root, links):
        if wrong:
            yield outer, wrong
        else:
            yield from _children(outer, links)


def _children(folder: Path, links: bool) -> Iterator[tuple[Path, str | None]]:
    if folder.is_symlink() and not links:
        yield folder, f"{folder} is a link, which is not followed."
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not path.is_dir():
            continue  # locks, what is on its way, and what people leave lying about
        if not is_plain(path.name):
            yield path, f"{folder} has a folder of the name {path.name!r}, which no job would make."
        elif path.is_symlink() and not links:
            yield path, f"{path} is a link, which is not followed."
        else:
            yield path, None


def is_plain(name: str) -> bool:
    """Whether a name is of one file or folder, visible and printable."""
    return (
        name.isprintable()
        and re.search(r"^$|^\.|[/\\]", name) is None
        and len(name.encode(errors="replace")) <= LONGEST_NAME
    )


def key_of(name: str) -> str:
    """The key at the end of a folder's name; empty if there is none."""
    found = re.search(r"-([0-9a-f]{16})$", name)
    return found[1] if found else ""


def read_result(folder: Path, stage: str, key: str) -> Finished | None:
    """What a stage's folder says of itself; None if it is unfinished. Its files' contents: see `check`.

    Args:
        folder: of the store.
        stage: whose it should be.
        key: what its options should make.

    Raises:
        UserError: a file is missing or no plain file, the manifest cannot be understood, or the options
            have another key.
    """
    manifest = folder / MANIFEST
    if not os.path.lexists(manifest):
        return None
    text = read_text(manifest)
    listed = _parsed(text, manifest).get("files")
    if not isinstance(listed, dict) or not all(_is_digest(sha) for sha in listed.values()):
        raise UserError(f"{manifest} is damaged: it does not list files with their SHA-256.")
    for name in listed:
        if not is_plain(name) or name in (MANIFEST, RESUME, BEFORE):
            raise UserError(f"{manifest} lists {name!r}, which is no name of a result's file.")
    for name in (OPTIONS, RESULT, "metrics.jsonl"):
        if name not in listed:
            raise UserError(f"{manifest} does not list {name}, which every result has.")
    options = _parsed(read_text(folder / OPTIONS), folder / OPTIONS)
    if options.get("stage") != stage or _key(options) != key:
        raise UserError(f"{folder / OPTIONS} has options of another result than the folder's name says.")
    size = len(text) + sum(_size(folder / name) for name in listed)
    return Finished(folder, {**listed, MANIFEST: hashlib.sha256(text).hexdigest()}, size)


def read_job(folder: Path, key: str) -> Finished | None:
    """The files of a finished job that are worth keeping; None if it is unfinished.

    A job has no manifest, so the files are digested as they are found.

    Raises:
        UserError: one is no plain file, or the summary cannot be understood or is another job's.
    """
    from rift.report.results import read_summary  # its package brings pandas and matplotlib

    summary = folder / SUMMARY
    if not os.path.lexists(summary):
        return None
    _parsed(read_text(summary), summary)
    if read_summary(summary).get("key") != key or not key:
        raise UserError(f"{summary} is of another job than the folder's name says.")
    names = [name for name in _JOB_FILES if os.path.lexists(folder / name)]
    figures = folder / "figures"
    if figures.is_symlink():
        raise UserError(f"{figures} is a link, which is not followed.")
    drawn = sorted(path.name for path in figures.iterdir()) if figures.is_dir() else []
    names += [f"figures/{name}" for name in drawn if is_plain(name) and name.endswith(_FIGURES)]
    files = {name: sha256(folder / name) for name in names}
    return Finished(folder, files, sum(_size(folder / name) for name in names))


def check(finished: Finished, tell: Callable[[int], None] = lambda count: None) -> None:
    """Compares every file with its SHA-256.

    Args:
        finished: as it was read.
        tell: is given the number of bytes, after each chunk.

    Raises:
        UserError: one differs or cannot be read.
    """
    for name, sha in finished.files.items():
        if sha256(finished.folder / name, tell) != sha:
            raise UserError(f"{finished.folder / name} is damaged: its SHA-256 is not the recorded one.")


def sha256(path: Path, tell: Callable[[int], None] = lambda count: None) -> str:
    """SHA-256 of a plain file; see `chunks` for the errors."""
    found = hashlib.sha256()
    for chunk in chunks(path):
        found.update(chunk)
        tell(len(chunk))
    return found.hexdigest()


def chunks(path: Path) -> Iterator[bytes]:
    """A plain file's contents.

    Raises:
        UserError: it is missing, a link, a pipe, …, or cannot be read.
    """
    with _opened(path) as file:
        while chunk := _read(file, path, CHUNK):
            yield chunk


def read_text(path: Path) -> bytes:
    """A small plain file, as a whole; see `chunks` for the errors."""
    with _opened(path) as file:
        text = _read(file, path, LARGEST_TEXT + 1)
    if len(text) > LARGEST_TEXT:
        raise UserError(f"{path} is too large for what it should be.")
    return text


def read_object(path: Path) -> dict[str, Any]:
    """The object of a small JSON file.

    Raises:
        UserError: see `chunks`; or it holds something else.
    """
    return _parsed(read_text(path), path)


def _opened(path: Path) -> BinaryIO:
    try:
        # Not through a link; and a pipe is opened without waiting for somebody to write into it.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f"{path} is no plain file.")
    return os.fdopen(number, "rb")


def _read(file: BinaryIO, path: Path, count: int) -> bytes:
    try:
        return file.read(count)
    except OSError as error:
        raise _unreadable(path, error) from error


def _size(path: Path) -> int:
    with _opened(path) as file:
        return os.fstat(file.fileno()).st_size


def _unreadable(path: Path, error: OSError) -> UserError:
    if error.errno == errno.ENOENT:
        return UserError(f"{path} is missing.")
    if error.errno == errno.ELOOP:
        return UserError(f"{path} is a link, which is not followed.")
    return UserError(f"{path} cannot be read ({error.strerror}).")


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON that can be read.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.")
    return value


def _key(options: dict[str, Any]) -> str | None:
    try:
        return digest(options)
    except (ValueError, RecursionError):  # what JSON of ours has no word for
        return None


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
