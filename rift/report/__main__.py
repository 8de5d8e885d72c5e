"""`python -m rift.report`: tables and figures of finished jobs, or of an experiment by its name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from rift.errors import UserError, choose_from
from rift.report.experiment_command import (
    FORMATS,
    experiment_tables,
    show_experiment,
    show_progress,
    write_experiment,
)
from rift.report.experiments import experiment_names
from rift.report.job import print_job
from rift.report.page import job_figures
from rift.report.results import Job, read_jobs
from rift.report.study import (
    SETTING,
    jobs_frame,
    one_job_per_seed,
    study_caption,
    study_cells,
    study_frame,
)
from rift.report.tables import latex_table, markdown_table, plain_text, rich_table, to_csv
from rift.report.web import PageTable, numbered, page_jobs, page_sections, write_page
from rift.streams import prepare_streams

_TITLE = "AT and RiFT"
_FOLDER = Path("outputs/report")
_PLAIN_WIDTH = 140  # columns of a terminal table that goes into a file or a pipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 2, after one sentence, for what the user can mend."""
    prepare_streams()
    try:
        options = _parsed(arguments)
        if options.experiment is not None:
            return _experiment(options)
        if options.collect:
            raise UserError(f"--collect needs the name of an experiment: {', '.join(experiment_names())}")
        jobs, warnings = _select(options)
        kept, duplicates = one_job_per_seed(jobs_frame(jobs))
        for warning in warnings + duplicates:
            print(f"warning: {warning}", file=sys.stderr)
        if options.html:
            _write_html(kept, options.output)
        elif options.output is None:
            _show(kept, options.format or "terminal")
        else:
            _write(kept, options.output, options.format or "all")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a file in the way, a full or read-only disk
        where = error.filename or "a result"
        print(f"error: {where} cannot be used ({error.strerror}); give another folder", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rift.report", description=__doc__.split(": ", 1)[1])
    parser.add_argument(
        "paths", nargs="*", metavar="EXPERIMENT or PATH",
        help="an experiment's name prints it beside the paper and writes its tables and figures; folders are "
        "searched for summary.json (default: outputs/jobs)",
    )  # fmt: skip
    parser.add_argument(
        "--collect", action="store_true",
        help="of an experiment: which jobs are done, running, failed, stopped, missing; exit code 1 unless "
        "all are done",
    )  # fmt: skip
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write files and figures here (an experiment: outputs/report unless a --format is given)",
    )
    parser.add_argument(
        "--format", choices=[*FORMATS, "all"], help="default: terminal, or with --output all of them"
    )
    parser.add_argument(
        "--html", action="store_true",
        help="one page for the browser, report.html in the --output folder (default: outputs/report)",
    )  # fmt: skip
    parser.add_argument("--study", metavar="NAME", help="only the jobs of this study")
    parser.add_argument("--smoke", action="store_true", help="show smoke runs, too; they are no results")
    return parser


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; an experiment's name is told from a folder by there being no such folder."""
    options = _parser().parse_args(arguments)
    names = [text for text in options.paths if text in experiment_names() and not Path(text).exists()]
    options.experiment = names[0] if names else None
    paths = [Path(text) for text in options.paths if text not in names]
    options.paths = paths or [Path("outputs/jobs")]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} are two experiments: name one at a time")
    for path in paths:
        if not path.exists() and (names or len(path.parts) == 1):
            known = choose_from(str(path), experiment_names())
            raise UserError(f"'{path}' is neither an experiment nor a folder: {known}")
    if options.html and (options.format is not None or options.collect):
        raise UserError(
            f"--html goes without --{'collect' if options.collect else 'format'}: leave out one of them"
        )
    if names and options.study is not None:
        raise UserError(f"--study goes with folders; {names[0]} takes jobs of every study: leave it out")
    return options


def _experiment(options: argparse.Namespace) -> int:
    """Shows, writes, or only counts one experiment."""
    if options.collect:
        return 0 if show_progress(options.experiment, options.paths, options.smoke) else 1
    # Where nothing was run yet, the table says so.
    jobs, warnings = read_jobs(path for path in options.paths if path.exists())
    jobs = [job for job in jobs if options.smoke or not job.summary.get("smoke")]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.html:
        tables, jobs = experiment_tables(options.experiment, jobs)
        _write_html(jobs, options.output, options.experiment, tables)
    elif options.output is None and options.format not in (None, "all"):
        show_experiment(options.experiment, jobs, options.format)
    else:
        folder = options.output or _FOLDER
        write_experiment(options.experiment, jobs, options.format or "all", folder)
    return 0


