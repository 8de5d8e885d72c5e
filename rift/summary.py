"""What reports need to know of a job, in one JSON-able value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rift.assembly import make_attack
from rift.comparison import mcnemar, paired_bootstrap
from rift.conf_files import flat
from rift.config import Config
from rift.naming import chosen_plugins, method_name, model_name
from rift.pipeline import Pipeline
from rift.protocol import departures, differences, method_notes, selection_notes
from rift.provenance import made_elsewhere, provenance
from rift.stages.corruption_evaluation import per_image
from rift.store import StageFolder


def make_summary(
    config: Config, pipeline: Pipeline, name: str, key: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that reports need of a job, in one file."""
    folders = pipeline.folders
    results = {name: folder.result() for name, folder in folders.items()}
    device = pipeline.session.runtime.describe()
    attack = make_attack(config.evaluation_attack)
    summary: dict[str, Any] = {
        "format": 2,
        "name": name,
        "key": key,
        **job_about(config, pipeline.checkpoint_digest),
        "attack": {
            "name": attack.name,
            **asdict(config.evaluation_attack),
            "epsilon_value": attack.epsilon,
            "restarts": config.stage.evaluate.restarts,
        },
        **({"plugins": others} if (others := chosen_plugins(config)) else {}),
        "alpha_tolerance": config.stage.interpolate.tolerance,
        "differences": differences(config),
        "notes": list(
            dict.fromkeys(
                [
                    *selection_notes(config),
                    *departures(config),
                    *method_notes(config),
                    *pipeline.import_notes,
                    *results.get("at", {}).get("notes", []),
                    *alarms(results),
                    *filter(None, (made_elsewhere(one, device["name"]) for one in results.values())),
                    *(note for result in results.values() for note in result["fallbacks"]),
                ]
            )
        ),
        "overrides": dict(overrides),
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
    for which in ("at", "rift"):
        if found := measured_accuracies(config, results, which):
            summary[which] = found
    if "corruptions_at" in results:
        summary["corruptions"] = corruption_tables(config, results)
    if "mrc" in results:
        columns = ("module", "mrc", "robust_accuracy_drop", "relative_norm", "rank")
        summary["mrc"] = [{name: row[name] for name in columns} for row in results["mrc"]["modules"]]
    if "joint" in results:
        summary["joint"] = {choice: results["joint"][choice] for choice in ("greedy", "top_k")}
    if "gains" in results:
        summary["gains"] = results["gains"]["modules"]
    if "finetune" in results:
        summary["target_modules"] = results["finetune"]["modules"]
        summary["leak"] = results["finetune"]["leak"][config.stage.finetune.select]
    if "interpolate" in results:
        summary["alpha"] = results["interpolate"]["alpha"]
        summary["sweep"] = results["interpolate"]["sweep"]
        summary["starts_at_theta_at"] = results["interpolate"]["starts_at_theta_at"]
    paired = paired_tests(folders)
    if paired is not None:
        summary["paired"] = paired
    summary["intervals"] = intervals(config, folders)
    return summary


def job_about(config: Config, checkpoint: str | None) -> dict[str, Any]:
    """What a job is of, known before it runs: by what ran, not by what was typed.

    Args:
        config: of the job.
        checkpoint: digest of the file that it starts from.
    """
    return {
        "study": config.study,
        "model": model_name(config),
        "dataset": config.dataset.name,
        "method": method_name(config),
        "seed": config.seed,
        "protocol": config.protocol.name,
        "smoke": config.smoke,
        "run": list(config.stage.run),
        "target": config.stage.finetune.target,
        "options": decisive_options(config, checkpoint),
    }


def measured_accuracies(
    config: Config, results: Mapping[str, Mapping[str, Any]], which: str
) -> dict[str, float | int]:
    """What was measured of one of the two networks, `at` or `rift`, as fractions; empty if nothing was.

    OOD accuracy has another name where the images are our own: the two are never compared.
    """
    found: dict[str, float | int] = {}
    if (result := results.get(f"evaluate_{which}")) is not None:
        names = ("clean_accuracy", "robust_accuracy", "robust_accuracy_per_image", "num_images")
        found |= {name: result[name] for name in names}
    if (result := results.get(f"auto_attack_{which}")) is not None:
        suffix = "" if result["version"] == "standard" else "_quick"
        found[f"auto_attack{suffix}_accuracy"] = result["robust_accuracy"]
        found["auto_attack_images"] = result["num_images"]
    if (result := results.get(f"corruptions_{which}")) is not None:
        suffix = "" if result["kind"] == "published" else "_generated"
        found[f"ood_accuracy{suffix}"] = ood_accuracy(config, result)
    if (result := results.get(f"cifar10_1_{which}")) is not None:
        found["cifar10_1_accuracy"] = result["clean_accuracy"]
    return found


MASKED = 0.1  # share of the images by which AutoAttack may be under PGD; a few points are usual
UNTOUCHED = 0.98  # share of the clean accuracy above which an attack seems to do nothing


def alarms(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes a robust accuracy doubtful, a sentence each.

    AutoAttack cannot be above PGD here: what PGD fooled counts as fooled.
    """
    found = []
    for which, name in (("at", "AT"), ("rift", "RiFT")):
        pgd, auto = results.get(f"evaluate_{which}"), results.get(f"auto_attack_{which}")
        if pgd is not None and pgd["robust_accuracy"] > UNTOUCHED * pgd["clean_accuracy"] > 0:
            found.append(
                f"{name}: robust accuracy is {pgd['robust_accuracy'] / pgd['clean_accuracy']:.0%} of clean: "
                "does the attack work (epsilon, step size, normalisation)?"
            )
        if auto is not None and auto["pgd_accuracy"] is not None:
            under = auto["pgd_accuracy"] - auto["robust_accuracy"]
            if under > MASKED:
                found.append(
                    f"{name}: AutoAttack is {100 * under:.1f} points under PGD on the same images: gradients "
                    "may be masked"
                )
    return found


def ood_accuracy(config: Config, result: Mapping[str, Any]) -> float:
    """Mean accuracy over the corruptions of `stage.evaluate.ood`, at every severity that was measured."""
    names, count = config.stage.evaluate.ood_names(), result["num_images"]
    right = [n for version, n in result["correct"].items() if version.partition("/")[0] in names]
    return sum(right) / (len(right) * count)


def corruption_tables(config: Config, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the corrupted images are, and each network's accuracy on every version and in every mean."""
    about = results["corruptions_at"]
    tables: dict[str, Any] = {
        "kind": about["kind"],
        "paired": about["paired"],
        "images": about["images"],
        "num_images": about["num_images"],
        "ood": config.stage.evaluate.ood,
        "severities": sorted(set(config.stage.evaluate.severities)),
    }
    for which in ("at", "rift"):
        if (result := results.get(f"corruptions_{which}")) is not None:
            count = result["num_images"]
            tables[which] = {
                "means": {config.stage.evaluate.ood: ood_accuracy(config, result)} | result["means"],
                "accuracy": {version: n / count for version, n in result["correct"].items()},
            }
    return tables


def paired_tests(folders: Mapping[str, StageFolder]) -> dict[str, Any] | None:
    """McNemar's test of θ_AT against θ* on the same test images, clean and worst-of-k robust."""
    if "evaluate_at" not in folders or "evaluate_rift" not in folders:
        return None
    first, second = (folders[name].load("verdicts") for name in ("evaluate_at", "evaluate_rift"))
    return {
        "clean": mcnemar(first["clean"], second["clean"]),
        "robust": mcnemar(first["robust"].amin(dim=0), second["robust"].amin(dim=0)),
    }


def intervals(config: Config, folders: Mapping[str, StageFolder]) -> dict[str, dict[str, Any]]:
    """θ* against θ_AT on the same images: each difference with its interval and a verdict in words.

    `clean`, `robust` (the worst run, where every run attacked all images), `robust_per_image`, `auto_attack`,
    `ood`, and
    `ood_beyond_clean`: how much more OOD accuracy changes than clean accuracy, where the corrupted images
    are the clean ones. Robust networks' OOD accuracy follows their clean accuracy, so that is the question.
    """
    pairs = {}
    if {"evaluate_at", "evaluate_rift"} <= folders.keys():
        first, second = (folders[f"evaluate_{which}"].load("verdicts") for which in ("at", "rift"))
        pairs["clean"] = first["clean"], second["clean"]
        pairs["robust_per_image"] = first["robust"].amin(dim=0), second["robust"].amin(dim=0)
        exact = config.stage.evaluate.exact_runs
        pairs["robust"] = (first["robust"], second["robust"]) if exact else pairs["robust_per_image"]
    if {"auto_attack_at", "auto_attack_rift"} <= folders.keys():
        pair = (folders[f"auto_attack_{which}"].load("verdicts")["robust"] for which in ("at", "rift"))
        pairs["auto_attack"] = tuple(pair)
    if {"corruptions_at", "corruptions_rift"} <= folders.keys():
        names = config.stage.evaluate.ood_names()
        ood = [per_image(folders[f"corruptions_{which}"].load("verdicts"), names) for which in ("at", "rift")]
        pairs["ood"] = tuple(ood)
        if "clean" in pairs and folders["corruptions_at"].result()["paired"]:
            pairs["ood_beyond_clean"] = tuple(o - c for o, c in zip(ood, pairs["clean"], strict=True))
    found = {name: paired_bootstrap(*pair) for name, pair in pairs.items()}
    return {name: {**asdict(one), "verdict": one.verdict} for name, one in found.items()}


def final_numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary's numbers under names that no curve has, for W&B: `final/rift_robust`, `final/delta_clean`.

    Accuracies and differences are fractions, times are seconds; what was not measured is left out.
    """
    accuracies = {
        "clean": "clean_accuracy",
        "robust": "robust_accuracy",
        "robust_per_image": "robust_accuracy_per_image",
        "auto_attack": "auto_attack_accuracy",
        "ood": "ood_accuracy",
        "ood_generated": "ood_accuracy_generated",
        "cifar10_1": "cifar10_1_accuracy",
    }
    at, rift = (summary.get(which, {}) for which in ("at", "rift"))
    found = {"alpha": summary.get("alpha"), "modules": summary.get("target_modules")}
    for name, metric in accuracies.items():
        found |= {f"at_{name}": at.get(metric), f"rift_{name}": rift.get(metric)}
        if metric in at and metric in rift:
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
    for name in ("root", "download", "cache", "corrupted_root", "official_scan_split", "official_severities"):
        del typed["dataset"][name]
    del typed["stage"]["run"], typed["stage"]["evaluate"]["measure"]
    typed["stage"]["evaluate"]["corruptions"] = config.corruptions_kind
    if "auto_attack" not in config.stage.evaluate.measure:
        del typed["stage"]["evaluate"]["auto_attack"], typed["stage"]["evaluate"]["auto_attack_images"]
    typed["model"]["checkpoint"] = checkpoint
    return flat(typed)
