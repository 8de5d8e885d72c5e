"""What reports need to know of a job, in one JSON-able value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rift.config import Config
from rift.pipeline import Pipeline, paired_comparison
from rift.protocol import differences, selection_notes
from rift.provenance import provenance


def make_summary(
    config: Config, pipeline: Pipeline, key: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that reports need of a job, in one file."""
    folders = pipeline.folders
    results = {name: folder.result() for name, folder in folders.items()}
    device = pipeline.session.runtime.describe()
    summary: dict[str, Any] = {
        "format": 1,
        "name": pipeline.runner.name,
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
