"""Two networks on the same images: is one better, worse, or is no difference seen?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rift.sign_test import sign_test

RESAMPLES = 2000
LEVEL = 0.95
CHANCE = 0.05  # p-value from which on a difference may be chance
_CHUNK = 50  # resamples at a time: 50 × 10 000 images × a few runs are some MB


@dataclass(frozen=True)
class Interval:
    """A difference of two accuracies, and where it lies with 95 % confidence; fractions.

    Attributes:
        delta: second minus first.
        low, high: ends of the percentile interval.
        images: how many were resampled.
        p_value: of an exact sign test over the images on which the two differ.
    """

    delta: float
    low: float
    high: float
    images: int
    p_value: float

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no difference seen`: of the second network.

        Where few images differ, resampling them cannot tell chance: the sign test must agree.
        """
        if self.p_value >= CHANCE or self.low <= 0 <= self.high:
            return "no difference seen"
        return "better" if self.low > 0 else "worse"


def mcnemar(first: Tensor, second: Tensor) -> dict[str, float | int]:
    """Exact McNemar test of two networks on the same images.

    Args:
        first, second: (N,) verdicts, non-zero where the network is right.

    Returns:
        How many images only the one and only the other has right, and the two-sided p-value of their
        being equally likely.
    """
    first, second = first.bool(), second.bool()
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    p_value = sign_test(only_first, only_second)
    return {"only_at": only_first, "only_rift": only_second, "p_value": p_value}


def paired_bootstrap(first: Tensor, second: Tensor, *, seed: int = 0) -> Interval:
    """Percentile interval of the difference of two networks' accuracies, over resampled test images.

    An image is drawn with all that was measured on it, so its many versions are one cluster.

    Args:
        first, second: (R, N) or (N,) in [0, 1], what each network has right of each image: 0 or 1, or the
            share of an image's versions. Of several rows (attack runs) the worst mean counts, each time.
        seed: of the resampling; the same images are drawn for both networks.
    """
    first, second = (torch.atleast_2d(values).cpu().double() for values in (first, second))
    images, rows = first.shape[1], len(first)
    values = torch.cat([first, second])

    def difference(means: Tensor) -> Tensor:
        return means[..., rows:].amin(-1) - means[..., :rows].amin(-1)

    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(RESAMPLES // _CHUNK):
        drawn = torch.randint(images, (_CHUNK, images), generator=generator)
        times = torch.zeros(_CHUNK, images, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        found.append(difference(times @ values.T / images))
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.cat(found).quantile(ends).tolist()
    by_image = second.mean(dim=0) - first.mean(dim=0)
    p_value = sign_test(int((by_image < 0).sum()), int((by_image > 0).sum()))
    return Interval(difference(values.mean(dim=1)).item(), low, high, images, p_value)
