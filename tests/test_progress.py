"""What people see of long work: a bar on a terminal, plain lines elsewhere, one console for both."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from tiny_jobs import restored_process

from rift import progress
from rift.progress import measured, set_up_logging


@pytest.fixture(autouse=True)
def process(monkeypatch):
    monkeypatch.setattr(progress, "_shared", None)
    monkeypatch.setattr(progress, "_bars", True)
    with restored_process():
        yield


def terminal(monkeypatch, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "make_console", lambda: console)
    return console


@pytest.mark.parametrize("width", [80, 160])
def test_lines_that_are_logged_beside_a_bar_stay_whole(monkeypatch, width):
    console = terminal(monkeypatch, width)
    set_up_logging()
    with measured("mrc", 3, "modules") as meter:
        for name in ("conv1", "layer1.0.conv1", "fc"):
            logging.getLogger("rift").info("mrc %s: mrc 0.1", name)
            meter.advance(1)
    written = console.file.getvalue()
    for name in ("conv1", "layer1.0.conv1", "fc"):
        assert f"INFO     mrc {name}: mrc 0.1" in written
    assert "modules/s" in written or "– " in written


def test_without_a_terminal_there_are_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    set_up_logging("seed=1")
    with measured("at 1/2", 100) as meter:
        meter.advance(50)
    said = capsys.readouterr().err
    assert "INFO [seed=1] at 1/2: 50 %" in said and "s left" in said and "\x1b" not in said


def test_parallel_jobs_draw_no_bars_over_each_other(monkeypatch):
    console = terminal(monkeypatch, 80)
    set_up_logging("seed=1", bars=False)
    with measured("at", 10) as meter:
        meter.advance(10)
    assert console.file.getvalue() == ""
