"""What a job reads from elsewhere, looked at before torch is imported, which takes seconds.

Whether a file or a folder is there at all needs no library. The readers look again, with the same functions:
much can happen in between, and others call them too.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from rift.errors import UserError

if TYPE_CHECKING:
    from rift.config import Config

# The folders that a data set has below dataset.root, and whether we can fetch them.
FOLDERS = {
    "cifar10": (("cifar-10-batches-py",), True),
    "cifar100": (("cifar-100-python",), True),
    "tiny_imagenet": (("tiny-imagenet-200",), True),
    "image_folder": (("train", "test"), False),
}
# What a failed download leaves under the file's name.
_IMPOSTORS = {
    rb"\s*(<!doctype html|<html|<\?xml)": "it is a web page",
    rb"version https://git-lfs": "it is a pointer of Git LFS",
    rb"\0{64}": "it begins with nothing but zeros",
}


def check_places(config: Config) -> None:
    """Refuses a data folder or a checkpoint that is not there.

    Raises:
        UserError: as the readers say it.
    """
    data, checkpoint = config.dataset, config.model.checkpoint
    if data.name in FOLDERS and not data.download:
        check_folders(data.name, Path(data.root).expanduser())
    if checkpoint is not None:
        checkpoint_size(Path(checkpoint).expanduser())


def check_folders(name: str, root: Path) -> None:
    """Looks for the folders of a data set that is not to be fetched.

    Args:
        name: a key of `FOLDERS`.
        root: the folder that should hold them.

    Raises:
        UserError: one is not there.
    """
    folders, fetchable = FOLDERS[name]
    missing = next((root / folder for folder in folders if not (root / folder).is_dir()), None)
    if missing is None:
        return
    contents = " and ".join(folders) if fetchable else " and ".join(f"{part}/<class>" for part in folders)
    remedy = ", or set dataset.download=true to fetch it" if fetchable else ""
    raise UserError(
        f"{name} was not found at {missing}: point dataset.root= to the folder that contains {contents}"
        f"{remedy}."
    )


def checkpoint_size(path: Path) -> int:
    """Bytes of a file that can be read from its beginning to its end: no folder, pipe or device.

    Raises:
        UserError: there is none, it is empty, or what a failed download leaves.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                head = file.read(1024)
        else:
            head = None
    except FileNotFoundError:
        raise UserError(_no_file("no file", path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(_no_file("no file that can be read", path, f" ({reason.lower()})")) from error
    if head is None:
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise UserError(_no_file(kind, path))
    if not head:
        raise UserError(unreadable(path, "it is empty"))
    for pattern, reason in _IMPOSTORS.items():
        if re.match(pattern, head.removeprefix(b"\xef\xbb\xbf"), re.IGNORECASE):
            raise UserError(unreadable(path, reason))
    return status.st_size


def unreadable(path: Path, reason: str) -> str:
    """The sentence for a checkpoint that no reader can make anything of."""
    return (
        f"The checkpoint {path} cannot be read ({reason}), so it is damaged or of another kind: fetch it "
        "again, or give a .safetensors file or one written by torch.save."
    )


def _no_file(found: str, path: Path, reason: str = "") -> str:
    return f"There is {found} at {path}{reason}: set model.checkpoint to the file with the weights."
