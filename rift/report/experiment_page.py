"""Everything that is said of an experiment: its tables, their captions, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from rift.report import joint, stability
from rift.report.experiment_figures import (
    curves_figure,
    difference_figure,
    joint_figure,
    relation_figure,
    scan_figure,
)
from rift.report.experiment_table import (
    experiment_caption,
    experiment_cells,
    experiment_frame,
    footnotes,
)
from rift.report.experiments import Cell, Experiment


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        name: of its files.
        title: above it.
        numbers: for CSV.
        cells: finished cells, side by side.
        stacked: the same for a narrow terminal.
        caption: how to read it.
        text_columns: how many columns of `cells` are text.
    """

    name: str
    title: str
    numbers: pd.DataFrame
    cells: pd.DataFrame
    stacked: pd.DataFrame
    caption: str
    text_columns: int


def sections(experiment: Experiment, cells: Sequence[Cell]) -> list[Section]:
    """The tables of an experiment, in the order in which they are read.

    Args:
        experiment: whose they are.
        cells: filled.
    """
    found, name, marks = [], experiment.name, footnotes(cells)
    if experiment.evaluates:
        caption = "\n\n".join([experiment_caption(cells), *marks])
        flat, tall = (experiment_cells(cells, stacked=stacked) for stacked in (False, True))
        found.append(Section(name, experiment.about, experiment_frame(cells), flat, tall, caption, 2))
    scans = pd.DataFrame() if experiment.evaluates else stability.stability_frame(cells)
    if len(scans):
        table, caption = stability.stability_cells(scans), "\n\n".join([stability.CAPTION, *marks])
        found.append(_extra(f"{name}-ranking", "How stable is the ranking?", scans, table, caption))
    gains = stability.relation_frame(cells)
    if len(gains):
        caption = stability.RELATION_CAPTION
        table = stability.relation_cells(gains)
        found.append(_extra(f"{name}-gains", "Does a low MRC tell a good module?", gains, table, caption))
        choice = stability.choice_cells(gains)
        title = "What choosing by MRC brought"
        found.append(_extra(f"{name}-choice", title, gains, choice, "Points, at each module's own α*."))
    sets = joint.joint_frame(cells)
    if len(sets):
        table = joint.joint_cells(sets)
        found.append(_extra(f"{name}-sets", "MRC of sets of modules", sets, table, joint.CAPTION))
    return found


def figures(experiment: Experiment, cells: Sequence[Cell]) -> list[tuple[str, Figure]]:
    """The figures that the cells have data for, by the name of their file."""
    name, evaluates = experiment.name, experiment.evaluates
    drawn = {
        name: difference_figure(cells) if evaluates else None,
        f"{name}-curves": curves_figure(cells) if evaluates and _swept(cells) <= 8 else None,
        f"{name}-scan": None if evaluates else scan_figure(cells),
        f"{name}-gains": relation_figure(cells),
        f"{name}-sets": joint_figure(joint.joint_frame(cells)),
    }
    return [(stem, figure) for stem, figure in drawn.items() if figure is not None]


def nothing_text(experiment: Experiment, cells: Sequence[Cell]) -> str:
    """What is said in place of tables that have no rows yet."""
    count = sum(len(cell.jobs) for cell in cells)
    done = f"{count} done, too few for a table" if count else "not run"
    return f"{experiment.about}: {done}; --collect shows its jobs."


def _swept(cells: Sequence[Cell]) -> int:
    """How many curves there are; more than a few cannot be told apart."""
    return sum(any(job.summary.get("sweep") for job in cell.jobs["job"]) for cell in cells)


def _extra(name: str, title: str, numbers: pd.DataFrame, cells: pd.DataFrame, caption: str) -> Section:
    return Section(name, title, numbers, cells, cells, caption, 2)
