"""Whether the disk has room for what a job will write, asked before its first epoch."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from rift.checkpoint import free_bytes
from rift.config import Config
from rift.errors import UserError

_REST = 64 * 2**20  # bytes: verdicts, tables, logs, figures
_GIB = 2**30


def check_room(output: Path, network: nn.Module, config: Config) -> None:
    """Raises `UserError` if the output folder's disk has less room than the job's files will need.

    Args:
        output: the folder, made or not.
        network: as the stages will have it.
        config: which stages run, and whether weights are averaged.
    """
    free, needed = free_bytes(output), needed_bytes(network, config)
    if free < needed:
        raise UserError(
            f"{output} has {free / _GIB:.2f} GiB free, and this job needs about {needed / _GIB:.2f}: make "
            "room or give another output=FOLDER."
        )


def needed_bytes(network: nn.Module, config: Config) -> int:
    """The most that is on disk at once: finished weights, and two resume points with one being written."""
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    run, averaged = set(config.stage.run), config.stage.at.average is not None
    finished = {"at": 2 + averaged, "finetune": 2, "interpolate": 1}  # best, last, …
    # Of a point: weights, the best so far, the optimiser's state (Adam has two), the average.
    point = 4 + averaged if "at" in run else 3 if run & {"finetune", "gains"} else 0
    return weights * (sum(finished[name] for name in finished.keys() & run) + 3 * point) + _REST
