"""`rift --check …`: everything that a run checks before its first epoch, its plan, and nothing written."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rift.config import Config
from rift.errors import UserError
from rift.places import check_places

if TYPE_CHECKING:
    from rift.pipeline import Pipeline
    from rift.plan import Step

FLAG = "--check"
_GIB = 2**30


def taken_out(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether a command line asks for a check, and the command line without that word."""
    return FLAG in arguments, [argument for argument in arguments if argument != FLAG]


@contextmanager
def sweep_here(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The arguments of a sweep whose jobs are checked in this process and leave nothing behind.

    Args:
        arguments: of the sweep itself, checked.
    """
    with tempfile.TemporaryDirectory(prefix="rift-check-") as folder:
        own = [text for text in arguments if not text.startswith(("hydra/launcher=", "hydra.launcher."))]
        yield [*own, "hydra/launcher=basic", f'hydra.sweep.dir="{folder}"']


def look(config: Config) -> None:
    """The part of a check that needs no torch: whether what the job reads is there.

    Raises:
        UserError: something is not.
    """
    with _downloading_nothing(config) as here_only:
        check_places(here_only)


def check(config: Config, *, shown: bool = True) -> str:
    """Checks one job as a run would before its first epoch.

    Nothing is downloaded, nothing is kept of what is decoded or hashed, and no folder is made.

    Args:
        config: checked configuration.
        shown: print the plan, and the room on the disk.

    Returns:
        What the job would do, in a line.

    Raises:
        UserError: what a run would refuse.
        OSError: the output folder could not be written.
    """
    from rift.data.cache import nothing_kept  # only now: torch takes seconds to import
    from rift.estimate import with_times
    from rift.job import prepare
    from rift.plan import make_plan
    from rift.runtime import distributed

    with _downloading_nothing(config) as here_only, nothing_kept():
        pipeline, _ = prepare(here_only)
        if not distributed.is_writer():
            return ""
        steps = make_plan(pipeline)
        if shown:
            _show(config, pipeline, with_times(steps, pipeline))
    by_state: dict[str, list[str]] = {}
    for step in steps:
        by_state.setdefault(step.account, []).append(step.section)
    return "; ".join(f"{account}: {', '.join(sections)}" for account, sections in by_state.items())


@contextmanager
def _downloading_nothing(config: Config) -> Iterator[Config]:
    """The configuration without a download; a refusal that advises one is told apart."""
    try:
        yield replace(config, dataset=replace(config.dataset, download=False))
    except UserError as error:
        if config.dataset.download and "dataset.download" in str(error):
            raise UserError(f"{FLAG} downloads nothing, so it ends here: {error}") from error
        raise


def _show(config: Config, pipeline: Pipeline, steps: Sequence[Step]) -> None:
    from rich.console import Console

    from rift.checkpoint import free_bytes
    from rift.job import PLAIN_WIDTH
    from rift.plan import busy, machine, plan_table
    from rift.room import needed_bytes

    output, session = Path(config.output), pipeline.session
    needed, free = needed_bytes(session.new_network(), config), free_bytes(output)
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    console.print(plan_table(steps, pipeline.name))
    for what, told in (
        ("machine", machine(config, session.runtime)),
        ("disk", f"about {needed / _GIB:.2f} GiB needed, {free / _GIB:.2f} GiB free at {output}"),
        ("load", busy(session.runtime)),
        ("check", "all is well, nothing was written"),
    ):
        if told is None:
            continue
        console.print(f"{what + ':':9}{told}", markup=False, soft_wrap=True)
