"""How a job stands: what it leaves behind in every way to end, and what a reader makes of it."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_jobs import Killed, restored_process, tiny_config

import rift
import rift.job
from rift.errors import UserError
from rift.job import run_job
from rift.job_state import LOCK_FILE, STATE_FILE, JobState, job_state
from rift.locks import holder_named
from rift.pipeline import Pipeline

RUNNING = {"state": "running", "began": "2026-01-01T00:00:00+00:00", "host": "here", "pid": 7}


def note(folder, **value):
    (folder / STATE_FILE).write_text(json.dumps(value))


# -- the reader ---------------------------------------------------------------------------------------


def test_running_is_who_holds_the_lock(tmp_path):
    note(tmp_path, **RUNNING)
    with FileLock(tmp_path / LOCK_FILE):
        assert job_state(tmp_path) == JobState(**RUNNING)
    assert (tmp_path / LOCK_FILE).exists()
    assert job_state(tmp_path) == JobState(**RUNNING | {"state": "stopped"})


@pytest.mark.parametrize("state", ["done", "failed", "stopped"])
def test_what_has_ended_is_told_as_it_was_noted(tmp_path, state):
    value = RUNNING | {"state": state, "ended": "2026-01-01T01:00:00+00:00", "reason": "no room."}
    note(tmp_path, **value)
    assert job_state(tmp_path) == JobState(**value)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "{}", '{"state": "asleep"}', '{"state": []}', "[" * 99999]
)
def test_a_folder_of_an_older_version_or_with_a_damaged_note(tmp_path, text):
    if text is not None:
        (tmp_path / STATE_FILE).write_text(text)
    assert job_state(tmp_path) == JobState("stopped")
    with FileLock(tmp_path / LOCK_FILE):
        assert job_state(tmp_path) == JobState("running")
    (tmp_path / "summary.json").write_text("{}")
    assert job_state(tmp_path) == JobState("done")


def test_values_of_other_types_are_not_known(tmp_path):
    note(tmp_path, state="failed", began=3, host=["x"], pid="7", reason={})
    assert job_state(tmp_path) == JobState("failed")


def test_a_job_that_ends_while_one_looks_is_done(tmp_path, monkeypatch):
    note(tmp_path, **RUNNING)

    def ends_first(lock):
        note(tmp_path, state="done")
        return False

    monkeypatch.setattr("rift.job_state.is_held", ends_first)
    assert job_state(tmp_path).state == "done"


@pytest.mark.parametrize("held", [True, False])
def test_reading_needs_no_right_to_write(tmp_path, monkeypatch, held):
    note(tmp_path, **RUNNING)
    lock = FileLock(tmp_path / LOCK_FILE)
    lock.acquire()
    if not held:
        lock.release()
    real, before = os.open, sorted(tmp_path.iterdir())

    def read_only_disk(path, flags, *rest, **named):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            raise OSError(errno.EROFS, "read-only file system", str(path))
        return real(path, flags, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", read_only_disk)
        assert job_state(tmp_path).state == ("running" if held else "stopped")
    assert sorted(tmp_path.iterdir()) == before
    lock.release()


def test_a_pipe_in_place_of_the_lock_is_not_waited_for(tmp_path):
    note(tmp_path, **RUNNING)
    os.mkfifo(tmp_path / LOCK_FILE)
    assert job_state(tmp_path).state == "stopped"


# -- the job ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _process():
    with restored_process():
        yield


def tiny_job(output):
    return run_job(tiny_config("stage.run=[at]", "stage.at.epochs=1", output=output), {})


def folder_of(output):
    (folder,) = (output / "jobs" / "demo").iterdir()
    return folder


def test_a_job_is_running_and_then_done(tmp_path, monkeypatch):
    seen = []
    real = rift.job.make_summary

    def observed(*arguments):
        seen.append(job_state(folder_of(tmp_path)))
        return real(*arguments)

    monkeypatch.setattr(rift.job, "make_summary", observed)
    tiny_job(tmp_path)
    (during,) = seen
    assert (during.state, during.host, during.pid) == ("running", platform.node(), os.getpid())
    after = job_state(folder_of(tmp_path))
    assert after == JobState("done", during.began, after.ended, during.host, during.pid, None)
    assert datetime.fromisoformat(during.began) <= datetime.fromisoformat(after.ended)
    summary = json.loads((folder_of(tmp_path) / "summary.json").read_text())
    assert not {"state", "began", "pid", "host"} & summary.keys()


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UserError("the rate is too high."), "failed", "the rate is too high."),
        (OSError(errno.ENOSPC, "No space left on device", "/x/.y.partial"), "failed", "/x cannot be written"),
        (RuntimeError("one line\nand another"), "failed", "RuntimeError: one line"),
        (KeyboardInterrupt(), "stopped", None),
        (Killed(), "stopped", None),
    ],
)
def test_how_a_job_that_did_not_end_well_stands(tmp_path, monkeypatch, error, state, reason):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(Pipeline, "run", fails)
    with pytest.raises(type(error)):
        tiny_job(tmp_path)
    found = job_state(folder_of(tmp_path))
    assert found.state == state
    assert (found.reason or "").startswith(reason or "") and "\n" not in (found.reason or "")
    assert (found.ended is None) == isinstance(error, Killed)
    monkeypatch.undo()
    tiny_job(tmp_path)
    assert job_state(folder_of(tmp_path)).state == "done"
    assert job_state(folder_of(tmp_path)).reason is None


def test_a_full_disk_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def fails(*arguments):
        monkeypatch.setattr(rift.job, "save_json", full)
        raise UserError("the first thing.")

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Pipeline, "run", fails)
    with pytest.raises(UserError, match="the first thing"):
        tiny_job(tmp_path)
    assert job_state(folder_of(tmp_path)).state == "stopped"


# -- two processes ------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from rift.job import _held
with _held(Path(sys.argv[1]), {}):
    time.sleep(600)
"""


