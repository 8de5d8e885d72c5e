"""How a number looks in a table. Fractions go in, percent with two decimals comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

MISSING = "–"


def number(value: float | None, decimals: int = 2, signed: bool = False) -> str:
    """`81.46`, with `signed` `+1.98`; an en dash for None or NaN; never `-0.00`."""
    if value is None or math.isnan(value):
        return MISSING
    value = round(value, decimals) + 0.0  # adding zero turns -0.0 into 0.0
    return f"{value:{'+' if signed else ''}.{decimals}f}"


def p_value(p: float) -> str:
    """`p = 0.032`, two significant digits; tiny ones as a bound."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def interval_ends(interval: Mapping[str, Any]) -> str:
    """`+0.28 … +2.23`: the ends of an interval of fractions, in points."""
    return " … ".join(number(100 * interval[end], signed=True) for end in ("low", "high"))


def binomial_error(accuracy: float, num_images: int) -> float:
    """Standard error of an accuracy (a fraction) measured on `num_images` images."""
    return math.sqrt(accuracy * (1 - accuracy) / num_images)


def paired_error(only_at: int, only_rift: int, num_images: int) -> float:
    """Standard error of the difference of two accuracies measured on the same images, a fraction.

    Only images that one model gets right and the other wrong carry information, as in McNemar's test:
    the difference per image is +1, -1 or 0, and this is the standard error of its mean.
    """
    mean = (only_rift - only_at) / num_images
    return math.sqrt(max(0.0, (only_at + only_rift) / num_images - mean**2) / num_images)


def counted_seeds(count: int) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} seed{'s' * (count != 1)}"


def mean_and_std(values: pd.Series, *, expected: int, decimals: int = 2, signed: bool = False) -> str:
    """`81.46 ± 0.12` over seeds (sample deviation, n-1); one value has no ±.

    If fewer than `expected` values are there, the cell says how many: `81.46 ± 0.12 (2 seeds)`.
    """
    values = values.dropna()
    if values.empty:
        return MISSING
    text = number(values.mean(), decimals, signed)
    if len(values) > 1:
        text += f" ± {number(values.std(ddof=1), decimals)}"
    return text if len(values) == expected else f"{text} ({counted_seeds(len(values))})"
