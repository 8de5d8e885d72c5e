"""What a finished job has to export: the weights that its stages hand on, and their card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rift
from rift import foreign
from rift.errors import UserError
from rift.export.card import FORMAT, NETWORKS, WEIGHTS, Network
from rift.export.measured_on import measured_on
from rift.job_state import job_state

_SECTIONS = {"at": "at", "rift": "interpolate"}  # the stage that hands each network on
# What is chosen in each stage, and on which images.
_SPLITS = {
    "at": "stage.at.selection_split",
    "mrc": "stage.mrc.split",
    "finetune": "stage.finetune.selection_split",
    "interpolate": "stage.interpolate.selection_split",
}


@dataclass(frozen=True)
class Handed:
    """Weights that a finished stage hands on.

    Attributes:
        path: the file in the store.
        sha256: what the stage's manifest says of it; not compared yet.
        options: what decided the stage's result.
        result: what came out.
    """

    path: Path
    sha256: str
    options: dict[str, Any]
    result: dict[str, Any]


def contents(job: Path, licence: str | None) -> tuple[dict[str, Handed], dict[str, Any]]:
    """The weights of a finished job, by `at` and `rift`, and the card.

    Args:
        job: the job's folder.
        licence: of the weights; None says that nothing is said.

    Raises:
        UserError: the job is unfinished, or its results are not whole.
    """
    summary = _finished_summary(job)
    try:
        handed = {
            name: _handed(job, summary, name) for name in NETWORKS if _SECTIONS[name] in summary["stages"]
        }
        return handed, make_card(summary, handed, licence)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{job / foreign.SUMMARY} is not what this version of rift writes ({type(error).__name__}: "
            f"{error}): give the job's command again."
        ) from error


def _finished_summary(job: Path) -> dict[str, Any]:
    if not job.is_dir():
        raise UserError(f"{job} is no job's folder: give one below outputs/jobs.")
    state, has_summary = job_state(job).state, (job / foreign.SUMMARY).is_file()
    if state != "done" or not has_summary:
        how = f"is not finished ({state})" if state != "done" else f"has no {foreign.SUMMARY}"
        raise UserError(f"{job} {how}: give the job's command again, then export it.")
    return foreign.read_object(job / foreign.SUMMARY)


def _handed(job: Path, summary: Mapping[str, Any], name: str) -> Handed:
    noted = Path(summary["stages"][_SECTIONS[name]])
    # In the job's own output folder first: a summary from another machine goes on naming that one's paths.
    own = job.parent.parent.parent / "store" / noted.parent.name / noted.name
    folder = own if own.is_dir() else noted
    finished = foreign.read_result(folder, folder.parent.name, foreign.key_of(folder.name))
    chosen = summary["options"]["stage.at.select"] if name == "at" else "weights"
    file = f"{chosen}.safetensors"
    if finished is None or file not in finished.files:
        what = "is missing or unfinished" if finished is None else f"has no {file}"
        raise UserError(f"{folder} {what}: give the job's command again, then export it.")
    told = (foreign.OPTIONS, foreign.RESULT)
    foreign.check(foreign.Finished(folder, {one: finished.files[one] for one in told}, 0))
    options, result = (foreign.read_object(folder / one) for one in told)
    return Handed(folder / file, finished.files[file], options, result)


def make_card(
    summary: Mapping[str, Any], handed: Mapping[str, Handed], licence: str | None
) -> dict[str, Any]:
    """What the card says; docs/export.md explains the fields.

    Args:
        summary: of the job.
        handed: its weights; θ_AT is always there.
        licence: of the weights.
    """
    numbers = {"attack": summary["attack"], **{name: summary.get(name) for name in handed}}
    numbers |= {name: summary[name] for name in ("intervals", "paired") if summary.get(name)}
    if "corruptions" in summary:
        about = ("kind", "num_images", "ood", "severities")
        numbers["corruptions"] = {name: summary["corruptions"][name] for name in about}
    provenance = dict(summary["provenance"])
    data = provenance.pop("data")
    exported = {"rift": rift.__version__, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    about = ("key", "study", "model", "dataset", "method", "seed", "smoke")
    return {
        "format": FORMAT,
        "name": summary["name"],
        "job": {name: summary[name] for name in about},
        "network": asdict(_network(handed["at"].options)),
        "input": "float32 images (N, C, H, W) in [0, 1]; the normalisation is inside after `load_exported`",
        "classes": data["classes"],
        "weights": {
            name: {
                "what": NETWORKS[name],
                "file": f"{name}/{WEIGHTS}",
                "sha256": one.sha256,
                "result": "/".join(one.path.parts[-3:]),
            }
            for name, one in handed.items()
        },
        "chosen": _chosen(summary, handed.get("rift")),
        "numbers": numbers,
        "measured_on": measured_on(summary),
        "protocol": {name: summary[name] for name in ("protocol", "differences", "notes")},
        "data": data,
        "provenance": {
            **provenance,
            # A job may rest on weights that were made long before, elsewhere.
            "weights": {name: _circumstances(one.result) for name, one in handed.items()},
            "exported": exported,
        },
        "licence": {"code": "MIT", "weights": licence},
    }


def _circumstances(result: Mapping[str, Any]) -> dict[str, Any]:
    known = ("command", "commit", "dirty", "versions", "device", "seconds", "finished")
    return {name: result[name] for name in known if name in result}


def _network(decided: Mapping[str, Any]) -> Network:
    """The network of a stage `at`, from the options that its key vouches for."""
    mean, std = decided["normalisation"]
    channels, size = decided["data"]["shape"][:2]
    return Network(
        family=decided["model"]["family"],
        width=decided["model"]["width"],
        timm_name=decided["model"]["name"],
        num_classes=len(decided["data"]["classes"]),
        in_channels=channels,
        image_size=size,
        mean=mean,
        std=std,
    )


def _chosen(summary: Mapping[str, Any], tuned: Handed | None) -> dict[str, Any]:
    """What was chosen, and on which images: the epoch of θ_AT, the modules, α*."""
    options, stages = summary["options"], summary["stages"]
    chosen: dict[str, Any] = {"theta_at": options["stage.at.select"]}
    if tuned is not None:
        chosen |= {"target": summary["target"], "modules": summary["target_modules"]}
        chosen |= {"alpha": tuned.result["alpha"], "tolerance": summary["alpha_tolerance"]}
    splits = {section: options[option] for section, option in _SPLITS.items() if section in stages}
    return {**chosen, "splits": splits}
