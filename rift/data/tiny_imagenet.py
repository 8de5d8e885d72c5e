"""Tiny-ImageNet in its original layout, with the labels of the flat `val` folder from its annotations.

Read as a folder of classes, `val` gives wrong labels and near-zero accuracy, and nothing else tells. So
whatever does not fit the layout is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import torch
from torchvision.datasets.utils import download_and_extract_archive

from rift.data.cache import decode_cached
from rift.data.download import fetching
from rift.data.files import class_names, entries, read_text
from rift.data.splits import Source, Split
from rift.errors import UserError
from rift.places import FOLDERS, check_folders

((FOLDER,), _) = FOLDERS["tiny_imagenet"]
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_LONGEST_NAME = 255  # as file systems have it; anything longer is not worth quoting


def read_tiny_imagenet(root: Path, *, download: bool, image_size: int | None, cache: Path) -> Source:
    """All classes that have a training folder; labels are the positions of their sorted wnids.

    Reads `<root>/tiny-imagenet-200/train/<wnid>/images/*.JPEG` and, as the test set, `val/images/*.JPEG` with
    `val/val_annotations.txt`. (The official test images have no public labels.)

    Raises:
        UserError: the folder is missing, or annotations, images and classes do not fit together.
    """
    folder = root / FOLDER
    if download and not folder.is_dir():
        with fetching("tiny_imagenet", root):
            if not folder.is_dir():
                _download(root)
    check_folders("tiny_imagenet", root)
    classes, train_paths, train_labels = _list_train(folder / "train")
    test_paths, test_labels = _list_val(folder / "val", classes)
    parts = {"train": train_paths, "test": test_paths}
    images = decode_cached("tiny_imagenet", folder, parts, size=None, cache=cache)
    return Source(_split(images["train"], train_labels), _split(images["test"], test_labels), classes)


def _download(root: Path) -> None:
    unpacking = root / ".tiny_imagenet-unpacking"  # renamed when whole: a killed download leaves no half set
    try:
        download_and_extract_archive(
            URL, str(root), extract_root=str(unpacking), md5=MD5, remove_finished=True
        )
    except RuntimeError as error:
        raise UserError(f"{URL} did not arrive whole (its md5 sum is wrong): try again.") from error
    (unpacking / FOLDER).replace(root / FOLDER)
    unpacking.rmdir()


def _split(images: torch.Tensor, labels: Sequence[int]) -> Split:
    return Split(images, torch.tensor(labels, dtype=torch.int64), torch.arange(len(images)))


def _list_train(folder: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """(sorted wnids, files, labels)."""
    classes = class_names(folder) if folder.is_dir() else ()
    if not classes:
        raise UserError(f"{folder} holds no class folders: restore the original layout train/<wnid>/images.")
    paths, labels = [], []
    for label, wnid in enumerate(classes):
        members = _jpegs(folder / wnid / "images")
        if not members:
            raise UserError(f"{folder / wnid / 'images'} holds no .JPEG files: restore the original layout.")
        paths += members
        labels += [label] * len(members)
    return classes, paths, labels


def _list_val(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """(files, labels), in the order of the annotations."""
    annotations, images = folder / "val_annotations.txt", folder / "images"
    if not annotations.is_file() or not images.is_dir():
        missing = images if annotations.is_file() else annotations
        raise UserError(
            f"{missing} is missing: tiny_imagenet is read in its original layout, a flat val/images with "
            "val/val_annotations.txt, so unpack the archive again if it was rearranged."
        )
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    present = {path.name for path in _jpegs(images)}
    if not present:
        raise UserError(f"{images} holds no .JPEG files: restore the original layout.")
    labels: dict[str, int] = {}
    lines = StringIO(read_text(annotations), newline=None)  # one by one: a list of them takes far more memory
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\n").split("\t", 2)
        if len(fields) < 2 or fields[0] in labels:
            reason = (
                "names an image a second time" if len(fields) >= 2 else "is not '<image> TAB <wnid> TAB …'"
            )
            raise UserError(f"line {number} of {annotations} {reason}: restore the original file.")
        name, wnid = fields[:2]
        if max(len(name), len(wnid)) > _LONGEST_NAME:
            raise UserError(f"line {number} of {annotations} has no name in it: restore the original file.")
        if wnid not in label_of:
            raise UserError(
                f"line {number} of {annotations} labels {name} as {wnid}, which has no folder in "
                f"{folder.parent / 'train'}: restore the training class or remove its validation images."
            )
        if name not in present:
            raise UserError(f"{annotations} labels {name}, which is not in {images}: restore the image.")
        labels[name] = label_of[wnid]
    unlabelled = sorted(present - labels.keys())
    if unlabelled:
        raise UserError(f"{images / unlabelled[0]} has no line in {annotations}: restore the original file.")
    return [images / name for name in labels], list(labels.values())


def _jpegs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in entries(folder) if path.suffix.lower() in (".jpeg", ".jpg")]
