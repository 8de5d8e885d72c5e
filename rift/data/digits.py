"""scikit-learn's embedded handwritten digits: real data that needs no download."""

from __future__ import annotations

from pathlib import Path

import torch

from rift.data.splits import Source, Split
from rift.randomness import permutation

TEST_FRACTION = 0.2


def read_digits(root: Path, *, download: bool, image_size: int | None, cache: Path) -> Source:
    """1438 training and 359 test images, (1, 8, 8), stratified.

    The set has no official split, so this fixed one takes its place: no option and no seed changes it.
    Grey levels 0…16 become 0…255, rounded.
    """
    from sklearn.datasets import load_digits  # slow to import, and only this set needs it

    raw = load_digits()
    images = torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).to(torch.int64)
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero().squeeze(1)
        order = permutation(("digits test set", label), len(members))
        in_test[members[order[: round(TEST_FRACTION * len(members))]]] = True
    train, test = (
        Split(images[part], labels[part], torch.arange(int(part.sum()))) for part in (~in_test, in_test)
    )
    return Source(train, test, tuple(str(name) for name in raw.target_names))
