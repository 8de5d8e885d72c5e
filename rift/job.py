"""One job from configuration to report: its folder, its tracker, its stages, its summary."""

from __future__ import annotations

import io
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from rich.console import Console

from rift.assembly import make_runtime, make_session
from rift.checkpoint import nearest_existing, save_json
from rift.config import Config
from rift.estimate import with_times
from rift.explain import in_one_line
from rift.job_state import LOCK_FILE, STATE_FILE, JobState, job_holder
from rift.locks import held
from rift.naming import chosen_plugins
from rift.pipeline import Pipeline
from rift.plan import busy, machine, make_plan, plan_lines, plan_table
from rift.progress import terminal_width
from rift.protocol import departures, method_notes, selection_notes
from rift.provenance import provenance
from rift.runtime import Runtime, computes_bfloat16, distributed
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


def run_job(config: Config, overrides: Mapping[str, Any], varied: Sequence[str] = ()) -> dict[str, Any]:
    """Runs one job. Nothing is written before everything that can be checked has been.

    Args:
        config: checked configuration.
        overrides: what the command line changed, for the report.
        varied: what tells the job from the others of its sweep, for its name: `finetune.lr=0.01`.

    Returns:
        The summary, as stored in the job's folder; empty in a process that is not the writer.

    Raises:
        UserError: see `make_session` and `Pipeline.run`.
        OSError: the output folder cannot be written.
    """
    pipeline = prepare(config)
    key, name = job_key(config, pipeline.session.runtime), " ".join([pipeline.name, *varied])
    if not distributed.is_writer():
        return _follow(pipeline)
    folder = _folder(Path(config.output) / "jobs" / config.study, name, key)
    folder.mkdir(parents=True, exist_ok=True)
    about = job_about(config, pipeline.checkpoint_digest)
    with _held(folder, about), _log_in(folder / "job.log"), distributed.common_fate(in_one_line):
        distributed.from_writer(lambda: None)  # the others wait for the lock
        save_json(folder / "config.json", asdict(config))
        _announce(config, folder, pipeline)
        _announce_plan(pipeline)
        tracker = open_tracker(
            config.logger.name,
            mode=config.logger.mode,
            project=config.logger.project,
            entity=config.logger.entity,
            tags=[*config.logger.tags, config.protocol.name, *(["smoke"] if config.smoke else [])],
            folder=folder,
            job=name,
            key=digest([key, config.study]),
            study=config.study,
            job_type="rift" if set(CHAIN) <= set(config.stage.run) else "+".join(config.stage.run),
            config={**asdict(config), "provenance": provenance(), "plugins": chosen_plugins(config)},
        )
        with ended(tracker):
            pipeline.run(tracker)
            with distributed.alone():
                summary = make_summary(config, pipeline, name, key, overrides)
                save_json(folder / "summary.json", summary)
                _report(folder, tracker, summary)
    return summary


def prepare(config: Config) -> Pipeline:
    """Does all that can be checked before the first epoch, and writes no result.

    Args:
        config: checked configuration.

    Returns:
        The job's pipeline, rehearsed.

    Raises:
        UserError: see `make_session` and `Pipeline.rehearse`.
        OSError: the output folder cannot be written.
    """
    if distributed.is_writer():
        _check_writable(Path(config.output))
    runtime = make_runtime(config)
    session = make_session(config, runtime)
    pipeline = Pipeline(config, session, Store(Path(config.output) / "store"))
    seen = [job_key(config, runtime), session.dataset.identity, pipeline.checkpoint_digest]
    seen += [str(torch.__version__)]
    distributed.require_same(seen, "options, images, checkpoint or version of torch")
    pipeline.rehearse()
    return pipeline


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
def _held(folder: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Holds the job's folder, and notes there what the job is of and how it stands; see `rift.job_state`.

    A process that finds it held waits until the other one has ended, and then finds its results.
    """

    def tell() -> None:
        log.info("%s is running this job, waiting for it: %s", job_holder(folder), folder)

    # Whoever reads a job's state holds its lock for an instant.
    with held(folder / LOCK_FILE, tell, patience=1):
        began = JobState("running", began=_now(), host=platform.node(), pid=os.getpid())
        try:
            save_json(folder / STATE_FILE, {**asdict(began), "about": about})
            yield
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


def _announce(config: Config, folder: Path, pipeline: Pipeline) -> None:
    log.info("job: %s", folder)
    for group, about in chosen_plugins(config).items():
        log.info("%s: of the package %s %s", group, about["package"], about["version"])
    for sentence in pipeline.import_notes:
        log.info("%s: %s", config.model.checkpoint, sentence)
    if config.smoke:
        log.warning("smoke=true: a few images and epochs only; the numbers are no results")
    for note in selection_notes(config):
        log.info("protocol=%s: %s", config.protocol.name, note)
    for note in [*departures(config), *method_notes(config)]:
        log.warning("%s", note)
    if slow := slow_bfloat16(config, pipeline.session.runtime.device):
        log.warning("%s", slow)
    for role, attack in (("selection", config.selection_attack), ("evaluation", config.evaluation_attack)):
        if (attack.norm, attack.epsilon) != (config.attack.norm, config.attack.epsilon):
            message = "%s attacks within %s of %s, training within %s of %s"
            own = config.attack
            log.warning(message, role, attack.epsilon, attack.norm, own.epsilon, own.norm)


def _announce_plan(pipeline: Pipeline) -> None:
    """A table where there is a terminal, else a line for each stage."""
    about = machine(pipeline.config, pipeline.session.runtime)
    steps = with_times(make_plan(pipeline), pipeline)
    if (told := busy(pipeline.session.runtime)) and any(step.seconds is not None for step in steps):
        log.info("plan: %s", told)
    width = terminal_width()
    if width is None:
        for line in [f"plan: {about}", *(f"plan: {line}" for line in plan_lines(steps))]:
            log.info("%s", line)
        return
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(plan_table(steps, f"Plan: {about}"))
    log.info("%s", "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines()))


def slow_bfloat16(config: Config, device: torch.device) -> str | None:
    """The warning for bfloat16 that was asked for where it is computed in software; else None."""
    asked = {
        "runtime.precision": config.runtime.precision,
        "runtime.selection_precision": config.runtime.selection_precision,
        "runtime.evaluation_precision": config.runtime.evaluation_precision,
        "stage.mrc.precision": config.stage.mrc.precision,
    }
    chosen = [option for option, precision in asked.items() if precision == "bfloat16"]
    if not chosen or computes_bfloat16(device):
        return None
    machine, remedy = device.type.upper(), " ".join(f"{option}=float32" for option in chosen)
    return (
        f"{' and '.join(chosen)}: this {machine} has no bfloat16 instructions, so bfloat16 is some ten times "
        f"slower than float32 here; say {remedy}."
    )


def _report(folder: Path, tracker: Tracker, summary: Mapping[str, Any]) -> None:
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
    if tracker.where is not None:
        places.append(("W&B run", tracker.where))
    for what, path in places:
        console.print(f"{what + ':':9}{path}", markup=False, soft_wrap=True)
    print_conclusion(console, summary)
