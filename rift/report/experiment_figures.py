"""The figures of an experiment: the paper's beside ours, and those of what the paper leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rift.report.experiment_table import Line, lines
from rift.report.experiments import Cell
from rift.report.figures import BLUE, DIAMOND, GREEN, GREY, ORANGE, new_figure
from rift.report.paper import paper_scan
from rift.report.study import metric_text

_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "black", GREY)


def difference_figure(cells: Sequence[Cell]) -> Figure | None:
    """RiFT − AT in points, one row per cell, one panel per metric; the paper's as diamonds.

    Bars are the standard deviation over seeds. None if neither is there.
    """
    told = [line for line in lines(cells) if line.metric in ("clean", "ood", "ood_generated", "robust")]
    metrics = [
        metric
        for metric in ("clean", "ood", "ood_generated", "robust")
        if any(line.metric == metric and _has_delta(line) for line in told)
    ]
    if not metrics:
        return None
    figure = new_figure(2.6 + 2.3 * len(metrics), 1.5 + 0.26 * len(cells))
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    for axes, metric in zip(panels, metrics, strict=True):
        axes.axvline(0, color="0.7", lw=0.8, zorder=1)
        for row, cell in enumerate(cells):
            for line in told:
                if line.cell is cell and line.metric == metric:
                    _difference(axes, line, row)
        axes.set_xlabel(f"Δ {metric_text(metric)} (points)", fontsize=8.5)
        _plain(axes)
    shared = _shared_words([cell.label for cell in cells])
    panels[0].set_yticks(range(len(cells)), [_own(cell.label, shared) for cell in cells], fontsize=7.5)
    panels[0].set_ylim(len(cells) - 0.4, -0.6)
    handles = [Line2D([], [], color=BLUE, marker="o", ls="", label="measured, ± standard deviation")]
    if any(line.reported["delta"] is not None for line in told):
        handles.append(Line2D([], [], **DIAMOND, label="paper"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(f"RiFT − AT\n{' '.join(shared)}" if len(cells) > 1 else "RiFT − AT", fontsize=10)
    return figure


def curves_figure(cells: Sequence[Cell]) -> Figure | None:
    """Clean against robust accuracy along α, one curve for each cell: means over seeds, in percent."""
    curves = {cell.label: _mean_curve(cell) for cell in cells}
    curves = {label: curve for label, curve in curves.items() if curve is not None}
    if not curves:
        return None
    shared = _shared_words(list(curves))
    figure = new_figure(6.6, 4.8)
    axes = figure.subplots()
    for colour, (label, (alphas, clean, robust)) in zip(
        _COLOURS * (1 + len(curves) // len(_COLOURS)), curves.items(), strict=False
    ):
        axes.plot(clean, robust, color=colour, lw=1.2, marker="o", ms=3.5, label=_own(label, shared))
        axes.annotate(
            f"α = {alphas[-1]:g}",
            (clean[-1], robust[-1]),
            xytext=(5, -3),
            textcoords="offset points",
            fontsize=7,
            color=colour,
        )
    axes.set_xlabel("clean accuracy (%)")
    axes.set_ylabel("robust accuracy (%)")
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.1, y=0.08)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"From AT (α = 0) to the fine-tuned weights (α = 1)\n{' '.join(shared)}", fontsize=10)
    return figure


def scan_figure(cells: Sequence[Cell]) -> Figure | None:
    """MRC and robust accuracy drop of every module over seeds, after the paper's Figure 3."""
    cell = next((cell for cell in cells if any(job.summary.get("mrc") for job in cell.jobs["job"])), None)
    if cell is None:
        return None
    scans = [job.summary["mrc"] for job in cell.jobs["job"] if job.summary.get("mrc")]
    names = [row["module"] for row in scans[0]]
    scans = [scan for scan in scans if [row["module"] for row in scan] == names]
    reported = paper_scan(cell.jobs["job"].iloc[0].summary)
    figure = new_figure(8.2, 1.7 + 0.2 * max(len(names), 5))
    drops, mrcs = figure.subplots(1, 2, sharey=True)
    for axes, key, scale in ((drops, "robust_accuracy_drop", 100), (mrcs, "mrc", 1)):
        values = np.array([[scale * row[key] for row in scan] for scan in scans])
        spread = values.std(axis=0, ddof=1) if len(scans) > 1 else None
        if values.min() > 0 and values.max() > 30 * values.min():
            axes.set_xscale("log")
        axes.barh(range(len(names)), values.mean(axis=0), color=GREY, height=0.7)
        for index in range(len(scans)):
            axes.plot(values[index], range(len(names)), ls="", marker=".", ms=4, color=BLUE)
        if spread is not None:
            axes.errorbar(
                values.mean(axis=0), range(len(names)), xerr=spread, fmt="none", ecolor="0.3", lw=0.8
            )
        for row, name in enumerate(names):
            if name in reported:
                axes.plot(reported[name][key], row, **DIAMOND, zorder=4)
        _plain(axes)
    drops.set_xlabel("robust accuracy drop (points)")
    mrcs.set_xlabel("MRC (increase of the robust loss)")
    drops.set_yticks(range(len(names)), names, fontsize=7.5)
    drops.set_ylim(len(names) - 0.4, -0.6)
    handles: list[Any] = [Line2D([], [], color=BLUE, marker=".", ls="", label="each seed")]
    handles += [Line2D([], [], **DIAMOND, label="paper, Figure 3")] if reported else []
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    count = "1 seed" if len(scans) == 1 else f"{len(scans)} seeds, bar: mean ± standard deviation"
    figure.suptitle(f"Robust criticality of each module\n{cell.label}   ({count})", fontsize=10)
    return figure


