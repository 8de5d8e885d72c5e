"""The figures of a kept study."""

from __future__ import annotations

from matplotlib.figure import Figure

from rift.report.experiment_figures import curves_figure, relation_figure
from rift.report.experiments import filled_cells, load_experiment
from rift.report.figures import BLUE, GREY, ORANGE, alpha_figure, mrc_figure, new_figure
from rift.report.kept_study import Kept, row_jobs


def kept_figures(kept: Kept) -> dict[str, Figure]:
    """Those that the kept files have data for, by the names that `kept_page.SECTIONS` gives them."""
    row = row_jobs(kept)
    curves, gains = (
        filled_cells(load_experiment(name), kept.of(name)) for name in ("figure1", "mrc_stability")
    )
    drawn = {
        "training": training_figure(kept),
        "mrc": mrc_figure(row[0].summary) if row else None,
        "alpha": alpha_figure(row[0].summary) if row else None,
        "modules": relation_figure(gains),
        "curves": curves_figure(curves),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def training_figure(kept: Kept) -> Figure:
    """Accuracy while θ_AT was trained, in percent: on training batches, at times on held-out images."""
    curve = kept.curve
    held = curve.dropna(subset="robust_accuracy")
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    axes.plot(
        curve["epoch"],
        100 * curve["train_robust_accuracy"],
        color=GREY,
        lw=1.2,
        label="robust, training batches",
    )
    for name, colour in (("clean", BLUE), ("robust", ORANGE)):
        label = f"{name}, {kept.held_out} held-out images"
        axes.plot(
            held["epoch"], 100 * held[f"{name}_accuracy"], color=colour, marker="o", ms=4, lw=1.2, label=label
        )
    best = kept.training["best"]
    axes.axvline(best["epoch"], color="0.6", lw=0.8, ls=(0, (4, 3)), label=f"θ_AT: epoch {best['epoch']}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", lw=0.6)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle("Adversarial training", fontsize=10)
    return figure
