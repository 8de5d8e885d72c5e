"""One job from configuration to report: its folder, its tracker, its stages, its summary."""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from rich.console import Console

from rift.announcement import announce, announce_plan
from rift.assembly import make_runtime, make_session
from rift.checkpoint import nearest_existing, save_json
from rift.config import Config
from rift.done_before import DoneBefore, done_before
from rift.explain import in_one_line
from rift.job_state import LOCK_FILE, STATE_FILE, JobState, job_holder, noted_state
from rift.locks import held
from rift.naming import chosen_plugins
from rift.pipeline import Pipeline
from rift.provenance import provenance
from rift.runtime import Runtime, distributed
from rift.stage_options import CHAIN
from rift.store import Store, digest
from rift.summary import final_numbers, job_about, make_summary
from rift.tracking import Tracker, ended, open_tracker

log = logging.getLogger(__name__)

LONGEST_NAME = 150  # characters of a folder's name before its key; file systems allow 255 bytes
PLAIN_WIDTH = 100  # columns of what is printed into a pipe or a file


def job_key(config: Config, runtime: Runtime) -> str:
    """Digest of what decides the job's result: not where it runs, logs, or keeps its files."""
    typed = asdict(config)
    for place in ("logger", "runtime", "study", "output"):
        del typed[place]
    for place in ("root", "download", "cache", "corrupted_root"):
        del typed["dataset"][place]
    for group in ("model", "dataset", "method", "attack", "selection_attack", "evaluation_attack"):
        if not typed[group]["options"]:  # as before there were any
            del typed[group]["options"]
        if typed[group].get("plugin", "") is None:
            del typed[group]["plugin"]
    if others := chosen_plugins(config):
        typed["plugins"] = others
    typed["stage"]["evaluate"]["corruptions"] = config.corruptions_kind
    precisions = [runtime.precision, runtime.selection_precision, runtime.evaluation_precision]
    return digest({**typed, "precision": [*map(str, precisions), config.runtime.tf32]})


def run_job(
    config: Config,
    overrides: Mapping[str, Any],
    varied: Sequence[str] = (),
    typed: Collection[str] | None = None,
    in_sweep: bool = False,
) -> dict[str, Any]:
    """Runs one job. Nothing is written before everything that can be checked has been.

    Args:
        config: checked configuration.
        overrides: what the command line changed, for the report.
        varied: what tells the job from the others of its sweep, for its name: `finetune.lr=0.01`.
        typed: the names of those overrides that the user gave, and no experiment's file; None is all.
        in_sweep: one line is enough where nothing is to be done.

    Returns:
        The summary, as stored in the job's folder; empty in a process that is not the writer.

    Raises:
        UserError: see `make_session` and `Pipeline.run`.
        OSError: the output folder cannot be written.
    """
    pipeline, key = prepare(config)
    name = " ".join([pipeline.name, *varied])
    if not distributed.is_writer():
        return _follow(pipeline)
    run_id = digest([key, config.study])
    folder = _folder(Path(config.output) / "jobs" / config.study, name, key)
    folder.mkdir(parents=True, exist_ok=True)
    about = job_about(config, pipeline.checkpoint_digest)

    def summarise() -> dict[str, Any]:
        return make_summary(config, pipeline, name, key, overrides)

    job_log = _log_in(folder / "job.log")
    with _held(folder, about) as state, job_log, distributed.common_fate(in_one_line):
        distributed.from_writer(lambda: None)  # the others wait for the lock
        with distributed.alone():
            earlier = done_before(folder, state, pipeline, run_id, summarise)
        if earlier is not None and in_sweep:
            return _nothing_to_do(folder, earlier)
        save_json(folder / "config.json", asdict(config))
        announce(config, folder, pipeline, overrides if typed is None else typed)
        announce_plan(pipeline)
        if earlier is not None:
            log.info("nothing to do: all of it was done before, and nothing is tracked anew")
        tracker = Tracker() if earlier is not None else _tracker(config, folder, name, run_id)
        with ended(tracker):
            pipeline.run(tracker)
            with distributed.alone():
                summary = summarise()
                save_json(folder / "summary.json", summary)
                _report(folder, tracker, summary, tracker.where if earlier is None else earlier.run)
    return summary


def prepare(config: Config) -> tuple[Pipeline, str]:
    """Does all that can be checked before the first epoch, and writes no result.

    Args:
        config: checked configuration.

    Returns:
        The job's pipeline, rehearsed, and the job's key.

    Raises:
        UserError: see `make_session` and `Pipeline.rehearse`.
        OSError: the output folder cannot be written.
    """
    if distributed.is_writer():
        _check_writable(Path(config.output))
    runtime = make_runtime(config)
    session = make_session(config, runtime)
    pipeline, key = Pipeline(config, session, Store(Path(config.output) / "store")), job_key(config, runtime)
    seen = [key, session.dataset.identity, pipeline.checkpoint_digest, str(torch.__version__)]
    distributed.require_same(seen, "options, images, checkpoint or version of torch")
    pipeline.rehearse()
    return pipeline, key


