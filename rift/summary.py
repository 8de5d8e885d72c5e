"""What reports need to know of a job, in one JSON-able value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rift.config import Config
from rift.pipeline import Pipeline, method_name, model_name, paired_comparison
from rift.protocol import departures, differences, flat, selection_notes
from rift.provenance import provenance


def make_summary(
    config: Config, pipeline: Pipeline, name: str, key: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that reports need of a job, in one file."""
    folders = pipeline.folders
    results = {name: folder.result() for name, folder in folders.items()}
    device = pipeline.session.runtime.describe()
    summary: dict[str, Any] = {
        "format": 2,
        "name": name,
        "key": key,
        "study": config.study,
        "model": model_name(config),
        "dataset": config.dataset.name,
        "method": method_name(config),
        "seed": config.seed,
        "protocol": config.protocol.name,
        "smoke": config.smoke,
        "attack": {
            "name": pipeline.evaluation_attack.name,
            **asdict(config.evaluation_attack),
            "epsilon_value": pipeline.evaluation_attack.epsilon,
            "restarts": config.stage.evaluate.restarts,
        },
        "target": config.stage.finetune.target,
        "alpha_tolerance": config.stage.interpolate.tolerance,
        "differences": differences(config),
        "notes": list(
            dict.fromkeys(
                [
                    *selection_notes(config),
                    *departures(config),
                    *pipeline.import_notes,
                    *(note for result in results.values() for note in result["fallbacks"]),
                ]
            )
        ),
        "overrides": dict(overrides),
        "options": decisive_options(config, pipeline.checkpoint_digest),
        "stages": {name: str(folder.path) for name, folder in folders.items()},
        "wall_seconds": {name: result["seconds"] for name, result in results.items()},
        "provenance": {
            **provenance(),
            "device": f"{device['name']}, {device['precision']}",
            "data": pipeline.session.dataset.identity,
        },
    }
    if "at" in results:
        summary["training"] = {
            "epochs": config.stage.at.epochs,
            "selection_split": config.stage.at.selection_split,
            "attack": pipeline.selection_attack.name,
            **{epoch: results["at"][epoch] for epoch in ("best", "last")},
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


def final_numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary's numbers under names that no curve has, for W&B: `final/rift_robust`, `final/delta_clean`.

    Accuracies and differences are fractions, times are seconds; what was not measured is left out.
    """
    accuracies = {
        "clean": "clean_accuracy",
        "robust": "robust_accuracy",
        "robust_per_image": "robust_accuracy_per_image",
    }
    at, rift = (summary.get(which, {}) for which in ("at", "rift"))
    found = {"alpha": summary.get("alpha"), "modules": summary.get("target_modules")}
    for name, metric in accuracies.items():
        found |= {f"at_{name}": at.get(metric), f"rift_{name}": rift.get(metric)}
        if at and rift:
            found[f"delta_{name}"] = rift[metric] - at[metric]
    # The paired test counts images, so it is of the reading per image.
    tested = {"clean": "p_clean", "robust": "p_robust_per_image"}
    found |= {tested[name]: test["p_value"] for name, test in summary.get("paired", {}).items()}
    numbers = {f"final/{name}": value for name, value in found.items() if value is not None}
    return numbers | {f"seconds/{name}": value for name, value in summary["wall_seconds"].items()}


def decisive_options(config: Config, checkpoint: str | None) -> dict[str, Any]:
    """Every resolved option by its dotted name that two runs must share to be seeds of one row.

    Without seed, machine and places, and without what only says how much of the chain ran.

    Args:
        config: of the job.
        checkpoint: digest of the file that it starts from; where that lies does not matter.
    """
    typed = asdict(config)
    for name in ("seed", "runtime", "logger", "study", "output"):
        del typed[name]
    for name in ("root", "download", "cache", "official_scan_split"):
        del typed["dataset"][name]
    del typed["stage"]["run"]
    typed["model"]["checkpoint"] = checkpoint
    return flat(typed)