def relation_figure(cells: Sequence[Cell]) -> Figure | None:
    """MRC of each module against what fine-tuning it alone brings; a colour for each seed."""
    jobs = [job for cell in cells for job in cell.jobs["job"] if job.summary.get("gains")]
    if not jobs:
        return None
    panels = (
        ("delta_clean", "Δ clean to α* (points)"),
        ("end_delta_clean", "Δ clean to α = 1 (points)"),
        ("end_delta_robust", "Δ robust to α = 1 (points)"),
    )
    several = len({job.summary["dataset"] for job in jobs}) > 1
    figure = new_figure(9.6, 3.6)
    for axes, (key, text) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.axhline(0, color="0.7", lw=0.8, zorder=1)
        for colour, job in zip(_COLOURS * (1 + len(jobs) // len(_COLOURS)), jobs, strict=False):
            gains = job.summary["gains"]
            mrcs, values = ([row[name] for row in gains] for name in ("mrc", key))
            axes.plot(
                mrcs, 100 * np.array(values), ls="", marker="o", ms=4, alpha=0.75, color=colour,
                label=_whose(job.summary, several),
            )  # fmt: skip
        if all(row["mrc"] > 0 for job in jobs for row in job.summary["gains"]):
            axes.set_xscale("log")
        axes.set_xlabel("MRC of the module")
        axes.set_title(text, fontsize=9)
        _plain(axes)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8
    )
    figure.suptitle("Does a low MRC tell a module that is worth fine-tuning?", fontsize=10)
    return figure


def joint_figure(frame: pd.DataFrame) -> Figure | None:
    """Joint MRC against the size of the set, by how the set was chosen; a line for each seed."""
    if frame.empty:
        return None
    figure = new_figure(5.6, 3.8)
    axes = figure.subplots()
    choices = (("top_k", GREY, 2.5, "k lowest"), ("greedy", BLUE, 1.1, "greedy, by joint MRC"))
    for choice, colour, width, text in choices:
        for position, (_, group) in enumerate(frame[frame["choice"] == choice].groupby(["setting", "seed"])):
            ordered = group.sort_values("size")
            axes.plot(
                ordered["size"], ordered["mrc"], color=colour, marker="o", ms=4, lw=width,
                label=text if position == 0 else None,
            )  # fmt: skip
    axes.set_xticks(sorted(frame["size"].unique()))
    axes.set_xlabel("modules in the set")
    axes.set_ylabel("joint MRC")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    figure.suptitle("How critical modules are together", fontsize=10)
    return figure


def _has_delta(line: Line) -> bool:
    return len(line.values("delta")) > 0 or line.reported["delta"] is not None


def _difference(axes: Axes, line: Line, row: int) -> None:
    values = line.values("delta")
    if len(values):
        error = values.std(ddof=1) if len(values) > 1 else None
        axes.errorbar(values.mean(), row, xerr=error, fmt="o", ms=5, color=BLUE, lw=1.2, capsize=2, zorder=3)
    if (reported := line.reported["delta"]) is not None:
        axes.plot(reported, row, **DIAMOND, zorder=4)


def _mean_curve(cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """α, clean, robust in percent, over the seeds that have the same points."""
    sweeps = [
        sorted(job.summary["sweep"], key=lambda point: point["alpha"])
        for job in cell.jobs["job"]
        if job.summary.get("sweep")
    ]
    sweeps = [sweep for sweep in sweeps if [p["alpha"] for p in sweep] == [p["alpha"] for p in sweeps[0]]]
    if not sweeps:
        return None
    alphas = np.array([point["alpha"] for point in sweeps[0]])
    clean, robust = (
        np.mean([[100 * point[f"{name}_accuracy"] for point in sweep] for sweep in sweeps], axis=0)
        for name in ("clean", "robust")
    )
    return alphas, clean, robust


def _shared_words(labels: list[str]) -> list[str]:
    return [word for word in labels[0].split() if all(word in label.split() for label in labels)]


def _whose(summary: dict[str, Any], several: bool) -> str:
    return f"{summary['dataset']}, seed {summary['seed']}" if several else f"seed {summary['seed']}"


def _own(label: str, shared: list[str]) -> str:
    return " ".join(word for word in label.split() if word not in shared) or label


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7.5)
