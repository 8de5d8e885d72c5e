"""Files and folders from elsewhere: only plain files are opened, and every refusal is one sentence."""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path
from typing import BinaryIO

from rift.errors import UserError

# Each of these does harm in a name: it moves the cursor, ends a line, or cannot be written as UTF-8.
_HARMFUL = {"Cc", "Cs", "Zl", "Zp"}
_TEXT_BYTES = 4 << 20  # ten times the annotations of Tiny-ImageNet


def regular_stat(path: Path) -> os.stat_result:
    """What the file system says of a file; links are followed.

    Raises:
        UserError: no file is there, or a FIFO, device, socket or folder; a link that leads nowhere or in a
            circle.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        kind = "is a link that leads nowhere or in a circle" if path.is_symlink() else "cannot be found"
        raise UserError(f"{path} {kind} ({_reason(error)}): restore or remove it.") from error
    _check_regular(path, found)
    return found


def open_regular(path: Path) -> BinaryIO:
    """A plain file, opened to be read.

    What is no plain file is not opened at all, since that alone makes a FIFO wait and a tape rewind. Opening
    does not wait either, and looks again, so a file that is swapped in between is refused too.

    Raises:
        UserError: as for `regular_stat`, or the file may not be read.
    """
    regular_stat(path)
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}): check its permissions.") from error
    try:
        _check_regular(path, os.fstat(file.fileno()))
    except UserError:
        file.close()
        raise
    return file


def read_text(path: Path) -> str:
    """The text of a small file in UTF-8.

    Raises:
        UserError: no plain file, unreadable, of another encoding, or larger than 4 MiB.
    """
    with open_regular(path) as file:
        try:
            content = file.read(_TEXT_BYTES + 1)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({_reason(error)}): check the disk.") from error
    if len(content) > _TEXT_BYTES:
        raise UserError(f"{path} has more than {_TEXT_BYTES >> 20} MiB of text: restore the original file.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: restore the original file.") from error


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; without what is hidden.

    Raises:
        UserError: the folder cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({_reason(error)}): check its permissions.") from error


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, sorted: the classes. Files beside them are passed over.

    Raises:
        UserError: the folder cannot be listed, a link in it leads nowhere (it may have been a class), or a
            name has characters that harm a terminal or cannot be stored.
    """
    names = []
    for path in entries(folder):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link that leads nowhere or in a circle: restore or remove it.")
        if not path.is_dir():
            continue
        if any(unicodedata.category(character) in _HARMFUL for character in path.name):
            raise UserError(
                f"the class folder {path} has control characters or bytes that are not UTF-8 in its name: "
                "rename it."
            )
        names.append(path.name)
    return tuple(names)


def _check_regular(path: Path, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(found.st_mode), "something else")
    raise UserError(f"{path} is {kind} and not a plain file: put the file there, or remove it.")


def _reason(error: Exception) -> str:
    """In the system's words, without the path."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
