"""Progress of long work: a bar with rate and time left, or plain lines where there is no terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from rift import signals, torchrun
from rift.streams import prepare_streams

log = logging.getLogger(__name__)

LINE_EVERY = 20.0  # seconds between plain lines

_shared: Console | None = None  # where the log goes: a bar on a console of its own would be written over
_bars = True


def make_console() -> Console:
    """The console for people: standard error, so that standard output stays clean."""
    return Console(file=sys.stderr, soft_wrap=not sys.stderr.isatty())


def terminal_width() -> int | None:
    """Columns of a line of the log on the terminal; None where there is none, or several jobs share it."""
    if _shared is None or not (_shared.is_terminal and _bars):
        return None
    return _shared.width - len("WARNING  ")  # what the handler puts before it


@contextmanager
def no_bars() -> Iterator[None]:
    """Within it no bar is drawn: for work of seconds that is not the job's own."""
    global _bars
    before, _bars = _bars, False
    try:
        yield
    finally:
        _bars = before


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("–" if speed is None else _per_second(speed, task.fields["unit"]))


def _per_second(speed: float, unit: str) -> str:
    """Modules take seconds each, images come by the thousand."""
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s"


class Meter:
    """Counts finished units of one piece of work. Made by `measured`."""

    def __init__(self, name: str, total: int, unit: str, bar: Progress | None) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.began = self._said = time.monotonic()
        self._bar = bar
        self._task = None if bar is None else bar.add_task(name, total=total, unit=unit)

    def advance(self, units: int) -> None:
        """Tells that `units` more are done; never waits for the device.

        Raises:
            Stopped: somebody wants the process to stop.
        """
        signals.check()
        self.count(units)

    def count(self, units: int) -> None:
        """As `advance`, for work that asks by itself whether it is to stop."""
        self.done += units
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, units)
        elif time.monotonic() - self._said > LINE_EVERY:
            self._said = time.monotonic()
            left = (self.total - self.done) / max(self.rate, 1e-9)
            share = 100 * self.done / max(self.total, 1)
            speed = _per_second(self.rate, self.unit)
            log.info("%s: %.0f %%, %s, %.0f s left", self.name, share, speed, left)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.began

    @property
    def rate(self) -> float:
        """Units per second since the beginning."""
        return self.done / max(self.seconds, 1e-9)


@contextmanager
def measured(name: str, total: int, unit: str = "images") -> Iterator[Meter]:
    """Shows how far a piece of work is, from its beginning to its end.

    Args:
        name: what is being done, e.g. `at 3/110`.
        total: how many units there are in all.
        unit: plural name of a unit.
    """
    console = _shared or make_console()
    if not (console.is_terminal and _bars):
        yield Meter(name, total, unit, None)
        return
    columns = TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn(compact=True)
    with Progress(*columns, console=console, transient=True) as bar:
        yield Meter(name, total, unit, bar)


def set_up_logging(label: str = "", bars: bool = True) -> None:
    """Sends our messages to the console; warnings are marked.

    Args:
        label: begins every line; says which job of a sweep it is from.
        bars: whether progress may be drawn; several jobs at once would draw over each other.
    """
    global _shared, _bars
    prepare_streams()  # a job of a sweep may be in a process of its own
    root = logging.getLogger("rift")
    root.handlers.clear()
    root.setLevel(logging.INFO)
    root.propagate = False
    # It says that it looks for fonts, the first time on a machine.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    _shared, _bars = make_console(), bars and torchrun.is_writer()
    if not torchrun.is_writer():  # of several processes one speaks
        root.addHandler(logging.NullHandler())
        return
    mark = f"[{label}] " if label else ""
    handler: logging.Handler
    if _shared.is_terminal and bars:
        handler = RichHandler(
            console=_shared, show_path=False, show_time=False, markup=False, highlighter=NullHighlighter()
        )
        handler.setFormatter(logging.Formatter(f"{mark}%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {mark}%(message)s", "%H:%M:%S"))
    root.addHandler(handler)
