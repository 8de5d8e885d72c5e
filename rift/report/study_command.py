"""What `python -m rift.report FOLDER` shows and writes: the study table in each form, figures, the page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from rift.errors import UserError
from rift.report.conclusion import print_conclusion
from rift.report.experiment_command import FORMATS
from rift.report.figures import save_figure
from rift.report.job import print_job
from rift.report.overview import overview_figures
from rift.report.page import job_figures
from rift.report.selection import choose_columns
from rift.report.significance import CAPTION, significance_cells, significance_frame
from rift.report.study import SETTING, study_frame
from rift.report.study_cells import study_caption, study_cells, study_groups
from rift.report.tables import latex_table, markdown_table, plain_text, rich_table, to_csv
from rift.report.web import PageTable, numbered, page_jobs, page_sections, write_page

TITLE = "AT and RiFT"
_PLAIN_WIDTH = 140  # columns of a terminal table that goes into a file or a pipe


@dataclass(frozen=True)
class View:
    """What a table shows.

    Attributes:
        columns: only these, in this order; None for all.
        paper: whether LaTeX has the paper's values.
        significance: the tests in place of the accuracies.
    """

    columns: Sequence[str] | None = None
    paper: bool = True
    significance: bool = False


def show(jobs: pd.DataFrame, form: str, view: View) -> None:
    """Prints the table of these jobs; of a single one, unless something else was asked for, its own table."""
    if form == "all":
        raise UserError("--format all writes files; say where with --output DIR")
    if form == "terminal" and len(jobs) == 1 and view == View():
        print_job(_console(), jobs["job"].iloc[0].summary)
        print_conclusion(_console(), jobs["job"].iloc[0].summary)
    elif form != "terminal":
        print(_render(jobs, form, view), end="")
    elif view.significance or view.columns is not None:
        cells, caption = _cells(jobs, view)
        _console().print(rich_table(cells, TITLE, text_columns=_text_columns(cells), gap=2))
        _console().print(caption, style="dim", markup=False)
    else:
        _console().print(rich_table(study_cells(jobs, stacked=True), TITLE, text_columns=2, gap=1))
        _console().print(study_caption(jobs), style="dim", markup=False)


def write(jobs: pd.DataFrame, folder: Path, form: str, view: View) -> None:
    """Writes the chosen forms of the table, one row per job as CSV, and figures: each job's, and of all."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, suffix in FORMATS.items():
        if form in (name, "all"):
            written.append(folder / f"table.{suffix}")
            written[-1].write_text(_render(jobs, name, view), encoding="utf-8")
    if form in ("csv", "all"):
        written.append(folder / "jobs.csv")
        to_csv(jobs.drop(columns=["job", "written"]), written[-1])
    for job in jobs["job"]:
        written += job_figures(job.summary, folder / "figures", prefix=f"{job.folder.name}-")
    for stem, figure in overview_figures(jobs):
        written += save_figure(figure, folder / "figures" / f"{stem}.png")
    if form == "all":
        show(jobs, "terminal", view)
    for path in written:
        print(path)


def write_html(
    jobs: pd.DataFrame,
    folder: Path,
    title: str = TITLE,
    tables: Sequence[PageTable] = (),
    left_out: Sequence[PageTable] = (),
) -> None:
    """Writes `report.html`; `tables` stand before all others, `left_out` names jobs without results."""
    path, shown = folder / "report.html", numbered(jobs)
    write_page(path, title, page_sections(jobs, shown, tables, left_out), page_jobs(shown))
    print(path)


def show_table(
    cells: pd.DataFrame, numbers: pd.DataFrame, form: str, title: str, *, text_columns: int
) -> None:
    """Prints one table without a caption, in any form."""
    if form == "all":
        raise UserError("--format all writes files, and this is printed: name one format")
    if form == "terminal":
        _console().print(rich_table(cells, title, text_columns=text_columns))
    elif form == "csv":
        print(to_csv(numbers), end="")
    elif form == "markdown":
        print(markdown_table(cells, text_columns=text_columns))
    else:
        print(latex_table(cells, caption=title, label="tab:rift", text_columns=text_columns), end="")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)


def _render(jobs: pd.DataFrame, form: str, view: View) -> str:
    """The table in one form, ending with a line break."""
    if form == "csv":
        table = significance_frame(jobs) if view.significance else study_frame(jobs)
        return to_csv(choose_columns(table, view.columns))
    if form == "terminal" and view == View():
        table = rich_table(study_cells(jobs, stacked=True), TITLE, text_columns=2, gap=1)
        return plain_text(table, study_caption(jobs), width=_PLAIN_WIDTH)
    if form == "latex" and not view.significance and view.columns is None:
        return _latex(jobs, view.paper)
    cells, caption = _cells(jobs, view)
    count = _text_columns(cells)
    if form == "terminal":
        return plain_text(rich_table(cells, TITLE, text_columns=count), caption, width=_PLAIN_WIDTH)
    if form == "markdown":
        return f"{markdown_table(cells, text_columns=count)}\n\n{caption}\n"
    return latex_table(cells, caption=caption, label="tab:rift", text_columns=count)


def _cells(jobs: pd.DataFrame, view: View) -> tuple[pd.DataFrame, str]:
    """The table as finished cells side by side, and how to read it."""
    if view.significance:
        cells = significance_cells(significance_frame(jobs))
        if cells.empty:
            raise UserError(
                "--significance needs jobs with the accuracies of AT and of RiFT: none of these has both"
            )
        return choose_columns(cells, view.columns), CAPTION
    return choose_columns(study_cells(jobs, stacked=False), view.columns), study_caption(jobs)


def _text_columns(cells: pd.DataFrame) -> int:
    """How many of the first columns are text: what a setting is told by."""
    texts = (*SETTING, "setting", "accuracy (%)")
    return next((i for i, name in enumerate(cells) if name not in texts), cells.shape[1])


def _latex(jobs: pd.DataFrame, paper: bool) -> str:
    cells, bold = study_groups(jobs, paper=paper)
    count = [name for _, name in cells].index("seeds")
    # What all rows share stands in the caption; it has the attack and the OOD mean already.
    shared = [name for name in SETTING[:-1] if name not in ("attack", "ood") and jobs[name].nunique() == 1]
    told = ", ".join(f"{name} {jobs[name].iloc[0]}" for name in shared if jobs[name].iloc[0])
    caption = study_caption(jobs) + (f" All rows: {told}." if told else "")
    caption += " Bold: what the verdict calls better."
    return latex_table(cells, caption=caption, label="tab:rift", text_columns=count, bold=bold)
