"""Who belongs to the run, and which of them this process is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from rift import torchrun
from rift.errors import UserError

TIMEOUT = timedelta(minutes=30)  # after which a process that does not answer is given up


@dataclass
class Run:
    """The processes of this run.

    Attributes:
        store: torchrun's, for small values.
        rank: number of this process.
        size: how many there are.
        said: values that have gone through the store.
        alone: how many times `alone` was entered and not left.
    """

    store: dist.Store
    rank: int
    size: int
    said: int = 0
    alone: int = 0


_run: Run | None = None


def start() -> None:
    """Joins the other processes, if torchrun has started several.

    Raises:
        UserError: they cannot be reached.
    """
    global _run
    if not torchrun.several():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
        groups = dist.PrefixStore("groups", store)
        dist.init_process_group(backend, store=groups, rank=rank, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The processes of this run do not reach each other ({reason}): see torchrun's options."
        ) from error
    _run = Run(dist.PrefixStore("rift", store), rank, size)


def finish() -> None:
    """Parts from the others, after the last of the common work."""
    global _run
    if _run is not None:
        _run = None
        dist.destroy_process_group()


def current() -> Run | None:
    """This run, or None for a process by itself."""
    return _run


def active() -> bool:
    """Whether there are others to work with."""
    return _run is not None and not _run.alone


def is_writer() -> bool:
    """Whether this process writes files."""
    return _run is None or _run.rank == 0


def rank() -> int:
    """This process's number among those that share the work."""
    return _run.rank if _run is not None and active() else 0


def world_size() -> int:
    """How many share the work."""
    return _run.size if _run is not None and active() else 1


def share() -> tuple[int, int]:
    """(rank, number of processes), for what is cut into as many parts; (0, 1) alone."""
    return rank(), world_size()


def mine(number: int) -> bool:
    """Whether piece `number` of some work is this process's to do."""
    return number % world_size() == rank()


@contextmanager
def alone() -> Iterator[None]:
    """Within it, this process works by itself: nothing is shared, nobody is asked."""
    if _run is None:
        yield
        return
    _run.alone += 1
    try:
        yield
    finally:
        _run.alone -= 1