def _tracker(config: Config, folder: Path, name: str, run_id: str) -> Tracker:
    return open_tracker(
        config.logger.name,
        mode=config.logger.mode,
        project=config.logger.project,
        entity=config.logger.entity,
        tags=[*config.logger.tags, config.protocol.name, *(["smoke"] if config.smoke else [])],
        folder=folder,
        job=name,
        key=run_id,
        study=config.study,
        job_type="rift" if set(CHAIN) <= set(config.stage.run) else "+".join(config.stage.run),
        config={**asdict(config), "provenance": provenance(), "plugins": chosen_plugins(config)},
    )


def _nothing_to_do(folder: Path, earlier: DoneBefore) -> dict[str, Any]:
    """One line for a job of a sweep whose results are all there."""
    from rift.report import conclusion_in_brief  # see _report

    brief = conclusion_in_brief(earlier.summary)
    log.info("nothing to do, done before%s: %s", f"; {brief}" if brief else "", folder)
    return earlier.summary


def _follow(pipeline: Pipeline) -> dict[str, Any]:
    """What a process does that is not the writer: its share, and nothing else."""
    with distributed.common_fate(in_one_line):
        distributed.from_writer(lambda: None)
        pipeline.run(Tracker())
    return {}


def _check_writable(output: Path) -> None:
    """Raises `OSError` if the folder cannot be made or written; leaves nothing behind."""
    try:
        with TemporaryFile(dir=nearest_existing(output)) as file:
            file.write(b"0" * 2**16)  # into a file on a full disk nothing goes
    except OSError as error:  # it names the file, which is nobody's business
        raise OSError(error.errno, error.strerror, str(output)) from error


def _folder(study: Path, name: str, key: str) -> Path:
    """The job's folder: the one that it has already, whatever it is called, or a new one."""
    plain = re.sub(r"[^\w.=+-]+", "-", name)[:LONGEST_NAME]
    return next(iter(sorted(study.glob(f"*-{key}"))), study / f"{plain}-{key}")


@contextmanager
def _held(folder: Path, about: Mapping[str, Any]) -> Iterator[JobState | None]:
    """Holds the job's folder, and notes there what the job is of and how it stands; see `rift.job_state`.

    A process that finds it held waits until the other one has ended, and then finds its results.

    Yields:
        What was noted there before.
    """

    def tell() -> None:
        log.info("%s is running this job, waiting for it: %s", job_holder(folder), folder)

    # Whoever reads a job's state holds its lock for an instant.
    with held(folder / LOCK_FILE, tell, patience=1):
        before = noted_state(folder)
        began = JobState("running", began=_now(), host=platform.node(), pid=os.getpid())
        try:
            save_json(folder / STATE_FILE, {**asdict(began), "about": about})
            yield before
            _note_end(folder, began, about, "done")
        except KeyboardInterrupt:
            with suppress(OSError):  # what went wrong first is what is told
                _note_end(folder, began, about, "stopped")
            raise
        except Exception as error:
            with suppress(OSError):
                _note_end(folder, began, about, "failed", in_one_line(error))
            raise


def _note_end(
    folder: Path, began: JobState, about: Mapping[str, Any], state: str, reason: str | None = None
) -> None:
    ended = {**asdict(began), "state": state, "ended": _now(), "reason": reason}
    save_json(folder / STATE_FILE, {**ended, "about": about})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _log_in(path: Path) -> Iterator[None]:
    """Our messages go to a file too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.handleError = lambda record: None  # on a full disk the result files will say it, once
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("rift")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _report(folder: Path, tracker: Tracker, summary: dict[str, Any], run: Path | None) -> None:
    """Tables, figures and places; `run` is the folder of the job's W&B run."""
    if "mrc" in summary:
        tracker.ranking(summary["mrc"])
    if "sweep" in summary:
        tracker.sweep(summary["sweep"])
    if "corruptions" in summary:
        tracker.corruptions(summary["corruptions"])
    tracker.summary(final_numbers(summary))
    from rift.report import (  # matplotlib and pandas take a second to import
        job_report,
        print_conclusion,
        print_job,
    )

    report = job_report(folder)
    tracker.figures([path for path in report["figures"] if path.suffix == ".png"])
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    print_job(console, summary)
    places = [("summary", folder / "summary.json"), ("page", report["page"])]
    places += [("figure", path) for path in report["figures"] if path.suffix == ".png"]
    if run is not None:
        places.append(("W&B run", run))
    for what, path in places:
        console.print(f"{what + ':':9}{path}", markup=False, soft_wrap=True)
    print_conclusion(console, summary)
