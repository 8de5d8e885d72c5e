"""Small values, through torchrun's store; they are waited for as long as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rift import signals
from rift.checkpoint import from_bytes, to_bytes
from rift.errors import UserError
from rift.runtime.distributed.fate import EndedElsewhere, failure
from rift.runtime.distributed.group import active, alone, current, is_writer

T = TypeVar("T")
Item = TypeVar("Item")

_LONGEST_PAUSE = 0.05  # seconds between two looks into the store


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
        current().store.set(key, to_bytes(value))
        return value
    value = _received(key)
    _drop_once_read([key], by=current().size - 1)
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
    run, key = current(), _next_key()
    keys = [f"{key}/{rank}" for rank in range(run.size)]
    run.store.set(keys[run.rank], to_bytes(value))
    values = [_received(one) for one in keys]
    _drop_once_read(keys, by=run.size)
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
    run = current()
    return run is None or number % run.size == run.rank


def _next_key() -> str:
    run = current()
    run.said += 1
    return str(run.said)


def _received(key: str) -> Any:
    store, pause = current().store, 0.001
    while not store.check([key]):
        if (told := failure()) is not None:
            raise EndedElsewhere(told["sentence"])
        signals.check()
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    # Whoever reaches the store's port can write there, so nothing that is read may run.
    return from_bytes(store.get(key))


def _drop_once_read(keys: Sequence[str], by: int) -> None:
    counter = f"{keys[0]}/read"
    store = current().store
    if store.add(counter, 1) == by:
        for key in [*keys, counter]:
            store.delete_key(key)
