"""Places text beside points so that no text covers another, a point or the curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

_RADII = (13, 18, 24, 31, 39, 48, 60)  # points; the text's centre is this far away, plus half its width
_ANGLES = (90, 270, 45, 135, 315, 225, 0, 180, 67, 113, 293, 247, 22, 158, 338, 202)  # degrees, best first
_LEADER_FROM = 24  # points; farther texts get a thin line to their point


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point given in data coordinates; `style` goes to matplotlib."""

    x: float
    y: float
    text: str
    style: dict[str, Any] = field(default_factory=dict)


def place_labels(axes: Axes, labels: Sequence[Label], curve: np.ndarray, height: float | None = None) -> int:
    """Writes the labels, the first ones first choice of place.

    A place may touch neither another text nor the axes' edge nor the curve. A text for which no such
    place is near is left out rather than written over something.

    Args:
        axes: with its final limits and position; both must not change afterwards.
        labels: in order of importance.
        curve: (N, 2) data coordinates of the polyline to keep clear of.
        height: a horizontal line (data coordinate) to keep clear of, if there is one.

    Returns:
        How many labels were left out.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # fixes the layout, so that data coordinates map to final pixels
    renderer = figure.canvas.get_renderer()
    pixels = figure.dpi / 72
    blocked = _densify(axes.transData.transform(curve), step=2 * pixels)
    if height is not None:
        line = axes.transData.transform([(axes.get_xlim()[0], height), (axes.get_xlim()[1], height)])
        blocked = np.concatenate([blocked, _densify(line, step=2 * pixels)])
    taken: list[Bbox] = []
    left_out = 0
    for label in labels:
        text = axes.annotate(label.text, (label.x, label.y), ha="center", va="center", **label.style)
        size = text.get_window_extent(renderer)
        text.remove()
        place = _free_place(axes, label, size.width, size.height, blocked, taken, pixels)
        if place is None:
            left_out += 1
            continue
        offset, box = place
        taken.append(box)
        far = math.hypot(*offset) > _LEADER_FROM + size.width / (2 * pixels)
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.6", "shrinkB": 4} if far else None,
            zorder=5,
            **label.style,
        )
    return left_out


def _free_place(
    axes: Axes,
    label: Label,
    width: float,
    height: float,
    blocked: np.ndarray,
    taken: list[Bbox],
    pixels: float,
) -> tuple[tuple[float, float], Bbox] | None:
    x, y = axes.transData.transform((label.x, label.y))
    inside = axes.get_window_extent().padded(-2 * pixels)
    for radius in _RADII:
        for angle in _ANGLES:
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            dx = radius * pixels * cos + cos * width / 2
            dy = radius * pixels * sin
            centre_x, centre_y = x + dx, y + dy
            box = Bbox.from_bounds(centre_x - width / 2, centre_y - height / 2, width, height)
            roomy = box.padded(2.5 * pixels)
            within = (
                inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            )
            if within and not roomy.count_contains(blocked) and not roomy.count_overlaps(taken):
                return (dx / pixels, dy / pixels), box
    return None


def _densify(polyline: np.ndarray, step: float) -> np.ndarray:
    """Points at most `step` apart along a polyline, (M, 2); corners are included."""
    pieces = [polyline[-1:]]
    for start, end in pairwise(polyline):
        count = max(1, math.ceil(float(np.hypot(*(end - start))) / step))
        pieces.append(start + (end - start) * np.linspace(0, 1, count, endpoint=False)[:, None])
    return np.concatenate(pieces)
