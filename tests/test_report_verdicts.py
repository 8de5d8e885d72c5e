"""The rules by which a difference over seeds counts, on numbers whose answer is known."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_1samp

from rift.report.verdicts import LEAST_STD, PAPER_STD, against_paper, over_seeds


@pytest.mark.parametrize(
    ("deltas", "verdict"),
    [
        ([1.0, 1.1, 0.9], "better"),
        ([-1.0, -1.1, -0.9], "worse"),
        ([1.0, -1.0, 0.2], "no difference seen"),
        ([0.02, 0.02, 0.02], "no difference seen"),  # the paper's robust gain: not testable with three seeds
        ([5.0, 5.1], "too few seeds"),
        ([5.0], "too few seeds"),
    ],
)
def test_over_seeds(deltas, verdict):
    assert over_seeds(deltas) == verdict


def test_it_is_the_t_test_where_the_spread_is_not_tiny():
    for deltas in ([0.5, 0.9, 0.1], [0.5, 0.9, 0.1, 0.7, 0.6], [0.3, 0.5, 0.4], [-0.2, 0.4, 0.9, 0.8]):
        significant = ttest_1samp(deltas, 0.0).pvalue < 0.05
        assert (over_seeds(deltas) != "no difference seen") is bool(significant)


def test_three_equal_differences_are_known_no_better_than_five_images():
    reach = 4.302653 * LEAST_STD / math.sqrt(3)
    assert over_seeds([reach + 0.001] * 3) == "better"
    assert over_seeds([reach - 0.001] * 3) == "no difference seen"


@pytest.mark.parametrize(
    ("values", "reported", "verdict"),
    [
        ([81.4, 81.5, 81.6], 81.46, "agrees"),
        ([82.4, 82.5, 82.6], 81.46, "above"),
        ([80.4, 80.5, 80.6], 81.46, "below"),
        ([81.9], 81.46, "agrees"),  # one seed, spread 0.2: 1.96 · 0.23 = 0.45
        ([82.0], 81.46, "above"),
        ([79.0, 84.0, 81.0], 81.46, "agrees"),  # our own spread is larger than the paper's
    ],
)
def test_against_the_paper(values, reported, verdict):
    assert against_paper(values, reported) == verdict


def test_the_bound_for_one_seed():
    reach = 1.96 * PAPER_STD * math.sqrt(1 + 1 / 3)
    assert against_paper([50 + reach - 1e-6], 50.0) == "agrees"
    assert against_paper([50 + reach + 1e-6], 50.0) == "above"
