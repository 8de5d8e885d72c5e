"""What `torchrun` tells its processes, read from their environment; without importing torch.

`rift.runtime.distributed` is what they do together.
"""

from __future__ import annotations

import os


def several() -> bool:
    """Whether this process is one of several that torchrun has started for one run."""
    return "TORCHELASTIC_RUN_ID" in os.environ and world_size() > 1


def world_size() -> int:
    """Processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0")) if several() else 0


def local_rank() -> int:
    """Its number among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_writer() -> bool:
    """Whether it is the one that writes files and says things; alone it is."""
    return rank() == 0


def command() -> list[str]:
    """The words before `-m rift` of a command that starts as many processes."""
    nodes, here = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", "1")
    return ["torchrun", *([] if nodes == "1" else [f"--nnodes={nodes}"]), f"--nproc-per-node={here}"]
