"""W&B that dies, hangs, refuses or is not there while a job runs: the job never notices."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import wandb
from tiny_jobs import TINY, command, results_of

from rift import tracking
from rift.tracking import Tracker, WandbTracker, has_credentials, open_tracker

OPTIONS = {"project": "rift", "entity": None, "tags": [], "job": "job", "key": "0123456789abcdef"}
OPTIONS |= {"study": "demo", "config": {"seed": 0}}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def said(caplog):
    """What our own log says of W&B."""
    caplog.set_level(logging.INFO, logger="rift")
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("rift")]


def services() -> list[int]:
    """W&B's processes below this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command_line = (folder / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if parent == os.getpid() and b"wandb" in command_line:
            found.append(int(folder.name))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="waits for a /proc")


@needs_proc
def test_its_service_is_killed_while_it_is_written_to(tmp_path, said):
    wandb.teardown()
    tracker = open_tracker("wandb", mode="offline", folder=tmp_path, **OPTIONS)
    assert isinstance(tracker, WandbTracker)
    tracker.row("at", {"epoch": 1, "clean_accuracy": 0.5})
    (service,) = services()
    os.kill(service, signal.SIGKILL)
    os.waitpid(service, os.WNOHANG)
    began = time.monotonic()
    for epoch in range(2, 60):
        tracker.row("at", {"epoch": epoch, "clean_accuracy": 0.5})
    tracker.summary({"alpha": 0.5})
    tracker.close()
    assert time.monotonic() - began < 60
    hints = said()
    assert 1 <= len(hints) <= 2 and all("result files" in hint for hint in hints)
    Tracker().close()
    try:
        wandb.teardown()
    except Exception as error:  # what it says of its dead service is its own business
        assert "Traceback" not in str(error)


class Server(ThreadingHTTPServer):
    """Answers HEAD, and everything else after some seconds with some status, or never."""

    daemon_threads = True

    def __init__(self, status: int, patience: float = 0.0):
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            def answer(handler):
                if handler.command != "HEAD":
                    self.asked += 1
                    time.sleep(patience)
                handler.send_response(200 if handler.command == "HEAD" else status)
                handler.end_headers()

            do_HEAD = do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.mark.parametrize(
    ("status", "patience"), [(401, 0), (500, 0), (200, 20)], ids=["unauthorised", "broken", "slow"]
)
def test_a_server_that_is_there_and_of_no_use(tmp_path, monkeypatch, said, status, patience):
    server = Server(status, patience)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setattr(tracking, "INIT_TIMEOUT", 2)
    began = time.monotonic()
    try:
        tracker = open_tracker("wandb", mode="auto", folder=tmp_path, **OPTIONS)
        tracker.row("at", {"epoch": 1, "clean_accuracy": 0.5})
        tracker.close()
    finally:
        wandb.teardown()
        server.shutdown()
        server.server_close()
    assert time.monotonic() - began < 60
    assert server.asked > 0
    (hint,) = said()
    assert "W&B could not start online" in hint and "\n" not in hint
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb")), "it is not kept for `wandb sync` either"


def test_what_is_left_to_send_at_the_end_is_given_up(tmp_path, monkeypatch):
    """A server that goes away in the middle: W&B would go on trying for days."""
    given = {}
    monkeypatch.setattr(wandb, "init", lambda settings, **_: given.update(vars(settings)) or 1 / 0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "is_reachable", lambda url: True)
    assert type(open_tracker("wandb", mode="online", folder=tmp_path, **OPTIONS)) is Tracker
    assert 0 < given["finish_timeout"] <= 120 and given["finish_timeout_raises"]
    assert given["init_timeout"] == tracking.INIT_TIMEOUT


@pytest.mark.parametrize("error", [ImportError("no module"), TypeError("descriptors"), AttributeError("")])
def test_it_cannot_be_imported(tmp_path, monkeypatch, said, error):
    class Refusing:
        def find_spec(self, name, *_):
            if name == "wandb":
                raise error

    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    assert type(open_tracker("none", mode="auto", folder=tmp_path, **OPTIONS)) is Tracker
    assert said() == []
    assert type(open_tracker("wandb", mode="auto", folder=tmp_path, **OPTIONS)) is Tracker
    (hint,) = said()
    assert "W&B cannot be imported" in hint and "result files alone" in hint


def test_every_call_fails_and_the_lines_are_complete(tmp_path, monkeypatch, capsys):
    """The job with a W&B whose every call fails has the results, line for line, of the job without."""
    assert command(*TINY, "stage=at", f"output={tmp_path}/without") == 0

    class Broken:
        def __getattr__(self, name):
            if name in ("settings", "resumed"):
                return self
            if name == "sync_dir":
                return str(tmp_path)
            raise ConnectionError(f"{name}:\nthe network is gone")

        def define_metric(self, *_, **__):
            pass

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    capsys.readouterr()
    assert command(*TINY, "stage=at", "logger=wandb", f"output={tmp_path}/with") == 0
    assert results_of(tmp_path / "with") == results_of(tmp_path / "without") != {}
    lines = [list(tmp_path.glob(f"{which}/store/*/*/metrics.jsonl")) for which in ("with", "without")]
    for ours, theirs in zip(*map(sorted, lines), strict=True):
        rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in (ours, theirs)]
        assert len(rows[0]) == len(rows[1]) > 0 and rows[0][0].keys() == rows[1][0].keys()
    err = capsys.readouterr().err
    assert err.count("the run goes on") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    "content", [b"machine \xff", b"machine", b"\0\0", b"machine api.wandb.ai\n login", b'machine "'], ids=repr
)
def test_a_broken_netrc_is_none(tmp_path, content):
    (tmp_path / "netrc").write_bytes(content)
    assert not has_credentials()


def test_a_netrc_that_is_a_folder_and_no_home_at_all(tmp_path, monkeypatch):
    (tmp_path / "netrc").mkdir()
    assert not has_credentials()
    monkeypatch.delenv("NETRC")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert not has_credentials()
