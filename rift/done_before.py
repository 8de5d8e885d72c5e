"""A job that is given again although all of it is done: what it left, and whether that is the whole of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rift.job_state import JobState
from rift.pipeline import Pipeline
from rift.tracking import earlier_run, is_wanted

CIRCUMSTANCES = ("provenance", "overrides")  # of a summary: when, where and in which words it was asked for


@dataclass(frozen=True)
class DoneBefore:
    """What a job has left that has nothing left to do.

    Attributes:
        summary: its numbers, as they are in its folder.
        run: the folder of its W&B run; None where nothing is tracked.
    """

    summary: dict[str, Any]
    run: Path | None


def done_before(
    folder: Path,
    state: JobState | None,
    pipeline: Pipeline,
    run_id: str,
    make_summary: Callable[[], dict[str, Any]],
) -> DoneBefore | None:
    """What the job has left, if it came to its end, reuses all its stages, and has nothing else to say.

    Other settings of the logger, or a summary that an older version has written, are something to do.

    Args:
        folder: of the job, held.
        state: how it stood before.
        pipeline: rehearsed.
        run_id: of the job's W&B run.
        make_summary: asked only where all stages are finished and whole.

    Raises:
        UserError: a finished stage is damaged.
    """
    if state is None or state.state != "done" or not (folder / "report.md").is_file():
        return None
    config, summary = (_read(folder / name) for name in ("config.json", "summary.json"))
    logger, run = pipeline.config.logger, earlier_run(folder, run_id)
    if config.get("logger") != asdict(logger) or (run is None and is_wanted(logger.name, logger.mode)):
        return None
    stages = pipeline.folders.values()
    if not stages or not all(stage.finished for stage in stages):
        return None
    for stage in stages:
        stage.verify()
    if _content(summary) != _content(make_summary()):
        return None
    return DoneBefore(summary, run if logger.name == "wandb" else None)


def _content(summary: Mapping[str, Any]) -> str:
    return json.dumps({name: part for name, part in summary.items() if name not in CIRCUMSTANCES})


def _read(path: Path) -> dict[str, Any]:
    """What one of our files holds; nothing where it is missing or damaged, for then it is written anew."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
