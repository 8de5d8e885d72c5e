"""Clean and robust accuracy as one number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def harmonic_mean(clean: float | None, robust: float | None) -> float | None:
    """2·c·r / (c + r) of two accuracies, in their unit; None if one is missing, 0 if both are 0."""
    if clean is None or robust is None:
        return None
    return 2 * clean * robust / (clean + robust) if clean + robust else 0.0


def dominated_area(points: Iterable[tuple[float, float]]) -> float:
    """The area under the clean–robust curve: what lies below and left of any of its points.

    A curve along α may turn back; what counts is which pairs of accuracies it offers at least. Of a single
    network it is the product of its two accuracies, and a longer curve never has less.

    Args:
        points: (clean, robust) accuracies, as fractions.

    Returns:
        A fraction of the unit square.
    """
    area, highest = 0.0, 0.0
    for clean, robust in sorted(points, reverse=True):  # from the best clean accuracy down
        if robust > highest:
            area += clean * (robust - highest)
            highest = robust
    return area


def with_tradeoff(summary: dict[str, Any], which: str) -> dict[str, Any]:
    """What was measured of a network, and clean and robust accuracy as one number.

    AT offers one point, RiFT the whole curve, on the split where α* was chosen.
    """
    found = dict(summary.get(which) or {})
    harmonic = harmonic_mean(found.get("clean_accuracy"), found.get("robust_accuracy"))
    if harmonic is not None:
        found["harmonic_accuracy"] = harmonic
    sweep = sorted(summary.get("sweep") or [], key=lambda point: point["alpha"])
    if sweep:
        points = [(point["clean_accuracy"], point["robust_accuracy"]) for point in sweep]
        found["dominated_area"] = dominated_area(points[:1] if which == "at" else points)
    return found
