"""Loading: digits, limits, the held-out part, identity, and the checks that every set passes."""

from __future__ import annotations

import json

import pytest
import torch
from sklearn.datasets import load_digits

from rift.data import DATASETS, Dataset, Split, load_dataset
from rift.data.checks import check_source
from rift.data.splits import Source
from rift.errors import UserError


def digits(**options):
    return load_dataset("digits", **{"root": "/nonexistent", "mean": (0.5,), "std": (0.25,), **options})


def toy_source(train_labels, test_labels, classes=3):
    def split(labels):
        labels = torch.tensor(labels, dtype=torch.int64)
        images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
        return Split(images.contiguous(), labels, torch.arange(len(labels)))

    return Source(split(train_labels), split(test_labels), tuple("abcdefgh"[:classes]))


@pytest.fixture
def toy(monkeypatch):
    """Registers a set with the given labels, whose pixels are the image's position."""

    def load(train_labels, test_labels=(0, 1, 2), **options):
        source = toy_source(train_labels, test_labels)
        monkeypatch.setitem(DATASETS, "toy", lambda root, **_: source)
        return load_dataset("toy", **{"root": ".", "mean": [0.5], "std": [0.5], **options})

    return load


def test_digits_are_all_there_once_and_stratified():
    data = digits()
    assert (data.name, data.shape, data.num_classes) == ("digits", (1, 8, 8), 10)
    assert (len(data.train), len(data.test), data.holdout) == (1438, 359, None)
    raw = load_digits()
    share = data.test.labels.bincount() / torch.from_numpy(raw.target).bincount()
    assert (share - 0.2).abs().max() < 0.5 / 174  # rounded per class; the smallest has 174

    ours = torch.cat([data.train.images, data.test.images]).flatten(1)
    labels = torch.cat([data.train.labels, data.test.labels])
    expected = torch.floor(torch.from_numpy(raw.images).flatten(1) * 255 / 16 + 0.5).to(torch.uint8)
    ours = sorted((image.tolist(), label) for image, label in zip(ours, labels.tolist(), strict=True))
    assert ours == sorted((i.tolist(), t) for i, t in zip(expected, raw.target.tolist(), strict=True))


def test_digits_split_is_fixed():
    reference = digits().identity["sha256"]
    assert reference == digits(split_seed=7).identity["sha256"]
    assert reference["test"] == "7898e4e3da635d5bccaef984ded58b5a053656cb2657bc14e54675eae26c26f3"


def test_limit_takes_the_first_of_each_class_in_official_order(toy):
    data = toy([0, 0, 0, 1, 0, 2, 1, 2, 1, 1], train_limit=6)
    assert data.train.indices.tolist() == [0, 1, 3, 5, 6, 7]
    assert data.train.images[:, 0, 0, 0].tolist() == data.train.indices.tolist()
    assert data.train.labels.tolist() == [0, 0, 1, 2, 1, 2]
    # Seven of three classes: the remainder goes to the first class; a class that runs out is made up for.
    assert toy([0, 0, 0, 1, 0, 2, 1, 2, 1, 1], train_limit=7).train.indices.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert toy([0, 0, 0, 0, 1, 2], train_limit=5).train.indices.tolist() == [0, 1, 2, 4, 5]


def test_limits_ignore_seeds_and_keep_official_positions():
    small = digits(train_limit=100, test_limit=50, split_seed=1)
    again = digits(train_limit=100, test_limit=50, split_seed=2)
    assert torch.equal(small.train.indices, again.train.indices)
    assert small.train.labels.bincount().tolist() == [10] * 10
    assert small.test.labels.bincount().tolist() == [5] * 10
    assert torch.equal(digits().test.images[small.test.indices], small.test.images)


def test_holdout_is_balanced_disjoint_and_fixed_by_its_seed():
    whole = digits()
    data = digits(holdout_fraction=0.25, split_seed=3)
    both = torch.cat([data.train.indices, data.holdout.indices])
    assert torch.equal(both.sort().values, whole.train.indices)
    expected = [round(0.25 * n) for n in whole.train.labels.bincount().tolist()]
    assert data.holdout.labels.bincount().tolist() == expected
    for split in (data.train, data.holdout):
        assert torch.equal(split.images, whole.train.images[split.indices])
        assert torch.equal(split.labels, whole.train.labels[split.indices])
        assert (split.indices.diff() > 0).all()
    assert torch.equal(digits(holdout_fraction=0.25, split_seed=3).holdout.indices, data.holdout.indices)
    assert not torch.equal(digits(holdout_fraction=0.25, split_seed=4).holdout.indices, data.holdout.indices)
    assert torch.equal(data.test.images, whole.test.images)


