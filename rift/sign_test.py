"""The exact sign test, without torch: reports use it too."""

from __future__ import annotations

from scipy.stats import binomtest


def sign_test(fewer: int, more: int) -> float:
    """Two-sided p-value of as many falls and rises as these, if both are equally likely."""
    return float(binomtest(more, fewer + more).pvalue) if fewer + more else 1.0
