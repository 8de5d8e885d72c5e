"""Augmented batches, cut out of the whole set on its own device.

An image's crop and flip depend on (seed, epoch, its index) alone: neither the batch size, nor the order,
nor the device changes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rift.data.splits import Split
from rift.errors import UserError, choose_from
from rift.randomness import permutation, uniform

PADDING_MODES = ("zeros", "reflect")


class Batch(NamedTuple):
    """`images` (B, C, H, W) float32 in [0, 1]; `labels` and `indices` (in the official split) (B,) int64."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def batches(
    split: Split,
    batch_size: int,
    *,
    epoch: int = 0,
    seed: int = 0,
    shuffle: bool = False,
    padding: int = 0,
    padding_mode: str = "zeros",
    flip: bool = False,
    channels_last: bool = False,
    skip: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """One pass over `split`, every image once; the last batch may be smaller.

    Args:
        split: the images; batches are on its device.
        batch_size: images in a batch.
        epoch, seed: decide the order, the crops and the flips.
        shuffle: a new random order for each epoch, instead of the split's own.
        padding: pixels added on each side before a random crop back to the original size; 0 for no crop.
        padding_mode: what is added: "zeros" (black) or "reflect" (mirrored without repeating the border).
        flip: mirror every other image (at random) left to right.
        channels_last: memory format of the batches' images; the values are the same.
        skip: how many of the first batches are left out; the others are the same.
        share: (r, n): of each batch the r-th of n parts alone, which differ by an image at most.

    Raises:
        UserError: unknown padding mode, or numbers that make no sense.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is below 1: set it to at least 1.")
    if padding_mode not in PADDING_MODES:
        raise UserError(f"unknown padding mode '{padding_mode}': {choose_from(padding_mode, PADDING_MODES)}.")
    if padding < 0:
        raise UserError(f"crop padding {padding} is negative: use 0 for no random crop.")
    if padding_mode == "reflect" and padding >= min(split.images.shape[2:]):
        height, width = split.images.shape[2:]
        raise UserError(f"{height}×{width} images cannot be padded by {padding} reflected pixels: use fewer.")
    return _generate(
        split, batch_size, epoch, seed, shuffle, padding, padding_mode, flip, channels_last, skip, share
    )


def _generate(
    split: Split,
    batch_size: int,
    epoch: int,
    seed: int,
    shuffle: bool,
    padding: int,
    padding_mode: str,
    flip: bool,
    channels_last: bool,
    skip: int,
    share: tuple[int, int],
) -> Iterator[Batch]:
    count, device = len(split), split.device
    order = permutation(("order", seed, epoch), count) if shuffle else torch.arange(count)
    order = order.to(device)
    # All random numbers of the epoch at once: two small tables instead of forty small kernels per batch.
    indices = split.indices[order]
    labels = split.labels[order]
    corners = crop_offsets(indices, padding, seed=seed, epoch=epoch) if padding else None
    mirrored = flip_mask(indices, seed=seed, epoch=epoch) if flip else None
    cropper = _cropper(split, padding, padding_mode, channels_last) if padding else None
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    for start in range(skip * batch_size, count, batch_size):
        size, (rank, parts) = min(batch_size, count - start), share
        part = slice(start + size * rank // parts, start + size * (rank + 1) // parts)
        if cropper is not None and corners is not None:
            pixels = cropper.crop(order[part], corners[part])
        elif shuffle:
            pixels = split.images.index_select(0, order[part])
        else:
            pixels = split.images[part]
        if mirrored is not None:
            pixels = _mirror(pixels, mirrored[part])
        # A copy in any case: a network may write over what it is given.
        images = pixels.to(torch.float32, memory_format=memory_format, copy=True)
        if not pixels.is_floating_point():
            images.div_(255)
        yield Batch(images, labels[part], indices[part])


def crop_offsets(indices: Tensor, padding: int, *, seed: int, epoch: int) -> Tensor:
    """(B, 2) int64 in [0, 2·padding]: the crop's top row and left column in the padded image."""
    # uniform() is at most 1 − 2⁻²⁴, whose float32 product with any small integer stays below that integer.
    return (uniform(("crop", seed, epoch), indices, 2) * (2 * padding + 1)).to(torch.int64)


