"""When a difference counts that was measured over seeds: the one place that says so.

AT and RiFT of one seed share their training, so their difference is judged by its own spread over seeds. A
single seed is judged by its test images (`rift.comparison`), two by nothing. Our mean and the paper's are of
different trainings, and the paper gives no spread but a bound for all its metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import t as student

LEVEL = 0.95
LEAST_SEEDS = 3  # two are judged by nothing
PAPER_STD = 0.20  # points; "standard deviations below 0.20" over three seeds, Sec. 5.1
PAPER_SEEDS = 3
# Points; five of 10 000 images. Three differences may be equal by chance, and are not known better than that.
LEAST_STD = 0.05


def over_seeds(deltas: Sequence[float]) -> str:
    """`better`, `worse` or `no difference seen`, by a t interval of the mean difference.

    Args:
        deltas: RiFT minus AT in points, one for each seed.
    """
    if len(deltas) < LEAST_SEEDS:
        return "too few seeds"
    low, high = interval_of_mean(deltas, LEAST_STD)
    if low <= 0 <= high:
        return "no difference seen"
    return "better" if low > 0 else "worse"


def interval_of_mean(values: Sequence[float], least_std: float = 0.0) -> tuple[float, float]:
    """The t interval of the mean of two or more values, at the level used everywhere.

    Args:
        values: one for each seed.
        least_std: the standard deviation is taken to be no smaller than this.
    """
    count = len(values)
    mean = math.fsum(values) / count
    std = max(math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1)), least_std)
    reach = float(student.ppf((1 + LEVEL) / 2, count - 1)) * std / math.sqrt(count)
    return mean - reach, mean + reach


def against_paper(values: Sequence[float], reported: float) -> str:
    """`agrees`, `above` or `below`: our mean beside the paper's, both with the spread of independent seeds.

    Args:
        values: accuracies in percent, or differences in points, one for each seed.
        reported: the paper's mean.
    """
    count = len(values)
    mean = math.fsum(values) / count
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1)) if count > 1 else 0.0
    std = max(spread, PAPER_STD)  # a few seeds may lie closer together than many do
    error = math.sqrt(std**2 / count + PAPER_STD**2 / PAPER_SEEDS)
    if abs(mean - reported) <= 1.96 * error:
        return "agrees"
    return "above" if mean > reported else "below"
