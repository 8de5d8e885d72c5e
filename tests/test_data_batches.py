"""Batches: equal to a per-image textbook loop, and independent of how the set is walked through."""

from __future__ import annotations

import gc
import importlib
import weakref

import pytest
import torch
import torch.nn.functional as F

from rift.data import Split, batches
from rift.errors import UserError
from rift.randomness import permutation, uniform

COUNT = 37


def make_split(channels=3, height=8, width=10, count=COUNT):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return Split(images, labels, torch.arange(count) * 3 + 100)  # official positions differ from ours


def textbook_image(split, position, *, epoch, seed, padding, mode, flip):
    """One image at a time, with F.pad, a slice and a flip, as the usual per-image transforms do it."""
    index = split.indices[position : position + 1]
    image = split.images[position].float()[None]
    if padding:
        height, width = image.shape[2:]
        image = F.pad(image, (padding,) * 4, mode="constant" if mode == "zeros" else "reflect")
        u, v = uniform(("crop", seed, epoch), index, 2)[0].tolist()
        top, left = int(u * (2 * padding + 1)), int(v * (2 * padding + 1))
        image = image[:, :, top : top + height, left : left + width]
    if flip and uniform(("flip", seed, epoch), index, 1).item() < 0.5:
        image = image.flip(3)
    return image[0] / 255


def gather(split, batch_size, **options):
    """Everything one pass yields, keyed by official index."""
    images, labels = {}, {}
    for batch in batches(split, batch_size, **options):
        for image, label, index in zip(batch.images, batch.labels, batch.indices.tolist(), strict=True):
            assert index not in images, "an image came twice"
            images[index], labels[index] = image.clone(), label.item()
    return images, labels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("padding", "mode"), [(0, "zeros"), (2, "zeros"), (4, "zeros"), (3, "reflect"), (7, "reflect")]
)
def test_augmentation_equals_the_textbook_bit_for_bit(channels, channels_last, flip, padding, mode):
    split = make_split(channels)
    options = {"epoch": 3, "seed": 5, "padding": padding, "flip": flip}
    images, labels = gather(split, 8, **options, padding_mode=mode, shuffle=True, channels_last=channels_last)
    assert sorted(images) == split.indices.tolist()
    for position, index in enumerate(split.indices.tolist()):
        expected = textbook_image(split, position, mode=mode, **options)
        assert torch.equal(images[index], expected)
        assert labels[index] == split.labels[position]


def test_offsets_reach_every_corner_and_flips_happen_to_half():
    # A single bright pixel in the middle tells where the crop was taken.
    count = 4000
    images = torch.zeros(count, 1, 7, 7, dtype=torch.uint8)
    images[:, 0, 3, 3] = 255
    split = Split(images, torch.zeros(count, dtype=torch.int64), torch.arange(count))
    (batch,) = batches(split, count, padding=2, seed=1)
    rows, columns = batch.images[:, 0].nonzero()[:, 1], batch.images[:, 0].nonzero()[:, 2]
    share = torch.zeros(7, 7).index_put_((rows, columns), torch.tensor(1 / count), accumulate=True)[1:6, 1:6]
    assert share.sum() == pytest.approx(1, abs=1e-3)
    assert (share - 1 / 25).abs().max() < 5 * (1 / 25 / count) ** 0.5

    images[:] = 0
    images[:, 0, 0, 0] = 255
    (batch,) = batches(split, count, flip=True, seed=1)
    assert (batch.images[:, 0, 0, 6] == 1).float().mean() == pytest.approx(0.5, abs=0.04)


def test_neither_batch_size_nor_order_nor_subset_changes_an_image():
    split = make_split()
    options = {"epoch": 2, "seed": 9, "padding": 2, "flip": True}
    reference, _ = gather(split, COUNT, **options)
    for batch_size, shuffle in [(1, False), (5, True), (100, True)]:
        images, _ = gather(split, batch_size, shuffle=shuffle, **options)
        assert all(torch.equal(images[index], reference[index]) for index in reference)
    part, _ = gather(split.subset(torch.tensor([30, 4, 11])), 2, **options)
    assert sorted(part) == sorted(split.indices[[30, 4, 11]].tolist())
    assert all(torch.equal(part[index], reference[index]) for index in part)


def test_order_is_the_permutation_of_the_epoch_and_the_last_batch_is_kept():
    split = make_split()
    sizes, order = [], []
    for batch in batches(split, 8, shuffle=True, seed=4, epoch=6):
        sizes.append(len(batch.images))
        order += batch.indices.tolist()
    assert sizes == [8, 8, 8, 8, 5]
    assert order == split.indices[permutation(("order", 4, 6), COUNT)].tolist()
    plain = [index for batch in batches(split, 8) for index in batch.indices.tolist()]
    assert plain == split.indices.tolist()


def test_epochs_and_seeds_differ_and_repeat():
    split = make_split()
    options = {"padding": 2, "flip": True, "shuffle": True}

    def one(epoch, seed):
        return next(iter(batches(split, COUNT, epoch=epoch, seed=seed, **options))).images

    assert torch.equal(one(0, 0), one(0, 0))
    assert not torch.equal(one(0, 0), one(1, 0))
    assert not torch.equal(one(0, 0), one(0, 1))


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_types_range_and_memory_format(padding, shuffle, channels_last):
    split = make_split()
    before = split.images.clone()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for batch in batches(split, 16, padding=padding, shuffle=shuffle, flip=True, channels_last=channels_last):
        assert batch.images.dtype == torch.float32
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.images.shape[1:] == split.images.shape[1:]
        assert batch.images.is_contiguous(memory_format=memory_format)
        assert batch.images.min() >= 0 and batch.images.max() <= 1
        batch.images.mul_(2)  # a batch belongs to whoever gets it: the set must not change
    assert torch.equal(split.images, before)


def test_padded_set_is_made_once_per_split_and_freed_with_it(monkeypatch):
    module = importlib.import_module("rift.data.batches")  # the package shows the function of that name
    made = []
    original = module._pad
    monkeypatch.setattr(module, "_pad", lambda *args: made.append(args[1:3]) or original(*args))
    split = make_split()
    for epoch in range(3):
        list(batches(split, 8, padding=2, epoch=epoch))
    assert made == [(2, "zeros")]
    list(batches(split, 8, padding=2, padding_mode="reflect"))
    assert made == [(2, "zeros"), (2, "reflect")]
    cropper = weakref.ref(module._croppers[split][1])
    del split
    gc.collect()
    assert cropper() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding_mode": "reflects", "padding": 1}, "did you mean 'reflect'"),
        ({"padding": -1}, "negative"),
        ({"padding": 8, "padding_mode": "reflect"}, "8×10"),
        ({"batch_size": 0}, "batch size 0"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, words):
    with pytest.raises(UserError, match=words):
        batches(make_split(), options.pop("batch_size", 4), **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_gpu_batches_equal_cpu_batches(channels_last, mode):
    split = make_split()
    options = {
        "padding": 3,
        "padding_mode": mode,
        "flip": True,
        "shuffle": True,
        "channels_last": channels_last,
    }
    for ours, theirs in zip(
        batches(split, 8, **options), batches(split.to("cuda"), 8, **options), strict=True
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert b.is_cuda
            assert torch.equal(a, b.cpu())
