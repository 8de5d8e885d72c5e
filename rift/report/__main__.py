"""`python -m rift.report`: tables and figures of finished jobs, or of an experiment by its name."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rift.errors import UserError, choose_from
from rift.job_state import JobState
from rift.report.collect import Survey, survey
from rift.report.experiment_command import (
    FORMATS,
    LEFT_OUT,
    experiment_tables,
    show_experiment,
    show_progress,
    unfinished_table,
    write_experiment,
)
from rift.report.experiments import experiment_names
from rift.report.index import index_cells, index_frame
from rift.report.results import Job
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
        found = survey(options.paths)
        kept, duplicates = one_job_per_seed(jobs_frame(_select(options, found)))
        for warning in found.warnings + duplicates:
            print(f"warning: {warning}", file=sys.stderr)
        if options.sort is not None:
            kept = sort_jobs(kept, options.sort, SETTING, reverse=options.reverse)
        view = View(options.columns, options.paper, options.significance)
        if options.html:
            write_html(kept, options.output or _FOLDER, left_out=_left_out(options, found))
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
    # Where nothing was run yet, the table says so.
    found = survey(path for path in options.paths if path.exists())
    if options.collect:
        states = [pair for pair in found.states if options.smoke or not pair[0].summary.get("smoke")]
        return 0 if show_progress(options.experiment, states) else 1
    jobs = [job for job in found.jobs if options.smoke or not job.summary.get("smoke")]
    jobs = select(jobs, options.where) if jobs else jobs
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.html:
        tables, frame = experiment_tables(options.experiment, jobs)
        # Of a part of the jobs nothing says which of them were never started.
        left_out = unfinished_table(options.experiment, _chosen(options, found), missing=not options.where)
        write_html(frame, options.output or _FOLDER, options.experiment, tables, left_out)
    elif options.output is None and options.format not in (None, "all"):
        show_experiment(options.experiment, jobs, options.format, options.paper)
    else:
        folder = options.output or _FOLDER
        write_experiment(options.experiment, jobs, options.format or "all", folder, options.paper)
    return 0


def _select(options: argparse.Namespace, found: Survey) -> list[Job]:
    """The jobs with results that the options ask for; raises `UserError` if none is left."""
    jobs, warnings = found.jobs, found.warnings
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
    return select(jobs, options.where)


def _left_out(options: argparse.Namespace, found: Survey) -> list[PageTable]:
    """The jobs that have no results to show, and why."""
    frame = index_frame(_chosen(options, found), time.time())
    frame = frame[frame["state"] != "done"]  # only now: in what they differ is also from those that are done
    if frame.empty:
        return []
    cells = index_cells(frame).drop(columns="device hours")
    caption = "As python -m rift.report --list tells them."
    return [PageTable(LEFT_OUT, cells, list(cells).index("age"), caption)]


def _chosen(options: argparse.Namespace, found: Survey) -> list[tuple[Job, JobState]]:
    """The jobs that the options ask for, finished or not."""
    pairs = [
        (job, state)
        for job, state in found.states
        if (options.smoke or not job.summary.get("smoke"))
        and options.study in (None, job.summary.get("study"))
    ]
    if not pairs:
        return []
    kept = {job.folder for job in select([job for job, _ in pairs], options.where)}
    return [(job, state) for job, state in pairs if job.folder in kept]


def _list(options: argparse.Namespace) -> int:
    """Prints the index of the jobs, finished or not."""
    pairs = _chosen(options, survey(options.paths))
    if not pairs:
        raise UserError(f"no jobs in {', '.join(map(str, options.paths))}; give another folder")
    frame = index_frame(pairs, time.time())
    cells = index_cells(frame)
    texts = list(cells).index("age")
    show_table(cells, frame, options.format or "terminal", "Jobs", text_columns=texts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
