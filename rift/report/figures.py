"""The two figures of a job, after the paper's Figures 3 and 1. Drawn without a display or global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rift.report.cells import number
from rift.report.job import job_title
from rift.report.labels import Label, place_labels
from rift.report.paper import paper_scan
from rift.report.texts import attack_text

# Okabe and Ito's colours, which stay apart for colour-blind readers, and grey for the rest.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#A9B2BC"
_SMALL = 7.5  # points; values, module names, labels along the curve


def mrc_figure(summary: dict[str, Any]) -> Figure:
    """Robust accuracy drop (points) and MRC (loss increase) of every module, in network order.

    One bar per module in each of two panels; the least and the most critical one stand out. Where the
    paper prints a value for a module of the same run, a diamond marks it.
    """
    entries = summary["mrc"]
    least, most = _extremes(entries)
    colours = [BLUE if e is least else ORANGE if e is most else GREY for e in entries]
    figure = new_figure(8.2, 1.75 + 0.2 * max(len(entries), 5))
    drops, mrcs = figure.subplots(1, 2, sharey=True)
    reported = _by_row(entries, paper_scan(summary))
    drop_values = [100 * e["robust_accuracy_drop"] for e in entries]
    _panel(drops, drop_values, colours, 2, {row: r["robust_accuracy_drop"] for row, r in reported.items()})
    _panel(mrcs, [e["mrc"] for e in entries], colours, 3, {row: r["mrc"] for row, r in reported.items()})
    drops.set_xlabel("robust accuracy drop (points)")
    mrcs.set_xlabel("MRC (increase of the robust loss)")
    drops.set_yticks(range(len(entries)), [e["module"] for e in entries], fontsize=_SMALL)
    drops.set_ylim(len(entries) - 0.4, -0.6)  # the input of the network on top
    for tick, entry in zip(drops.get_yticklabels(), entries, strict=True):
        if entry is least or entry is most:
            tick.set(color=BLUE if entry is least else ORANGE, fontweight="bold")
    handles: list[Any] = [
        Patch(color=BLUE, label=f"least critical: {least['module']}"),
        Patch(color=ORANGE, label=f"most critical: {most['module']}"),
    ]
    if reported:
        handles.append(Line2D([], [], **DIAMOND, label="paper, Figure 3"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle(f"Robust criticality of each module\n{_subtitle(summary)}", fontsize=10)
    return figure


def alpha_figure(summary: dict[str, Any]) -> Figure:
    """Clean (x) against robust accuracy (y) in percent while α goes from AT to the fine-tuned weights."""
    sweep = sorted(summary["sweep"], key=lambda point: point["alpha"])
    curve = np.array([[100 * p["clean_accuracy"], 100 * p["robust_accuracy"]] for p in sweep])
    alphas = [p["alpha"] for p in sweep]
    chosen = _position(alphas, summary.get("alpha"))
    start, tolerance = _position(alphas, 0.0), summary.get("alpha_tolerance")
    floor = None if start is None or tolerance is None else float(curve[start, 1]) - 100 * tolerance

    figure = new_figure(6.4, 4.8)
    axes = figure.subplots()
    axes.plot(*curve.T, color=BLUE, lw=1.2, marker="o", ms=4.5, zorder=3)
    handles: list[Any] = [
        Line2D([], [], color=BLUE, marker="o", ms=4.5, lw=1.2, label="(1 − α) AT + α FT, at each α")
    ]
    if floor is not None:
        axes.axhline(floor, color="0.45", lw=1, ls=(0, (4, 3)), zorder=2)
        text = f"tolerance: AT − {number(100 * tolerance)} points"
        handles.append(Line2D([], [], color="0.45", lw=1, ls=(0, (4, 3)), label=text))
    if chosen is not None:
        axes.plot(*curve[chosen], **_STAR, zorder=4)
        handles.append(Line2D([], [], **_STAR, label=f"α* = {_alpha_text(alphas[chosen])}"))
    _fit_limits(axes, curve, floor)
    axes.set_xlabel("clean accuracy (%)")
    axes.set_ylabel("robust accuracy (%)")
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle(f"Clean against robust accuracy along α\n{_subtitle(summary)}", fontsize=10)
    place_labels(axes, _alpha_labels(curve, alphas, chosen), curve, height=floor)
    return figure


# Without the library's name and the clock, so that equal figures give equal bytes.
_HOW = {"png": {"dpi": 160, "metadata": {"Software": None}}, "pdf": {"metadata": {"CreationDate": None}}}


def save_figure(figure: Figure, path: Path, forms: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Writes `path` in each of the forms (`png`, `pdf`) and returns them; equal figures give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_suffix(f".{form}") for form in forms]
    for form, file in zip(forms, written, strict=True):
        figure.savefig(file, **_HOW[form])
    return written


DIAMOND = {"marker": "D", "ls": "", "ms": 5, "mfc": "white", "mec": "black", "mew": 1.1}
_STAR = {"marker": "*", "ls": "", "ms": 15, "mfc": ORANGE, "mec": "white", "mew": 0.8}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def _subtitle(summary: dict[str, Any]) -> str:
    return f"{job_title(summary)}   ({attack_text(summary)})"


def _extremes(entries: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The least and the most critical module: by the scan's own rank, else by MRC."""
    ranked = all(isinstance(entry.get("rank"), int) for entry in entries)
    ordered = sorted(entries, key=lambda entry: entry["rank"] if ranked else entry["mrc"])
    return ordered[0], ordered[-1]


