"""One job from configuration to report: its folder, its tracker, its stages, its summary."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rift.checkpoint import save_json
from rift.config import Config
from rift.pipeline import Pipeline, make_runtime, make_session, paired_comparison
from rift.protocol import differences, selection_notes
from rift.provenance import provenance
from rift.report import job_report
from rift.store import StageFolder, Store, digest
from rift.tracking import Tracker, open_tracker

log = logging.getLogger(__name__)


def job_key(config: Config) -> str:
    """Digest of what decides the job's result: not where it runs, logs, or keeps its files."""
    typed = asdict(config)
    for place in ("logger", "runtime", "study", "output"):
        del typed[place]
    for place in ("root", "download", "cache"):
        del typed["dataset"][place]
    return digest({**typed, "precision": config.runtime.precision})


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
    key = job_key(config)
    pipeline = Pipeline(config, session, Store(Path(config.output) / "store"), Tracker())
    folder = Path(config.output) / "jobs" / config.study / f"{pipeline.name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    handler = _log_to(folder / "job.log")
    try:
        save_json(folder / "config.json", asdict(config))
        _announce(config, folder)
        logger = config.logger
        pipeline.tracker = open_tracker(
            logger.name,
            mode=logger.mode,
            project=logger.project,
            entity=logger.entity,
            tags=logger.tags,
            folder=folder,
            job=pipeline.name,
            key=key,
            study=config.study,
            config=asdict(config),
        )
        try:
            pipeline.run()
            summary = make_summary(config, pipeline, key, overrides)
            save_json(folder / "summary.json", summary)
            _report(folder, pipeline.tracker, summary)
        finally:
            pipeline.tracker.close()
    finally:
        logging.getLogger("rift").removeHandler(handler)
        handler.close()
    return summary


def _log_to(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("rift").addHandler(handler)
    return handler


def _announce(config: Config, folder: Path) -> None:
    log.info("job: %s", folder)
    if config.smoke:
        log.warning("smoke=true: a few images and epochs only; the numbers are no results")
    for note in selection_notes(config):
        log.info("protocol=%s: %s", config.protocol.name, note)
    if config.evaluation_attack.epsilon != config.attack.epsilon:
        log.warning(
            "evaluation attacks with epsilon %s, training with %s",
            config.evaluation_attack.epsilon,
            config.attack.epsilon,
        )


def make_summary(
    config: Config, pipeline: Pipeline, key: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that reports need of a job, in one file."""
    folders: dict[str, StageFolder] = pipeline.folders
    results = {name: folder.result() for name, folder in folders.items()}
    device = pipeline.session.runtime.describe()
    summary: dict[str, Any] = {
        "format": 1,
        "name": pipeline.name,
        "key": key,
        "study": config.study,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "method": config.method.name,
        "seed": config.seed,
        "protocol": config.protocol.name,
        "smoke": config.smoke,
        "attack": {
            **asdict(config.evaluation_attack),
            "epsilon_value": pipeline.evaluation_attack.epsilon,
            "restarts": config.stage.evaluate.restarts,
        },
        "target": config.stage.finetune.target,
        "alpha_tolerance": config.stage.interpolate.tolerance,
        "differences": differences(config),
        "notes": selection_notes(config)
        + [note for result in results.values() for note in result["fallbacks"]],
        "overrides": dict(overrides),
        "stages": {name: str(folder.path) for name, folder in folders.items()},
        "wall_seconds": {name: result["seconds"] for name, result in results.items()},
        "provenance": {
            **provenance(),
            "device": f"{device['name']}, {device['precision']}",
            "data": pipeline.session.dataset.identity,
        },
    }
    accuracies = ("clean_accuracy", "robust_accuracy", "robust_accuracy_per_image", "num_images")
    for which in ("at", "rift"):
        if f"evaluate_{which}" in results:
            summary[which] = {name: results[f"evaluate_{which}"][name] for name in accuracies}
    if "mrc" in results:
        columns = ("module", "mrc", "robust_accuracy_drop", "relative_norm", "rank")
        summary["mrc"] = [{name: row[name] for name in columns} for row in results["mrc"]["modules"]]
    if "finetune" in results:
        summary["target_modules"] = results["finetune"]["modules"]
    if "interpolate" in results:
        summary["alpha"] = results["interpolate"]["alpha"]
        summary["sweep"] = results["interpolate"]["sweep"]
    paired = paired_comparison(folders)
    if paired is not None:
        summary["paired"] = paired
    return summary


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
    console.print(report["table"], markup=False, highlight=False)
    places = [("summary", folder / "summary.json"), ("page", report["page"])]
    places += [("figure", path) for path in report["figures"] if path.suffix == ".png"]
    if tracker.where is not None:
        places.append(("W&B run", tracker.where))
    for what, path in places:
        console.print(f"{what + ':':9}{path}", markup=False, highlight=False, soft_wrap=True)