def flip_mask(indices: Tensor, *, seed: int, epoch: int) -> Tensor:
    """(B,) bool: which images are mirrored."""
    return uniform(("flip", seed, epoch), indices, 1)[:, 0] < 0.5


def _mirror(pixels: Tensor, mask: Tensor) -> Tensor:
    """Mirrors the images where `mask` is set.

    Selects with xor and a byte mask: `torch.where` with a condition that broadcasts is five times slower on a
    CPU, and indexing with the mask would make a GPU wait for the host.
    """
    if pixels.is_floating_point():
        return torch.where(mask[:, None, None, None], pixels.flip(3), pixels)
    byte_mask = mask.to(torch.uint8).neg_()[:, None, None, None]  # 0 or 255
    difference = pixels.flip(3).bitwise_xor_(pixels).bitwise_and_(byte_mask)
    return difference.bitwise_xor_(pixels)


class _Cropper:
    """The padded set, and a view of it from which a batch of crops is gathered in one copy.

    The view has one entry for every number of the padded set: the run of numbers, as long as a row of a crop,
    that starts there. A crop is then a list of row starts. Copying whole rows is five times faster on a CPU
    than indexing a view of whole crops, where every byte has an address of its own.
    """

    def __init__(self, images: Tensor, padding: int, mode: str, channels_last: bool) -> None:
        channels, height, width = images.shape[1:]
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        padded = _pad(images, padding, mode, memory_format)
        # In memory a row holds all channels of its pixels (one plane), or the pixels of one channel of many.
        planes, step = (1, channels) if channels_last else (channels, 1)
        self._row_size = (width + 2 * padding) * step
        self._plane_size = (height + 2 * padding) * self._row_size
        self._image_size = planes * self._plane_size
        self._step = step
        self._shape = (height, width, channels) if channels_last else (channels, height, width)
        self._channels_last = channels_last
        rows = torch.arange(height, device=images.device) * self._row_size
        self._rows = (torch.arange(planes, device=images.device)[:, None] * self._plane_size + rows).flatten()
        run = width * step
        self._runs = padded.as_strided((padded.numel() - run + 1, run), (1, 1))

    def crop(self, positions: Tensor, corners: Tensor) -> Tensor:
        """(B, C, H, W) crops of the images at `positions` whose top left is at `corners`, (B, 2)."""
        starts = positions * self._image_size + corners[:, 0] * self._row_size + corners[:, 1] * self._step
        runs = self._runs.index_select(0, (starts[:, None] + self._rows).flatten())
        crops = runs.view(len(positions), *self._shape)
        return crops.permute(0, 3, 1, 2) if self._channels_last else crops


def _pad(images: Tensor, padding: int, mode: str, memory_format: torch.memory_format) -> Tensor:
    """(N, C, H + 2·padding, W + 2·padding); written out because torch reflects no bytes."""
    count, channels, height, width = images.shape
    shape = (count, channels, height + 2 * padding, width + 2 * padding)
    padded = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=memory_format).zero_()
    padded[:, :, padding : padding + height, padding : padding + width] = images
    if mode == "reflect":
        for dim, size in ((2, height), (3, width)):
            last = padding + size - 1
            for away in range(1, padding + 1):
                padded.select(dim, padding - away).copy_(padded.select(dim, padding + away))
                padded.select(dim, last + away).copy_(padded.select(dim, last - away))
    return padded


# The padded set is made once and serves every epoch. It goes when its split goes, and only the latest of a
# split is kept, so that memory is bounded when AT pads with zeros and fine-tuning with reflections.
_croppers: WeakKeyDictionary[Split, tuple[tuple[int, str, bool], _Cropper]] = WeakKeyDictionary()


def _cropper(split: Split, padding: int, mode: str, channels_last: bool) -> _Cropper:
    wanted = (padding, mode, channels_last)
    kept = _croppers.get(split)
    if kept is None or kept[0] != wanted:
        _croppers.pop(split, None)  # freed before the next one is made
        kept = (wanted, _Cropper(split.images, *wanted))
        _croppers[split] = kept
    return kept[1]
