"""`python -m rift.report table1`: one experiment beside the paper, or how far its jobs are."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from rift.job_state import JobState
from rift.report.collect import collect, collect_cells, counts_text
from rift.report.experiment_page import Section, figures, nothing_text, sections
from rift.report.experiments import filled_cells, load_experiment
from rift.report.figures import save_figure
from rift.report.results import Job
from rift.report.study import SETTING, jobs_frame
from rift.report.tables import latex_table, markdown_table, plain_text, rich_table, to_csv
from rift.report.web import PageTable

LEFT_OUT = "Jobs without results"  # the title of their table
WIDE = 170  # columns of an experiment's table that goes into a file or a pipe
_LABEL = 26  # characters of a line of a cell's name in print
_PARTS = ("AT", "RiFT", "Δ")
FORMATS = {"terminal": "txt", "markdown": "md", "csv": "csv", "latex": "tex"}


def show_experiment(name: str, jobs: Sequence[Job], form: str, paper: bool = True) -> None:
    """Prints an experiment's tables in one form."""
    experiment = load_experiment(name)
    cells = filled_cells(experiment, jobs)
    found = sections(experiment, cells)
    if not found:
        print(nothing_text(experiment, cells))
    elif form == "terminal":
        _print(found)
    else:
        print("\n".join(render(section, form, paper) for section in found), end="")


def write_experiment(name: str, jobs: Sequence[Job], form: str, folder: Path, paper: bool = True) -> None:
    """Prints an experiment's tables and writes them, and its figures, into a folder.

    Args:
        name: of the experiment.
        jobs: finished ones, of whatever experiment.
        form: one of `FORMATS`, or `all`.
        folder: made if it is not there.
        paper: whether LaTeX tables have the paper's values.

    Raises:
        OSError: it cannot be written.
    """
    experiment = load_experiment(name)
    cells = filled_cells(experiment, jobs)
    found = sections(experiment, cells)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for section in found:
        for kind, suffix in FORMATS.items():
            if form in (kind, "all"):
                written.append(folder / f"{section.name}.{suffix}")
                written[-1].write_text(render(section, kind, paper), encoding="utf-8")
    for stem, figure in figures(experiment, cells):
        written += save_figure(figure, folder / f"{stem}.png")
    _print(found)
    if not found:
        print(nothing_text(experiment, cells))
    for path in written:
        print(path)


def experiment_tables(name: str, jobs: Sequence[Job]) -> tuple[list[PageTable], pd.DataFrame]:
    """An experiment's tables for a page, and the jobs that fill its cells, as a jobs' frame.

    Args:
        name: of the experiment.
        jobs: finished ones, of whatever experiment.
    """
    experiment = load_experiment(name)
    cells = filled_cells(experiment, jobs)
    tables = [
        PageTable(section.title, section.cells, section.text_columns, section.caption, sorts=False)
        for section in sections(experiment, cells)
    ]
    places = {folder for cell in cells for folder in cell.jobs["folder"]}
    frame = jobs_frame(job for job in jobs if str(job.folder) in places)
    frame = frame.sort_values([*SETTING, "seed"], kind="stable")
    if not tables:
        tables = [PageTable(experiment.about, pd.DataFrame(), caption=nothing_text(experiment, cells))]
    return tables, frame


def unfinished_table(name: str, found: Sequence[tuple[Job, JobState]], *, missing: bool) -> list[PageTable]:
    """An experiment's jobs that have no results, for a page; nothing if all are done.

    Args:
        name: of the experiment.
        found: jobs of whatever experiment, finished or not.
        missing: whether to name those that were never started.
    """
    frame = collect(load_experiment(name), found)
    wanted = frame["state"] != "done" if missing else ~frame["state"].isin(["done", "missing"])
    if not wanted.any():
        return []
    counts = f"{counts_text(frame)} " if missing else ""
    caption = f"{counts}As python -m rift.report {name} --collect tells them."
    return [PageTable(LEFT_OUT, collect_cells(frame[wanted]), 5, caption)]


def show_progress(name: str, found: Sequence[tuple[Job, JobState]]) -> bool:
    """Prints how far an experiment's jobs are; whether all are done."""
    frame = collect(load_experiment(name), found)
    console = _console()
    console.print(rich_table(collect_cells(frame), f"{name}: its jobs", text_columns=5, gap=2))
    console.print(counts_text(frame), markup=False)
    return bool((frame["state"] == "done").all())


def _print(found: Sequence[Section]) -> None:
    console = _console()
    for section in found:
        console.print(_terminal_table(section, console.width))
        console.print(section.caption, style="dim", markup=False)
        console.print()


def _terminal_table(section: Section, width: int) -> Table:
    """Side by side where there is room, else stacked."""
    flat, tall = (
        rich_table(cells, section.title, text_columns=section.text_columns, gap=2)
        for cells in (section.cells, section.stacked)
    )
    fits = Measurement.get(Console(width=1000), Console(width=1000).options, flat).minimum <= width
    return flat if fits else tall


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def render(section: Section, form: str, paper: bool) -> str:
    """One table in one form, ending with a line break; `paper`: whether LaTeX has the paper's values."""
    if form == "csv":
        return to_csv(section.numbers)
    if form == "terminal":
        return plain_text(_terminal_table(section, WIDE), section.caption, width=WIDE)
    if form == "markdown":
        table = markdown_table(section.cells, text_columns=section.text_columns)
        return f"## {section.title}\n\n{table}\n\n{section.caption}\n"
    if "cell" in section.cells:
        return _latex(section, paper)
    return latex_table(
        section.cells,
        caption=f"{section.title}. {section.caption}".replace("\n\n", " "),
        label=f"tab:{section.name}",
        text_columns=section.text_columns,
    )


def _latex(section: Section, paper: bool) -> str:
    """The table of accuracies for print: without what bold type and `vs paper` say in fewer words."""
    cells = section.cells
    bold = pd.DataFrame(False, cells.index, cells.columns)
    for verdict, column in (("better", "RiFT ours"), ("worse", "AT ours")):
        bold.loc[cells["seen"] == verdict, column] = True
    gone = ("seen", " diff.") if paper else ("seen", " diff.", " paper", "vs paper")
    cells = cells[[name for name in cells if not name.endswith(gone)]]
    cells = cells.assign(cell=_over_rows(list(cells["cell"])))
    # `AT paper` and `AT ours` stand under AT.
    pairs = [tuple(name.split(" ", 1)) if name.split(" ")[0] in _PARTS else ("", name) for name in cells]
    caption = f"{section.title}. {section.caption}".replace("\n\n", " ")
    return latex_table(
        cells.set_axis(pd.Index(pairs, tupleize_cols=False), axis=1),
        bold=bold[list(cells)],
        caption=f"{caption} Bold: what the verdict calls better.",
        label=f"tab:{section.name}",
        text_columns=section.text_columns,
    )


def _over_rows(labels: Sequence[str]) -> list[str]:
    """Labels that stand in the first of several rows, broken into lines over the empty ones below."""
    found = list(labels)
    starts = [index for index, label in enumerate(labels) if label]
    for start, end in zip(starts, [*starts[1:], len(labels)], strict=True):
        lines = textwrap.wrap(labels[start], _LABEL)
        lines[end - start - 1 :] = [" ".join(lines[end - start - 1 :])]  # what is left goes into the last row
        found[start:end] = [*lines, *[""] * (end - start - len(lines))]
    return found
