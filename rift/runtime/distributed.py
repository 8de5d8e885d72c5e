"""One run in several processes, started by `torchrun`; without it every function here does nothing.

All processes go through the same program in the same order. One of them, the writer (rank 0), alone touches
the output folder; the others ask it. Two ways lead between them: torch's process group carries tensors, and
must be answered within `TIMEOUT`; torchrun's store carries small values, and is waited for as long as it
takes (a stage that another job works on, a share of the scan), unless a process has failed meanwhile.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rift import signals, torchrun
from rift.checkpoint import from_bytes, to_bytes
from rift.errors import UserError

T = TypeVar("T")
Item = TypeVar("Item")

TIMEOUT = timedelta(minutes=30)  # after which a process that does not answer is given up
PATIENCE = 3.0  # seconds that a process which has failed has to say why
_FAILED = "failed"
_LONGEST_PAUSE = 0.05  # seconds between two looks into the store


class EndedElsewhere(UserError):
    """Another process of the run has failed, and has said why."""


@dataclass
class _Run:
    store: dist.Store
    rank: int
    size: int
    said: int = 0  # values that have gone through the store
    alone: int = 0  # see `alone`


_run: _Run | None = None


# -- who we are ----------------------------------------------------------------------------------------


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
    _run = _Run(dist.PrefixStore("rift", store), rank, size)


def finish() -> None:
    """Parts from the others, after the last of the common work."""
    global _run
    if _run is not None:
        _run = None
        dist.destroy_process_group()


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


# -- small values, through the store -------------------------------------------------------------------


def from_writer(make: Callable[[], T]) -> T:
    """What the writer makes, on all; the others do not call `make`. They wait as long as it takes.

    It is made of numbers, texts and tensors on the CPU.

    Raises:
        EndedElsewhere: the writer has failed instead.
        Stopped: somebody wants the process to stop.
    """
    if not active():
        return make()
    key = _next_key()
    if is_writer():
        value = make()
        _run.store.set(key, to_bytes(value))
        return value
    value = _received(key)
    _drop_once_read([key], by=_run.size - 1)
    return value


def writer_first(make: Callable[[], T]) -> T:
    """Each process makes it for itself, after the writer has: what it left in a cache serves the others."""
    if not active():
        return make()
    if is_writer():
        value = make()
        from_writer(lambda: None)
        return value
    from_writer(lambda: None)
    return make()


def gather(value: T) -> list[T]:
    """Everybody's value, by rank, on all; waits as `from_writer` does."""
    if not active():
        return [value]
    key = _next_key()
    keys = [f"{key}/{rank}" for rank in range(_run.size)]
    _run.store.set(keys[_run.rank], to_bytes(value))
    values = [_received(one) for one in keys]
    _drop_once_read(keys, by=_run.size)
    return values


def each(items: Sequence[Item], work: Callable[[Item], T]) -> list[T]:
    """Work on each item, in its order: item i is done by process i mod n, alone, and given to all.

    Args:
        items: the same in every process, as many as processes or fewer if the shares are to be even.
        work: returns numbers, texts and tensors on the CPU, in lists and dictionaries.
    """
    with alone():
        mine = {i: work(item) for i, item in enumerate(items) if _is_mine(i)}
    found = {i: result for part in gather(mine) for i, result in part.items()}
    return [found[i] for i in range(len(items))]


def require_same(value: Any, what: str) -> None:
    """Raises `UserError` unless all processes have an equal value; `what` says of what."""
    if any(other != value for other in gather(value)):
        raise UserError(f"The processes of this run differ in {what}: let all of them see the same.")


def _is_mine(number: int) -> bool:
    return _run is None or number % _run.size == _run.rank


def _next_key() -> str:
    _run.said += 1
    return str(_run.said)


def _received(key: str) -> Any:
    pause = 0.001
    while not _run.store.check([key]):
        if (failure := _failure()) is not None:
            raise EndedElsewhere(failure["sentence"])
        signals.check()
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    # Whoever reaches the store's port can write there, so nothing that is read may run.
    return from_bytes(_run.store.get(key))


def _drop_once_read(keys: Sequence[str], by: int) -> None:
    counter = f"{keys[0]}/read"
    if _run.store.add(counter, 1) == by:
        for key in [*keys, counter]:
            _run.store.delete_key(key)


# -- numbers and tensors, through the process group ----------------------------------------------------


def share() -> tuple[int, int]:
    """(rank, number of processes), for what is cut into as many parts; (0, 1) alone."""
    return rank(), world_size()