def _select(options: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """Reads the jobs that the options ask for; raises `UserError` if none is left."""
    jobs, warnings = read_jobs(options.paths)
    places = ", ".join(str(path) for path in options.paths)
    if not jobs:
        unreadable = f" that can be read ({'; '.join(warnings)})" if warnings else ""
        raise UserError(
            f"no results{unreadable} in {places}; run `python -m rift` first or give another folder"
        )
    if options.study is not None:
        studies = sorted({str(job.summary.get("study")) for job in jobs})
        jobs = [job for job in jobs if job.summary.get("study") == options.study]
        if not jobs:
            raise UserError(f"no study '{options.study}' in {places}; {choose_from(options.study, studies)}")
    if not options.smoke:
        real = [job for job in jobs if not job.summary.get("smoke")]
        if not real:
            raise UserError(f"every result in {places} is of a smoke run; add --smoke to see them")
        jobs = real
    return jobs, warnings


def _show(jobs: pd.DataFrame, form: str) -> None:
    if form == "all":
        raise UserError("--format all writes files; say where with --output DIR")
    if form == "terminal":
        console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
        if len(jobs) == 1:  # one job has more to say than a row of means over one seed
            print_job(console, jobs["job"].iloc[0].summary)
            return
        console.print(rich_table(study_cells(jobs, stacked=True), _TITLE, text_columns=2, gap=1))
        console.print(study_caption(jobs), style="dim", markup=False)
    else:
        print(_render(jobs, form), end="")


def _write(jobs: pd.DataFrame, folder: Path, form: str) -> None:
    """Writes the chosen forms of the table, one row per job as CSV, and every job's figures."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, suffix in FORMATS.items():
        if form in (name, "all"):
            written.append(folder / f"table.{suffix}")
            written[-1].write_text(_render(jobs, name), encoding="utf-8")
    if form in ("csv", "all"):
        written.append(folder / "jobs.csv")
        to_csv(jobs.drop(columns=["job", "written"]), written[-1])
    for job in jobs["job"]:
        written += job_figures(job.summary, folder / "figures", prefix=f"{job.folder.name}-")
    if form == "all":
        _show(jobs, "terminal")
    for path in written:
        print(path)


def _write_html(
    jobs: pd.DataFrame, folder: Path | None, title: str = _TITLE, tables: Sequence[PageTable] = ()
) -> None:
    """Writes `report.html`; `tables` stand before those of the jobs."""
    path = (folder or _FOLDER) / "report.html"
    jobs = jobs.sort_values([*SETTING, "seed"], kind="stable")
    shown = numbered(jobs)
    write_page(path, title, page_sections(jobs, shown, tables), page_jobs(shown))
    print(path)


def _render(jobs: pd.DataFrame, form: str) -> str:
    """The study table in one form, ending with a line break."""
    if form == "csv":
        return to_csv(study_frame(jobs), None)
    if form == "terminal":
        table = rich_table(study_cells(jobs, stacked=True), _TITLE, text_columns=2, gap=1)
        return plain_text(table, study_caption(jobs), width=_PLAIN_WIDTH)
    cells, caption = study_cells(jobs, stacked=False), study_caption(jobs)
    if form == "markdown":
        return f"{markdown_table(cells, text_columns=list(cells).index('n'))}\n\n{caption}\n"
    cells, shared = _without_shared_columns(cells)
    return latex_table(cells, caption=caption + shared, label="tab:rift", text_columns=list(cells).index("n"))


def _without_shared_columns(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Moves what all rows share (beyond model and data set) into a sentence: a printed page is narrow."""
    shared = [name for name in SETTING[2:] if name in cells and cells[name].nunique() == 1]
    # The caption has the attack and the OOD mean.
    told = ", ".join(f"{name} {cells[name].iloc[0]}" for name in shared if name not in ("attack", "ood"))
    return cells.drop(columns=shared), f" All rows: {told}." if told else ""


if __name__ == "__main__":
    sys.exit(main())
