"""One run in several processes, started by `torchrun`; without it every function here does nothing.

All processes go through the same program in the same order. One of them, the writer (rank 0), alone touches
the output folder; the others ask it. Two ways lead between them: torch's process group carries tensors, and
must be answered within `group.TIMEOUT`; torchrun's store carries small values, and is waited for as long as
it takes (a stage that another job works on, a share of the scan), unless a process has failed meanwhile.
"""

from rift.runtime.distributed.fate import EndedElsewhere, common_fate, first_to_fail
from rift.runtime.distributed.group import (
    active,
    alone,
    finish,
    is_writer,
    mine,
    rank,
    share,
    start,
    world_size,
)
from rift.runtime.distributed.tensors import (
    handed_on,
    largest,
    merged,
    summed,
    tensors_from_writer,
    total,
)
from rift.runtime.distributed.values import each, from_writer, gather, require_same, writer_first

__all__ = [
    "EndedElsewhere",
    "active",
    "alone",
    "common_fate",
    "each",
    "finish",
    "first_to_fail",
    "from_writer",
    "gather",
    "handed_on",
    "is_writer",
    "largest",
    "merged",
    "mine",
    "rank",
    "require_same",
    "share",
    "start",
    "summed",
    "tensors_from_writer",
    "total",
    "world_size",
    "writer_first",
]