def mine(number: int) -> bool:
    """Whether piece `number` of some work is this process's to do."""
    return number % world_size() == rank()


def largest(*numbers: int) -> tuple[int, ...]:
    """The largest of everybody's numbers, one by one. A GPU is not waited for."""
    if not active():
        return numbers
    found = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(found.tolist())


def total(number: int) -> int:
    """The sum of everybody's number. A GPU is not waited for."""
    if not active():
        return number
    found = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(found)
    return int(found)


def summed(tensor: Tensor) -> Tensor:
    """The sum of everybody's tensor; alone, the tensor itself."""
    if not active():
        return tensor
    found = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(found)
    return found


def merged(marks: Tensor) -> Tensor:
    """What is marked in anybody's tensor of bools; alone, the tensor itself."""
    if not active():
        return marks
    found = marks.to(torch.uint8)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.bool()


def handed_on(tensor: Tensor, source: int) -> Tensor:
    """A tensor of process `source`, on all, in place: the others give one to be filled."""
    if active():
        plain = tensor.contiguous()  # their memory formats may differ
        dist.broadcast(plain, source)
        if plain is not tensor:
            tensor.copy_(plain)
    return tensor


def tensors_from_writer(
    load: Callable[[], tuple[dict[str, Tensor], Any] | None], device: torch.device | str
) -> tuple[dict[str, Tensor], Any] | None:
    """Tensors and a note that the writer reads, on all; the others do not call `load`.

    Args:
        load: gives the tensors on the device, or None.
        device: where the others want theirs.
    """
    if not active():
        return load()
    found = load() if is_writer() else None

    def about() -> Any:
        forms = {name: (value.dtype, value.shape) for name, value in found[0].items()} if found else {}
        return None if found is None else (forms, found[1])

    told = from_writer(about)
    if told is None:
        return None
    tensors = {}
    for name, (dtype, shape) in told[0].items():
        if is_writer():
            value = found[0][name]
            handed_on(_bytes(value.detach().cpu().contiguous()), 0)
        else:
            value = torch.empty(shape, dtype=dtype)
            handed_on(_bytes(value), 0)  # shares the tensor's memory
        tensors[name] = value.to(device)
    return tensors, told[1]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


# -- ending together -----------------------------------------------------------------------------------


def first_to_fail(sentence: str) -> bool:
    """Tells the others why this process ends; whether it is the first, which is the one to say it aloud."""
    if _run is None:
        return torchrun.is_writer()
    claim = json.dumps({"rank": _run.rank, "sentence": sentence})
    try:
        found = _run.store.compare_set(_FAILED, "", claim)
    except RuntimeError:  # torchrun itself is gone, and with it the store
        return is_writer()
    return json.loads(found)["rank"] == _run.rank


@contextmanager
def common_fate(describe: Callable[[Exception], str]) -> Iterator[None]:
    """Around common work: where one process fails, all of them do, for the reason that it has given.

    Args:
        describe: an error as one sentence.

    Raises:
        EndedElsewhere: another process was the first to fail.
        UserError: another process is gone and has not said why.
        Stopped: somebody wants the processes to stop, and another one has stopped.
    """
    try:
        yield
    except BaseException as error:
        if _run is None or isinstance(error, EndedElsewhere):
            raise
        silent = isinstance(error, KeyboardInterrupt)
        lost = not silent and _lost_the_others(error)
        if (failure := _failure(PATIENCE if lost else 0)) is not None and failure["rank"] != _run.rank:
            raise EndedElsewhere(failure["sentence"]) from error
        if lost:
            signals.check()
            error = UserError(
                "Another process of this run has ended without a word (see what torchrun says of it); the "
                "same command goes on from the last save."
            )
        if isinstance(error, Exception) and not first_to_fail(describe(error)):
            raise EndedElsewhere(describe(error)) from error
        raise error


def _failure(patience: float = 0) -> dict[str, Any] | None:
    """Who has failed and why, if anybody has; waits for it so many seconds."""
    end = time.monotonic() + patience
    try:
        while not _run.store.check([_FAILED]):
            if time.monotonic() >= end:
                return None
            time.sleep(0.02)
        return json.loads(_run.store.get(_FAILED))
    except RuntimeError:  # torchrun itself is gone
        return None


def _lost_the_others(error: BaseException) -> bool:
    """Whether this is what a collective, or the store, raises when nobody is at the other end."""
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or re.search(r"gloo|NCCL|c10d", str(error)) is not None