def test_a_killed_job_is_stopped(tmp_path):
    root = Path(rift.__file__).parents[1]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=root)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / STATE_FILE).exists():
            assert time.monotonic() < end, "the other process never began"
            time.sleep(0.01)
        found = job_state(tmp_path)
        assert (found.state, found.pid) == ("running", holder.pid)
    finally:
        holder.kill()
        holder.wait()
    assert json.loads((tmp_path / STATE_FILE).read_text())["state"] == "running"
    assert job_state(tmp_path) == JobState("stopped", found.began, None, found.host, holder.pid)


def test_a_second_process_waits_and_leaves_the_folder_alone(tmp_path, caplog):
    tiny_job(tmp_path)
    folder = folder_of(tmp_path)
    with caplog.at_level("INFO", logger="rift"), FileLock(folder / LOCK_FILE) as lock:

        def times():  # whoever tries a lock may touch it
            paths = [path for path in folder.rglob("*") if path.name != LOCK_FILE]
            return {path: path.stat().st_mtime_ns for path in paths}

        before = times()
        second = threading.Thread(target=tiny_job, args=[tmp_path], daemon=True)
        second.start()
        end = time.monotonic() + 60
        while not any("waiting for it" in record.message for record in caplog.records):
            assert second.is_alive() and time.monotonic() < end
            time.sleep(0.01)
        second.join(0.3)
        assert second.is_alive()
        assert times() == before
        lock.release()
        second.join(60)
    assert not second.is_alive()
    assert any("at: reused" in record.message for record in caplog.records)
    assert job_state(folder).state == "done"


def _as_another_host(arguments: list[str]) -> list[str]:
    """The command in a UTS and a network namespace of its own: another machine with the same disk."""
    probe = ["unshare", "--uts", "--net", "hostname", "elsewhere"]
    try:
        subprocess.run(probe, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("waits for a machine where namespaces can be made (root on Linux)")
    return ["unshare", "--uts", "--net", "sh", "-c", 'hostname elsewhere && exec "$@"', "-", *arguments]


def test_a_holder_on_another_host_is_named_waited_for_and_freed_by_its_death(tmp_path, caplog):
    root = Path(rift.__file__).parents[1]
    arguments = _as_another_host([sys.executable, "-c", HOLDER, str(tmp_path)])
    holder = subprocess.Popen(arguments, cwd=root)
    entered = threading.Event()

    def second():
        with rift.job._held(tmp_path, {}):
            entered.set()

    waiting = threading.Thread(target=second)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / STATE_FILE).exists():
            assert time.monotonic() < end, "the other process never began"
            time.sleep(0.01)
        found = job_state(tmp_path)
        assert (found.state, found.host, found.pid) == ("running", "elsewhere", holder.pid)
        holder.send_signal(signal.SIGSTOP)
        with caplog.at_level("INFO", logger="rift"):
            waiting.start()
            assert not entered.wait(2), "the job was entered while a suspended process held it"
        said = f"process {holder.pid} on elsewhere since {found.began} is running this job, waiting for it"
        assert said in caplog.text
    finally:
        holder.kill()
        holder.wait()
    assert entered.wait(10), "the lock of a killed process of another host was not freed"
    waiting.join()


def test_a_suspended_holder_is_said_to_be_so():
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert holder_named(process.pid, platform.node(), "noon") == (
            f"process {process.pid} on {platform.node()} since noon"
        )
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert "suspended (`kill -CONT" in holder_named(process.pid, platform.node(), None)
        assert "suspended" not in holder_named(process.pid, "elsewhere", None)
    finally:
        process.kill()
        process.wait()
