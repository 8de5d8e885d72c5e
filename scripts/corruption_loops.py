"""The benchmark's rows on corrupted images: making them, and a whole evaluation on them."""

from __future__ import annotations

import corruption_twins
import numpy as np
import textbook
import torch
from timing import Bench
from torch import Tensor

from rift.corruption_names import ALL
from rift.data.corruptions import corrupt
from rift.data.generated import GeneratedSet

SEVERITY = 3
EVALUATED = ("gaussian_noise", "fog", "contrast")


def corruptions(bench: Bench) -> None:
    """All 19 at one severity, against a plain reading of each definition, image by image."""
    count = bench.sizes.corrupted
    images, indices = bench.split.images[:count], bench.split.indices[:count]
    plain = images.permute(0, 2, 3, 1).cpu().numpy()

    def fast() -> None:
        for name in ALL:
            corrupt(images, indices, name, SEVERITY)

    def slow() -> None:
        generator = np.random.default_rng(0)
        for name in ALL:
            for image in plain:
                corruption_twins.twin(name, image, SEVERITY, generator)

    for name in ALL:  # tables are made once per process
        corrupt(images[:1], indices[:1], name, SEVERITY)
    bench.compare(slow, {"corruptions": fast}, images=len(ALL) * count, flops=0, once=True)


@torch.no_grad()
def corruption_eval(bench: Bench) -> None:
    """A few versions made and classified, against a DataLoader over the same images in files' form."""
    count, device = bench.sizes.attack, bench.runtime.device
    split = bench.split.subset(torch.arange(count))
    generated = GeneratedSet(split)
    saved = {
        name: torch.cat(list(generated.batches(name, SEVERITY, count, device))).cpu() for name in EVALUATED
    }

    def fast() -> None:
        for name in EVALUATED:
            for images in generated.batches(name, SEVERITY, bench.runtime.batch_size, device):
                right(bench.fast(bench.runtime.laid_out(images.float() / 255)), split.labels)

    def slow() -> None:
        for name in EVALUATED:
            loader = textbook.loader(saved[name], split.labels.cpu(), 128, augment=False)
            for x, y in loader:
                right(bench.plain(x.to(device)), y.to(device))

    flops = len(EVALUATED) * count * bench.forward
    bench.compare(slow, {"corruption_eval": fast}, images=len(EVALUATED) * count, flops=flops)


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """How many are classified rightly."""
    return (logits.argmax(dim=1) == labels[: len(logits)]).sum()
