"""What a run says before it begins: its folder, what a reader of its numbers must know, its plan."""

from __future__ import annotations

import io
import logging
from collections.abc import Collection
from pathlib import Path

import torch
from rich.console import Console

from rift.config import Config
from rift.estimate import with_times
from rift.naming import chosen_plugins
from rift.pipeline import Pipeline
from rift.plan import busy, machine, make_plan, plan_lines, plan_table
from rift.progress import terminal_width
from rift.protocol import departing, departures_text, method_notes, named_by, selection_notes
from rift.runtime import computes_bfloat16

log = logging.getLogger(__name__)


def announce(config: Config, folder: Path, pipeline: Pipeline, typed: Collection[str]) -> None:
    """Says what the job is, and warns of what somebody may not expect.

    Args:
        config: of the job.
        folder: of the job.
        pipeline: rehearsed.
        typed: the names of the options and groups that the user has set.
    """
    log.info("job: %s", folder)
    for group, about in chosen_plugins(config).items():
        log.info("%s: of the package %s %s", group, about["package"], about["version"])
    for sentence in pipeline.import_notes:
        log.info("%s: %s", config.model.checkpoint, sentence)
    if config.smoke:
        log.warning("smoke=true: a few images and epochs only; the numbers are no results")
    for note in selection_notes(config):
        log.info("protocol=%s: %s", config.protocol.name, note)
    _announce_departures(config, typed)
    for note in method_notes(config):
        log.warning("%s", note)
    if slow := slow_bfloat16(config, pipeline.session.runtime.device):
        log.warning("%s", slow)
    for role, attack in (("selection", config.selection_attack), ("evaluation", config.evaluation_attack)):
        if (attack.norm, attack.epsilon) != (config.attack.norm, config.attack.epsilon):
            message = "%s attacks within %s of %s, training within %s of %s"
            own = config.attack
            log.warning(message, role, attack.epsilon, attack.norm, own.epsilon, own.norm)


def _announce_departures(config: Config, typed: Collection[str]) -> None:
    """What an experiment was made for is no surprise; what the user's own words bring about may be one."""
    departures = departing(config)
    own = {option: text for option, text in departures.items() if named_by(option, typed)}
    if own:
        log.warning("%s", departures_text(config, own))
    if designed := len(departures) - len(own):
        log.info(
            "this run is set up to depart from protocol=%s in %d point%s; the report lists them",
            config.protocol.name,
            designed,
            "s" * (designed != 1),
        )


def announce_plan(pipeline: Pipeline) -> None:
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
