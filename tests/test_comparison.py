"""Two networks on the same images: the interval covers what it should, and the verdict follows from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from rift.comparison import Interval, paired_bootstrap


def verdicts(share, count, seed):
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share).double()


def test_it_is_scipy_s_percentile_interval():
    first, second = verdicts(0.5, 400, 0), verdicts(0.6, 400, 1)
    found = paired_bootstrap(first, second)
    expected = stats.bootstrap(
        ((second - first).numpy(),), np.mean, n_resamples=4000, method="percentile", batch=200
    ).confidence_interval
    assert found.delta == pytest.approx((second - first).mean().item())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)
    assert found.images == 400


def test_an_image_s_versions_are_one_cluster():
    """A share of many versions that are all alike is no better known than one of them."""
    first, second = verdicts(0.5, 300, 0), verdicts(0.55, 300, 1)
    one = paired_bootstrap(first, second)
    many = paired_bootstrap(first.repeat(95, 1).mean(0), second.repeat(95, 1).mean(0))
    assert (one.low, one.high) == pytest.approx((many.low, many.high), abs=1e-12)


def test_the_worst_run_counts_in_every_resample():
    runs = torch.stack([verdicts(0.5, 500, seed) for seed in range(3)])
    found = paired_bootstrap(runs, runs)
    assert (found.delta, found.low, found.high) == (0, 0, 0)
    other = torch.stack([verdicts(0.6, 500, seed) for seed in range(3, 6)])
    assert paired_bootstrap(runs, other).delta == pytest.approx(
        (other.mean(1).min() - runs.mean(1).min()).item()
    )


def test_it_covers_the_true_difference_about_as_often_as_it_says():
    """Of 60 intervals at 95 %, seven or more misses have probability 0.03."""
    misses = 0
    for trial in range(60):
        shared = torch.rand(250, generator=torch.Generator().manual_seed(trial))
        first, second = (shared < 0.5).double(), (shared < 0.5).double()
        flipped = torch.rand(250, generator=torch.Generator().manual_seed(1000 + trial)) < 0.2
        second = torch.where(flipped, verdicts(0.75, 250, 2000 + trial), second)  # true difference: 0.05
        found = paired_bootstrap(first, second, seed=trial)
        misses += not found.low <= 0.05 <= found.high
    assert misses <= 8


@pytest.mark.parametrize(
    ("low", "high", "p", "words"),
    [
        (0.01, 0.02, 0.01, "better"),
        (-0.02, -0.01, 0.01, "worse"),
        (-0.01, 0.01, 0.01, "no difference seen"),
        (0.0, 0.1, 0.01, "no difference seen"),
        (0.01, 0.02, 0.05, "no difference seen"),
        (-0.02, -0.01, 0.06, "no difference seen"),
    ],
)
def test_the_verdict(low, high, p, words):
    assert Interval(0.0, low, high, 10, p).verdict == words


@pytest.mark.parametrize(
    ("differing", "words"), [(4, "no difference seen"), (5, "no difference seen"), (6, "better")]
)
def test_a_handful_of_images_is_no_evidence(differing, words):
    """All on one side, so no resample falls below zero; but five coins come up alike one time in 16."""
    first = torch.zeros(300)
    second = first.clone()
    second[:differing] = 1
    found = paired_bootstrap(first, second)
    assert found.p_value == pytest.approx(2 * 0.5**differing)
    assert found.verdict == words


def test_the_same_seed_gives_the_same_interval():
    first, second = verdicts(0.5, 200, 0), verdicts(0.6, 200, 1)
    assert paired_bootstrap(first, second) == paired_bootstrap(first, second)
