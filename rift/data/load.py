"""From a name and a folder to a checked `Dataset`: limits, the held-out part, and the data's identity."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rift import plugins
from rift.data.checks import check_source
from rift.data.cifar import read_cifar10, read_cifar100
from rift.data.digits import read_digits
from rift.data.image_folder import read_image_folder
from rift.data.splits import Dataset, Source, Split
from rift.data.tiny_imagenet import read_tiny_imagenet
from rift.errors import UserError, choose_from
from rift.randomness import permutation

# A reader takes (root, download=, image_size=, cache=) and ignores what does not concern it.
DATASETS: dict[str, Callable[..., Source]] = {
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "tiny_imagenet": read_tiny_imagenet,
    "digits": read_digits,
    "image_folder": read_image_folder,
}


def load_dataset(
    name: str,
    *,
    root: str | Path,
    download: bool = False,
    mean: Sequence[float],
    std: Sequence[float],
    train_limit: int | None = None,
    test_limit: int | None = None,
    holdout_fraction: float = 0.0,
    split_seed: int = 0,
    image_size: int | None = None,
    cache: str | Path | None = None,
    at_least_per_class: int = 0,
    plugin_options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Reads and checks a data set; its tensors are on the CPU.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds the set's own folder (for `image_folder`, that holds `train` and `test`).
        download: fetch the set into `root` if it is not there, where it can be fetched.
        mean, std: of the images in [0, 1], one number for each channel.
        train_limit, test_limit: use at most that many images, the first of each class, as evenly over the
            classes as can be; the same ones whatever the seeds. None for all.
        holdout_fraction: in [0, 1): part of each class of the (limited) training set to set aside; if it is
            not 0, at least one image of each.
        split_seed: chooses the images set aside; nothing else depends on it.
        image_size: side in pixels to resize and crop to, for `image_folder` only.
        cache: folder for decoded images; `<root>/.rift-cache` if None.
        at_least_per_class: limits that would leave fewer images of each class on average are raised.
        plugin_options: of another package's reader, its own keyword arguments.

    Returns:
        The data set. Its `identity` holds `name`, `shape`, `classes`, `counts` of each split, `sha256` of the
        images and labels of `train` (before the holdout is taken out) and `test` in official order after
        limits, and `holdout`: None or `fraction`, `split_seed` and the `sha256` of its indices.

    Raises:
        UserError: unknown name, missing or damaged files, or options that do not fit the set.
    """
    others = plugins.installed("dataset")
    if name not in (*DATASETS, *others):
        raise UserError(f"unknown dataset '{name}': {choose_from(name, [*DATASETS, *others])}.")
    if not 0.0 <= holdout_fraction < 1.0:
        raise UserError(f"dataset.holdout_fraction={holdout_fraction:g} must be at least 0 and below 1.")
    root = Path(root).expanduser()
    cache = root / ".rift-cache" if cache is None else Path(cache).expanduser()

    reader, own = DATASETS.get(name), {}
    if reader is None:
        own = plugins.with_options("dataset", name, plugin_options or {}, ("download", "image_size", "cache"))
        reader = plugins.load("dataset", name)
    source = reader(root, download=download, image_size=image_size, cache=cache, **own)
    check_source(name, source)
    channels, height, width = source.train.images.shape[1:]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise UserError(
            f"dataset.image_size={image_size} does not fit {name}, whose images are {height}×{width}: "
            "leave it unset."
        )
    _check_normalisation(name, mean, std, channels)

    num_classes = len(source.classes)
    least = at_least_per_class * num_classes
    train = _limited(source.train, train_limit, num_classes, "dataset.train_limit", least)
    test = _limited(source.test, test_limit, num_classes, "dataset.test_limit", least)
    sums = {"train": _digest(train.images, train.labels), "test": _digest(test.images, test.labels)}
    holdout = None
    if holdout_fraction > 0:
        train, holdout = _set_aside(train, holdout_fraction, split_seed, num_classes)

    identity: dict[str, Any] = {
        "name": name,
        "shape": [channels, height, width],
        "classes": list(source.classes),
        "counts": {"train": len(train), "holdout": 0 if holdout is None else len(holdout), "test": len(test)},
        "sha256": sums,
        "holdout": None,
    }
    if about := plugins.identity("dataset", name):
        identity["plugin"] = {**dict(about), "options": own}
    if holdout is not None:
        identity["holdout"] = {
            "fraction": holdout_fraction,
            "split_seed": split_seed,
            "sha256": _digest(holdout.indices),
        }
    return Dataset(
        name, train, holdout, test, source.classes, tuple(map(float, mean)), tuple(map(float, std)), identity
    )


def _check_normalisation(name: str, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    for option, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(
                f"dataset.{option} has {len(values)} values but the images of {name} have {channels} "
                f"channel{'s' * (channels > 1)}: give one value for each channel."
            )
        if not all(math.isfinite(value) for value in values):
            raise UserError(f"dataset.{option}={list(values)} is not finite: give ordinary numbers.")
    if min(std) <= 0:
        raise UserError(f"dataset.std={list(std)} must be above 0 for every channel.")


def _limited(split: Split, limit: int | None, num_classes: int, option: str, least: int) -> Split:
    if limit is None or max(limit, least) >= len(split):
        return split
    limit = max(limit, least)
    if limit < num_classes:
        raise UserError(
            f"{option}={limit} is less than the {num_classes} classes: use at least one image of each."
        )
    return split.subset(_first_of_each_class(split.labels, limit, num_classes))


def _first_of_each_class(labels: Tensor, limit: int, num_classes: int) -> Tensor:
    """(limit,) ascending positions, taken in rounds: the first image of each class, then the second, …

    So the classes stay as even as the set allows, and a smaller limit is always part of a larger one.
    """
    round_of = torch.empty_like(labels)
    for label in range(num_classes):
        members = (labels == label).nonzero().squeeze(1)
        round_of[members] = torch.arange(len(members))
    turn = torch.argsort(round_of * num_classes + labels)
    return turn[:limit].sort().values


def _set_aside(train: Split, fraction: float, split_seed: int, num_classes: int) -> tuple[Split, Split]:
    """(the rest, the holdout), both in official order, with `fraction` of each class in the holdout."""
    held = torch.zeros(len(train), dtype=torch.bool)
    for label in range(num_classes):
        members = (train.labels == label).nonzero().squeeze(1)
        count = max(1, round(fraction * len(members)))  # small sets too hold out something of each class
        if count >= len(members):
            raise UserError(
                f"dataset.holdout_fraction={fraction:g} takes {count} of the {len(members)} training images "
                f"of class {label}: choose it so that every class has images on both sides."
            )
        order = permutation(("holdout", split_seed, label), len(members))
        held[members[order[:count]]] = True
    return train.subset((~held).nonzero().squeeze(1)), train.subset(held.nonzero().squeeze(1))


def _digest(*tensors: Tensor) -> str:
    """SHA-256 of the tensors' bytes, in memory order of contiguous tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
