"""Being told to stop: the step is finished and saved, logs are closed, and the process ends in time.

A cluster announces preemption by SIGTERM or SIGUSR1, a person by Ctrl-C. Long loops ask `check` between two
steps. Where none asks for a while, the process is interrupted wherever it is: what was saved before is whole
in any case.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType

from rift import torchrun

log = logging.getLogger(__name__)

GRACE = 8.0  # seconds after which nobody waits for the end of a step; clusters give ten or more
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_requested: int | None = None
_taken: tuple[int, ...] = ()  # the signals that are taken over
_after_the_first: Callable[[int, FrameType | None], None] | signal.Handlers


class Stopped(KeyboardInterrupt):
    """Raised between two steps after a signal.

    Attributes:
        number: of the signal.
        code: what the process exits with, 128 + that number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.code = 128 + number


def install(more: Iterable[int] = (), *, patient: bool = False) -> None:
    """Takes over SIGINT, SIGTERM and SIGUSR1; outside the main thread nothing can be taken over.

    Args:
        more: other signals that mean the same.
        patient: nobody but the first is heard, instead of ending at once at the second. For jobs under a
            launcher, which are told to stop several times over and killed in the end anyway.
    """
    global _requested, _taken, _after_the_first
    _requested = None
    _taken = (*SIGNALS, *more)
    _after_the_first = signal.SIG_IGN if patient else _second
    if threading.current_thread() is threading.main_thread():
        for number in _taken:
            signal.signal(number, _first)


def number() -> int:
    """The signal by which somebody wants the process to stop; 0 if nobody does."""
    return _requested or 0


def request(number: int) -> None:
    """As if the signal had come; one that has come stays. Of several processes all stop if one is to."""
    global _requested
    _requested = _requested or number


def check() -> None:
    """Raises `Stopped` if somebody wants the process to stop."""
    if _requested is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise Stopped(_requested)


def _first(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = number
    for other in _taken:
        signal.signal(other, _after_the_first)
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, GRACE)
    if torchrun.several():  # it may only mean that another process has failed
        return
    # Not through logging, whose lock the interrupted code may hold.
    once_more = "; once more stops at once" if _after_the_first is _second else ""
    _say(f"rift: {signal.Signals(number).name}: stopping after this step{once_more}")


def _second(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _late(number: int, frame: FrameType | None) -> None:
    assert _requested is not None
    raise Stopped(_requested)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
