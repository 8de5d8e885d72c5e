"""What must hold of every data set before a run may use it."""

from __future__ import annotations

import torch

from rift.data.splits import Source, Split
from rift.errors import UserError

# ((C, H, W), classes) of the sets whose images are known by their name.
SHAPES = {
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tiny_imagenet": ((3, 64, 64), 200),
    "digits": ((1, 8, 8), 10),
}
# (training images, test images) of sets whose size is fixed.
OFFICIAL_COUNTS = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}


def check_source(name: str, source: Source) -> None:
    """Checks types, shapes, label range, counts, and that every class can be learnt.

    Raises:
        UserError: one sentence on the first thing that does not hold.
    """
    for part, split in (("training", source.train), ("test", source.test)):
        _check_split(f"the {part} set of {name}", split, len(source.classes))
    if source.train.images.shape[1:] != source.test.images.shape[1:]:
        train, test = (tuple(split.images.shape[1:]) for split in (source.train, source.test))
        raise UserError(
            f"images of {name} are {train} in training but {test} in the test set: make them equal."
        )
    present = torch.bincount(source.train.labels, minlength=len(source.classes))
    if (present == 0).any():
        absent = source.classes[int((present == 0).nonzero()[0])]
        raise UserError(
            f"class '{absent}' has no image in the training set of {name}: add some or remove the class."
        )
    counts = (len(source.train), len(source.test))
    if counts != OFFICIAL_COUNTS.get(name, counts):
        raise UserError(
            f"{name} has {counts[0]} training and {counts[1]} test images instead of the official "
            f"{OFFICIAL_COUNTS[name][0]} and {OFFICIAL_COUNTS[name][1]}: fetch its files again."
        )


def _check_split(what: str, split: Split, num_classes: int) -> None:
    images, labels, indices = split.images, split.labels, split.indices
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise UserError(f"{what} is {tuple(images.shape)} {images.dtype} instead of (N, C, H, W) uint8.")
    if not len(images) == len(labels) == len(indices):
        raise UserError(f"{what} has {len(images)} images, {len(labels)} labels and {len(indices)} indices.")
    if len(images) == 0:
        raise UserError(f"{what} is empty: check that its files are where they belong.")
    if labels.dtype != torch.int64 or indices.dtype != torch.int64:
        raise UserError(f"{what} has labels {labels.dtype} and indices {indices.dtype} instead of int64.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(f"{what} has labels from {low} to {high}, outside its {num_classes} classes.")
