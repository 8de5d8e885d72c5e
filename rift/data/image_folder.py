"""A user's own images: `<root>/train/<class>/*` and `<root>/test/<class>/*`."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from rift.data.cache import decode_cached
from rift.data.files import class_names, entries
from rift.data.splits import Source, Split
from rift.errors import UserError
from rift.places import check_folders


def read_image_folder(root: Path, *, download: bool, image_size: int | None, cache: Path) -> Source:
    """RGB images in the formats of `decode.FORMATS`; labels are the positions of the sorted class folders.

    All images must have one size, unless `image_size` is set: then the shorter side is resized to it and the
    centre cropped. Files whose names are no images' (notes, hidden files) are passed over.

    Raises:
        UserError: missing folders, different classes in `train` and `test`, names that harm a terminal, or
            images that cannot be used (see `decode_image`).
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"dataset.image_size={image_size} must be at least 1 pixel.")
    check_folders("image_folder", root)
    classes, in_test = (_class_names(root / part) for part in ("train", "test"))
    if classes != in_test:
        odd = sorted(set(classes) ^ set(in_test))[0]
        has, lacks = ("train", "test") if odd in classes else ("test", "train")
        raise UserError(
            f"class folder '{odd}' is in {root / has} but not in {root / lacks}: give both the same classes."
        )
    paths, labels = {}, {}
    for part in ("train", "test"):
        listed = [_images(root / part / name) for name in classes]
        paths[part] = [path for members in listed for path in members]
        labels[part] = torch.tensor([label for label, members in enumerate(listed) for _ in members])
    images = decode_cached("image_folder", root, paths, size=image_size, cache=cache)
    train, test = (
        Split(images[part], labels[part], torch.arange(len(labels[part]))) for part in ("train", "test")
    )
    return Source(train, test, classes)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = class_names(folder)
    if len(names) < 2:
        raise UserError(
            f"{folder} holds {len(names)} class folders: put each of two or more classes in its own."
        )
    return names


def _images(folder: Path) -> list[Path]:
    # Of all formats that Pillow knows: one that is not read here is refused, never left out in silence.
    known = Image.registered_extensions()
    paths = [path for path in entries(folder) if path.suffix.lower() in known]
    if not paths:
        raise UserError(f"{folder} holds no images: add some or remove the class folder.")
    return paths
