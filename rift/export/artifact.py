"""An exported folder as an artifact of the job's W&B run; what W&B does wrong never harms the export."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rift import foreign
from rift.export.card import CARD, read_card
from rift.store import digest
from rift.tracking import WandbTracker, open_tracker


def log_artifact(job: Path, folder: Path) -> str:
    """Logs the folder as an artifact of type `model` to the run of the job; offline without credentials.

    Args:
        job: its folder.
        folder: as `rift.export.export_job` wrote it.

    Returns:
        What came of it, in one line.
    """
    try:
        card, config = read_card(folder / CARD), foreign.read_object(job / "config.json")
        return _log(job, folder, card, config)
    # A client of a network, and a configuration of another version: whatever it is, the export is written.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"W&B has no artifact of it ({reason}); the export is whole in {folder}."


def _log(job: Path, folder: Path, card: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    logger, about = config["logger"], card["job"]
    tracker = open_tracker(
        "wandb",
        mode=logger["mode"],
        project=logger["project"],
        entity=logger["entity"],
        tags=[*logger["tags"], card["protocol"]["protocol"], *(["smoke"] if about["smoke"] else [])],
        folder=job,
        job=card["name"],
        key=digest([about["key"], about["study"]]),  # the job's run, which goes on
        study=about["study"],
        config=config,
    )
    if not isinstance(tracker, WandbTracker):
        raise RuntimeError("no run could be opened")
    name = re.sub(r"[^\w.-]+", "-", f"{card['name']}-{about['key']}", flags=re.ASCII)[-128:]
    try:
        artifact = tracker.wandb.Artifact(name, type="model", metadata=_metadata(card))
        artifact.add_dir(str(folder))
        tracker.run.log_artifact(artifact)
    finally:
        tracker.close()
    return f"W&B artifact {name}, in the run {tracker.where}"


def _metadata(card: Mapping[str, Any]) -> dict[str, Any]:
    return {name: card[name] for name in ("network", "weights", "chosen", "numbers", "licence")}
