"""`python -m rift.report`: tables and figures of finished jobs, or of an experiment by its name."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rift.errors import UserError, choose_from
from rift.job_state import JobState
from rift.report.collect import found_jobs
from rift.report.experiment_command import (
    FORMATS,
    experiment_tables,
    show_experiment,
    show_progress,
    write_experiment,
)
from rift.report.experiments import experiment_names
from rift.report.index import index_cells, index_frame
from rift.report.results import Job, read_jobs
from rift.report.selection import conditions, select, sort_jobs
from rift.report.study import SETTING, jobs_frame, one_job_per_seed
from rift.report.study_command import View, show, show_table, write, write_html
from rift.report.web import PageTable
from rift.streams import prepare_streams

_FOLDER = Path("outputs/report")
_ALIASES = {"tex": "latex", "md": "markdown"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 2, after one sentence, for what the user can mend."""
    prepare_streams()
    try:
        options = _parsed(arguments)
        if options.experiment is not None:
            return _experiment(options)
        if options.list:
            return _list(options)
        if options.collect:
            raise UserError(f"--collect needs the name of an experiment: {', '.join(experiment_names())}")
        jobs, warnings = _select(options)
        kept, duplicates = one_job_per_seed(jobs_frame(jobs))
        for warning in warnings + duplicates:
            print(f"warning: {warning}", file=sys.stderr)
        if options.sort is not None:
            kept = sort_jobs(kept, options.sort, SETTING, reverse=options.reverse)
        view = View(options.columns, options.paper, options.significance)
        if options.html:
            write_html(kept, options.output or _FOLDER, tables=_left_out(options))
        elif options.output is None:
            show(kept, options.format or "terminal", view)
        else:
            write(kept, options.output, options.format or "all", view)
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
        "--format",
        choices=[*FORMATS, *_ALIASES, "all"],
        help="default: terminal, or with --output all of them",
    )  # fmt: skip
    parser.add_argument(
        "--where", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="only jobs of this model, dataset, method, protocol, target, seed, study, or value of an option "
        "(finetune.lr=0.01); several values: seed=0,1",
    )  # fmt: skip
    parser.add_argument("--sort", metavar="NAME", help="order of the rows: model, clean_delta, alpha, …")
    parser.add_argument("--reverse", action="store_true", help="with --sort: the largest first")
    parser.add_argument(
        "--columns", type=lambda text: text.split(","), metavar="NAME,…",
        help="only these columns: model,n,clean_at,clean_delta,robust_verdict,…",
    )  # fmt: skip
    parser.add_argument(
        "--paper",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the paper's values in LaTeX tables",
    )
    parser.add_argument(
        "--significance", action="store_true",
        help="instead of the table: tests over seeds, and over the images of all seeds",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="the jobs with their state, age and device hours")
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
    options.format = _ALIASES.get(options.format, options.format)
    options.where = conditions(options.where)
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
    alone = [name for name in ("sort", "columns", "significance", "list") if getattr(options, name)]
    if names and alone:
        raise UserError(f"--{alone[0]} goes with folders, not with the name of an experiment: leave it out")
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
    jobs = select(jobs, options.where) if jobs else jobs
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.html:
        tables, found = experiment_tables(options.experiment, jobs)
        write_html(found, options.output or _FOLDER, options.experiment, tables)
    elif options.output is None and options.format not in (None, "all"):
        show_experiment(options.experiment, jobs, options.format, options.paper)
    else:
        folder = options.output or _FOLDER
        write_experiment(options.experiment, jobs, options.format or "all", folder, options.paper)
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
    return select(jobs, options.where), warnings


def _left_out(options: argparse.Namespace) -> list[PageTable]:
    """The jobs that have no results to show, and why."""
    frame = index_frame(
        [(job, state) for job, state in _found(options) if state.state != "done"], time.time()
    )
    if frame.empty:
        return []
    cells = index_cells(frame).drop(columns="device hours")
    return [PageTable("Jobs without results", cells, 3, "As `python -m rift.report --list` tells them.")]


def _found(options: argparse.Namespace) -> list[tuple[Job, JobState]]:
    """The jobs that the options ask for, finished or not."""
    found = [
        (job, state)
        for job, state in found_jobs(options.paths)
        if (options.smoke or not job.summary.get("smoke"))
        and options.study in (None, job.summary.get("study"))
    ]
    if not found:
        raise UserError(f"no jobs in {', '.join(map(str, options.paths))}; give another folder")
    kept = {job.folder for job in select([job for job, _ in found], options.where)}
    return [(job, state) for job, state in found if job.folder in kept]


def _list(options: argparse.Namespace) -> int:
    """Prints the index of the jobs, finished or not."""
    missing = [path for path in options.paths if not path.exists()]
    if missing:
        raise UserError(f"{missing[0]} does not exist; give folders that hold jobs, e.g. outputs/jobs")
    frame = index_frame(_found(options), time.time())
    show_table(index_cells(frame), frame, options.format or "terminal", "Jobs", text_columns=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
