"""One job from configuration to report: its folder, its tracker, its stages, its summary."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rift.assembly import make_runtime, make_session
from rift.checkpoint import save_json
from rift.config import Config
from rift.pipeline import Pipeline, job_name
from rift.protocol import selection_notes
from rift.report import job_report
from rift.runtime import Runtime
from rift.store import Store, digest
from rift.summary import make_summary
from rift.tracking import Tracker, open_tracker

log = logging.getLogger(__name__)


def job_key(config: Config, runtime: Runtime) -> str:
    """Digest of what decides the job's result: not where it runs, logs, or keeps its files."""
    typed = asdict(config)
    for place in ("logger", "runtime", "study", "output"):
        del typed[place]
    for place in ("root", "download", "cache"):
        del typed["dataset"][place]
    precisions = [str(runtime.precision), str(runtime.evaluation_precision), config.runtime.tf32]
    return digest({**typed, "precision": precisions})


def run_job(config: Config, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one job.

    Args:
        config: checked configuration.
        overrides: what the command line changed, for the report.

    Returns:
        The summary, as stored in the job's folder.

    Raises:
        UserError: see `Pipeline.run`.
    """
    runtime = make_runtime(config)
    session = make_session(config, runtime)
    key = job_key(config, runtime)
    folder = Path(config.output) / "jobs" / config.study / f"{job_name(config)}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with _log_in(folder / "job.log"):
        save_json(folder / "config.json", asdict(config))
        _announce(config, folder)
        tracker = open_tracker(
            config.logger.name,
            mode=config.logger.mode,
            project=config.logger.project,
            entity=config.logger.entity,
            tags=config.logger.tags,
            folder=folder,
            job=job_name(config),
            key=digest([key, config.study]),
            study=config.study,
            config=asdict(config),
        )
        with closing(tracker):
            pipeline = Pipeline(config, session, Store(Path(config.output) / "store"), tracker)
            pipeline.run()
            summary = make_summary(config, pipeline, key, overrides)
            save_json(folder / "summary.json", summary)
            _report(folder, tracker, summary)
    return summary


@contextmanager
def _log_in(path: Path) -> Iterator[None]:
    """Our messages go to a file too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("rift")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _announce(config: Config, folder: Path) -> None:
    log.info("job: %s", folder)
    if config.smoke:
        log.warning("smoke=true: a few images and epochs only; the numbers are no results")
    for note in selection_notes(config):
        log.info("protocol=%s: %s", config.protocol.name, note)
    for role, attack in (("selection", config.selection_attack), ("evaluation", config.evaluation_attack)):
        if (attack.norm, attack.epsilon) != (config.attack.norm, config.attack.epsilon):
            message = "%s attacks within %s of %s, training within %s of %s"
            own = config.attack
            log.warning(message, role, attack.epsilon, attack.norm, own.epsilon, own.norm)


def _report(folder: Path, tracker: Tracker, summary: Mapping[str, Any]) -> None:
    if "mrc" in summary:
        tracker.ranking(summary["mrc"])
    if "sweep" in summary:
        tracker.sweep(summary["sweep"])
    for which in ("at", "rift"):
        tracker.summary({f"{which}/{name}": value for name, value in summary.get(which, {}).items()})
    if "alpha" in summary:
        tracker.summary({"alpha": summary["alpha"], "target_modules": summary["target_modules"]})
    report = job_report(folder)
    tracker.figures([path for path in report["figures"] if path.suffix == ".png"])
    console = Console()
    if "at" in summary:
        console.print(report["table"], markup=False, highlight=False)
    places = [("summary", folder / "summary.json"), ("page", report["page"])]
    places += [("figure", path) for path in report["figures"] if path.suffix == ".png"]
    if tracker.where is not None:
        places.append(("W&B run", tracker.where))
    for what, path in places:
        console.print(f"{what + ':':9}{path}", markup=False, highlight=False, soft_wrap=True)
