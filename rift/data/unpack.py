"""Archives from elsewhere, unpacked only if every member is a plain file or folder that stays inside."""

from __future__ import annotations

import logging
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rift.errors import UserError

log = logging.getLogger(__name__)

_BLOCK = 4096  # bytes; file systems give out space in such pieces, which tells with small images


def unpack(archive: Path, into: Path) -> None:
    """Unpacks a tar file, compressed or not, into a folder that is made for it.

    Every member is looked at before the first byte is written.

    Raises:
        UserError: the archive is damaged, does not fit on the disk, or has a member that is absolute, leads
            outside, or is no plain file or folder.
        OSError: the folder cannot be written.
    """
    try:
        with tarfile.open(archive) as tar:
            needed = sum(_checked_size(archive, member) for member in _members(tar))
        check_space(into.parent, needed, f"what is in {archive}")
        log.info("unpacking %s (%.1f GB)", archive, needed / 1e9)
        into.mkdir(parents=True)
        with tarfile.open(archive) as tar:
            # A second line of defence where Python has it (3.11.4 on).
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            tar.extractall(into, members=_members(tar))  # noqa: S202 (all members are checked above)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is not a whole tar archive: remove it and fetch it again.") from error


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuses what would fill the disk that an existing `folder` lies on; `needed` is in bytes.

    Raises:
        UserError: less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.2f} GB in {folder} but only {free / 1e9:.2f} GB are free there: "
            "make room, or choose another folder."
        )


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member
        tar.members.clear()  # or the library keeps all of them, and there can be a million


def _checked_size(archive: Path, member: tarfile.TarInfo) -> int:
    """The space in bytes that a member takes on disk."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        reason = "leads outside the folder"
    elif member.issym() or member.islnk():
        reason = "is a link"
    elif not (member.isreg() or member.isdir()):
        reason = "is neither a file nor a folder"
    elif member.size < 0:
        reason = "has a negative size"
    else:
        return -(-member.size // _BLOCK) * _BLOCK
    raise UserError(
        f"{archive} is not unpacked, because its member {member.name!r} {reason}: remove the archive and "
        "fetch the published one."
    )
