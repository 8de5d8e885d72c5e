"""Accuracy under corruption: the table and the heat map of one job."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rift.report.cells import MISSING, number
from rift.report.figures import new_figure
from rift.report.job import job_title

_NETWORKS = (("at", "AT"), ("rift", "RiFT"))


def corruption_frame(summary: dict[str, Any]) -> pd.DataFrame:
    """Finished cells: a row per corruption, a column per severity, AT / RiFT in percent, then both means."""
    about = summary["corruptions"]
    names, severities = _corruptions(about), about["severities"]
    grids = [_grid(about[which], names, severities) for which, _ in _NETWORKS if which in about]
    with_means = [np.column_stack([grid, grid.mean(axis=1)]) for grid in grids]
    columns = [*map(str, severities), "mean"]
    cells = [
        [" / ".join(number(float(value), 1) for value in values) for values in zip(*rows, strict=True)]
        for rows in zip(*with_means, strict=True)
    ]
    frame = pd.DataFrame(cells, columns=columns)
    frame.insert(0, "corruption", names)
    return frame


def means_frame(summary: dict[str, Any]) -> pd.DataFrame:
    """The mean that is reported as OOD, then those in use, by name: `15x5`, `15_severity5`, `18x5`, `all`."""
    about = summary["corruptions"]
    names = about["at"]["means"]
    return pd.DataFrame(
        {
            "mean": name,
            **{shown: _percent(about, which, name) for which, shown in _NETWORKS},
            "Δ (points)": _mean_difference(about, name),
        }
        for name in names
    )


def corruption_figure(summary: dict[str, Any]) -> Figure:
    """Heat maps, corruptions × severities: accuracy of θ_AT (%), and what RiFT changes (points)."""
    about = summary["corruptions"]
    names, severities = _corruptions(about), about["severities"]
    grids = {which: _grid(about[which], names, severities) for which, _ in _NETWORKS if which in about}
    figure = new_figure(2.6 + 3.4 * len(grids), 1.6 + 0.24 * len(names))
    panels = np.atleast_1d(figure.subplots(1, len(grids), sharey=True))
    _heat(
        panels[0], grids["at"], names, severities, title="AT: accuracy (%)", cmap="viridis", limits=(0, 100)
    )
    if "rift" in grids:
        delta = grids["rift"] - grids["at"]
        reach = max(1.0, float(np.abs(delta).max()))
        _heat(
            panels[1],
            delta,
            names,
            severities,
            title="RiFT − AT (points)",
            cmap="PuOr",
            limits=(-reach, reach),
            signed=True,
        )
    title = f"Accuracy under corruption ({about['kind']} images)"
    figure.suptitle(f"{title}\n{job_title(summary)}", fontsize=10)
    return figure


def _corruptions(about: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(version.partition("/")[0] for version in about["at"]["accuracy"]))


def _grid(part: dict[str, Any], names: list[str], severities: list[int]) -> np.ndarray:
    """(corruptions, severities), percent."""
    return 100 * np.array([[part["accuracy"][f"{name}/{s}"] for s in severities] for name in names])


def _percent(about: dict[str, Any], which: str, mean: str) -> str:
    return number(100 * about[which]["means"][mean]) if which in about else MISSING


def _mean_difference(about: dict[str, Any], mean: str) -> str:
    if "rift" not in about:
        return MISSING
    return number(100 * (about["rift"]["means"][mean] - about["at"]["means"][mean]), signed=True)


def _heat(
    axes: Axes,
    values: np.ndarray,
    names: list[str],
    severities: list[int],
    *,
    title: str,
    cmap: str,
    limits: tuple[float, float],
    signed: bool = False,
) -> None:
    image = axes.imshow(values, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = number(float(value), 1, signed)
        axes.text(
            column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black"
        )
    axes.set_xticks(range(len(severities)), [str(severity) for severity in severities], fontsize=7.5)
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_xlabel("severity", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