def _panel(
    axes: Axes, values: list[float], colours: list[str], decimals: int, paper: dict[int, float]
) -> None:
    """Horizontal bars, top to bottom, values behind their ends; `paper` maps rows to reported values."""
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    _value_scale(axes, [*finite, *paper.values()], room=1.42 if paper else 1.2)
    axes.barh(range(len(values)), finite, color=colours, height=0.72)
    left = axes.get_xlim()[0]
    for row, value in enumerate(values):
        text, end = number(value, decimals), max(finite[row], 0.0, left)
        if row in paper:
            axes.plot(paper[row], row, **DIAMOND, zorder=4)
            text, end = f"{text} (paper {paper[row]:g})", max(end, paper[row])
        shift = 6 if row in paper else 3  # clear of the diamond
        axes.annotate(
            text,
            (end, row),
            xytext=(shift, 0),
            textcoords="offset points",
            va="center",
            fontsize=6,
            color="0.35",
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=_SMALL)


def _value_scale(axes: Axes, values: list[float], room: float) -> None:
    """Linear, or logarithmic where that would hide the small values; `room` is for text at the right.

    On a logarithmic axis a module without a positive value has no bar, just its number.
    """
    positive = [value for value in values if value > 0]
    low, high = (min(positive), max(positive)) if positive else (0.0, 1.0)
    if positive and high > 30 * low:
        start = low / 2
        axes.set_xscale("log")
        axes.set_xlim(start, start * (high / start) ** room)
    else:
        axes.set_xlim(min(0.0, 1.15 * min(values)), room * high)


def _by_row(
    entries: list[dict[str, Any]], reported: dict[str, dict[str, float]]
) -> dict[int, dict[str, float]]:
    return {row: reported[e["module"]] for row, e in enumerate(entries) if e["module"] in reported}


def _position(alphas: list[float], alpha: float | None) -> int | None:
    """Where in the sweep this α is; None if it was not evaluated."""
    near = [i for i, other in enumerate(alphas) if alpha is not None and abs(other - alpha) < 1e-9]
    return near[0] if near else None


def _alpha_text(alpha: float) -> str:
    return f"{alpha:.3f}".rstrip("0").ljust(3, "0")


def _alpha_labels(curve: np.ndarray, alphas: list[float], chosen: int | None) -> list[Label]:
    """α* and the two ends first, so that they get the best places; points that coincide share a label."""
    ends = {0.0: "AT", 1.0: "FT"}
    first, second, shared = [], [], {}
    for i, alpha in enumerate(alphas):
        strong = {"fontsize": 9, "fontweight": "bold", "color": ORANGE if i == chosen else BLUE}
        if i == chosen:
            end = f" ({ends[alpha]})" if alpha in ends else ""
            first.append(Label(*curve[i], f"α* = {_alpha_text(alpha)}{end}", strong))
        elif alpha in ends:
            second.append(Label(*curve[i], f"{ends[alpha]} (α = {alpha:.0f})", strong))
        else:
            shared.setdefault(tuple(curve[i].round(6)), []).append(i)
    plain = {"fontsize": _SMALL, "color": "0.3"}
    rest = [Label(*place, _alpha_range(alphas, points), plain) for place, points in shared.items()]
    return [*first, *second, *rest]


def _alpha_range(alphas: list[float], points: list[int]) -> str:
    """`0.3`, `0.3, 0.5`, or `0.3–0.6` for three or more neighbours."""
    if len(points) > 2 and points[-1] - points[0] == len(points) - 1:
        return f"{_alpha_text(alphas[points[0]])}–{_alpha_text(alphas[points[-1]])}"
    return ", ".join(_alpha_text(alphas[i]) for i in points)


def _fit_limits(axes: Axes, curve: np.ndarray, floor: float | None) -> None:
    """A margin for the labels, and a least span: noise of a hundredth is not blown up to full height."""
    ys = [*curve[:, 1], *([] if floor is None else [floor])]
    for values, set_limits, least in ((curve[:, 0], axes.set_xlim, 0.5), (ys, axes.set_ylim, 0.3)):
        low, high = min(values), max(values)
        span = max(high - low, least)
        middle = (low + high) / 2
        set_limits(middle - 0.64 * span, middle + 0.64 * span)