def test_identity_is_json_and_changes_with_what_it_names(toy):
    data = toy([0, 1, 2, 0, 1, 2], holdout_fraction=0.5, split_seed=1)
    assert json.loads(json.dumps(data.identity)) == data.identity
    assert data.identity["counts"] == {"train": 3, "holdout": 3, "test": 3}
    assert data.identity["shape"] == [1, 2, 2] and data.identity["classes"] == ["a", "b", "c"]
    assert data.identity["holdout"]["fraction"] == 0.5 and data.identity["holdout"]["split_seed"] == 1

    plain = toy([0, 1, 2, 0, 1, 2]).identity
    assert plain["holdout"] is None
    assert plain["sha256"] == data.identity["sha256"]
    assert plain["sha256"]["train"] != toy([0, 1, 2, 0, 2, 1]).identity["sha256"]["train"]
    assert plain["sha256"]["train"] != toy([0, 1, 2, 0, 1, 2], train_limit=3).identity["sha256"]["train"]
    seeds = {
        toy([0, 1, 2] * 9, holdout_fraction=0.4, split_seed=s).identity["holdout"]["sha256"] for s in range(3)
    }
    assert len(seeds) == 3


def test_splits_by_name_and_device():
    data = digits(holdout_fraction=0.1)
    assert data.split("train") is data.train
    assert data.split("holdout") is data.holdout
    assert data.split("test") is data.test
    moved = data.to("meta")
    assert isinstance(moved, Dataset)
    assert {s.device.type for s in (moved.train, moved.holdout, moved.test)} == {"meta"}
    assert data.train.to("cpu") is data.train  # so that its padded copy is kept
    with pytest.raises(UserError, match="did you mean 'train'"):
        data.split("trian")
    with pytest.raises(UserError, match=r"dataset\.holdout_fraction .* protocol=holdout"):
        digits().split("holdout")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test_limit": 9}, r"dataset.test_limit=9 is less than the 10 classes"),
        ({"holdout_fraction": 1.0}, "holdout_fraction=1"),
        ({"holdout_fraction": -0.1}, "holdout_fraction=-0.1"),
        ({"holdout_fraction": 0.999}, "every class has images on both sides"),
        ({"image_size": 32}, "image_size=32 does not fit digits"),
        ({"mean": (0.5,) * 3}, "mean has 3 values .* 1 channel:"),
        ({"std": (0.0,)}, "above 0"),
        ({"mean": (float("nan"),)}, "not finite"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(UserError, match=words) as error:
        digits(**options)
    assert "\n" not in str(error.value)


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'tiny_imagenet'"):
        load_dataset("tinyimagenet", root=".", mean=(0,), std=(1,))


def test_limits_are_ceilings(toy):
    assert len(toy([0, 1, 2, 0, 1, 2], train_limit=400).train) == 6
    whole = toy([0, 1, 2, 0, 1, 2])
    assert toy([0, 1, 2, 0, 1, 2], train_limit=7).identity == whole.identity


def test_limits_can_be_kept_from_leaving_classes_without_images(toy):
    labels = [0, 1, 2] * 4
    assert len(toy(labels, train_limit=3, at_least_per_class=2).train) == 6
    assert len(toy(labels, train_limit=8, at_least_per_class=2).train) == 8
    assert len(toy(labels, train_limit=3, at_least_per_class=9).train) == 12


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([0, 1, 3], [0], "labels from 0 to 3"),
        ([0, 1, -1], [0], "labels from -1 to 1"),
        ([0, 1, 1], [2], "class 'c' has no image"),
        ([0, 1, 2], [], "empty"),
    ],
)
def test_labels_and_classes_are_checked(train, test, words):
    with pytest.raises(UserError, match=words):
        check_source("toy", toy_source(train, test))


def test_types_shapes_and_counts_are_checked():
    good = toy_source([0, 1, 2], [0, 1, 2])
    check_source("toy", good)
    train = good.train
    for bad, words in [
        (Split(train.images.float(), train.labels, train.indices), "uint8"),
        (Split(train.images[0], train.labels, train.indices), "N, C, H, W"),
        (Split(train.images[:2], train.labels, train.indices), "2 images, 3 labels"),
        (Split(train.images, train.labels.int(), train.indices), "int64"),
        (
            Split(train.images[:, :, :1], train.labels, train.indices),
            r"\(1, 1, 2\) in training but \(1, 2, 2\)",
        ),
    ]:
        with pytest.raises(UserError, match=words):
            check_source("toy", good._replace(train=bad))
    with pytest.raises(UserError, match="official 50000 and 10000"):
        check_source("cifar10", good)
