"""Ending together: where one process fails, all of them do, for the reason that it has given."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from rift import signals, torchrun
from rift.errors import UserError
from rift.runtime.distributed.group import current, is_writer

PATIENCE = 3.0  # seconds that a process which has failed has to say why
_FAILED = "failed"


class EndedElsewhere(UserError):
    """Another process of the run has failed, and has said why."""


def first_to_fail(sentence: str) -> bool:
    """Tells the others why this process ends; whether it is the first, which is the one to say it aloud."""
    run = current()
    if run is None:
        return torchrun.is_writer()
    claim = json.dumps({"rank": run.rank, "sentence": sentence})
    try:
        found = run.store.compare_set(_FAILED, "", claim)
    except RuntimeError:  # torchrun itself is gone, and with it the store
        return is_writer()
    return json.loads(found)["rank"] == run.rank


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
        run = current()
        if run is None or isinstance(error, EndedElsewhere):
            raise
        silent = isinstance(error, KeyboardInterrupt)
        lost = not silent and _lost_the_others(error)
        if (told := failure(PATIENCE if lost else 0)) is not None and told["rank"] != run.rank:
            raise EndedElsewhere(told["sentence"]) from error
        if lost:
            signals.check()
            error = UserError(
                "Another process of this run has ended without a word (see what torchrun says of it); the "
                "same command goes on from the last save."
            )
        if isinstance(error, Exception) and not first_to_fail(describe(error)):
            raise EndedElsewhere(describe(error)) from error
        raise error


def failure(patience: float = 0) -> dict[str, Any] | None:
    """Who has failed and why, if anybody has; waits for it so many seconds."""
    store, end = current().store, time.monotonic() + patience
    try:
        while not store.check([_FAILED]):
            if time.monotonic() >= end:
                return None
            time.sleep(0.02)
        return json.loads(store.get(_FAILED))
    except RuntimeError:  # torchrun itself is gone
        return None


def _lost_the_others(error: BaseException) -> bool:
    """Whether this is what a collective, or the store, raises when nobody is at the other end."""
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or re.search(r"gloo|NCCL|c10d", str(error)) is not None
