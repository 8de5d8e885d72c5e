"""Surroundings that no run may depend on: terminals, homes, users, permissions, clocks, what is installed."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tiny_jobs import TINY, command, results_of, subprocess_arguments

from rift import job

NOBODY = 12345  # a user that no machine has an entry for
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The results of the job in ordinary surroundings."""
    output = tmp_path_factory.mktemp("usual")
    assert command(*TINY, f"output={output}") == 0
    return results_of(output)


@pytest.fixture
def anyones():
    """A folder that any user may enter and write, where a process can become another user at all."""
    try:
        subprocess.run([*AS_NOBODY, sys.executable, "-c", "import rift"], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("waits for root, who may become a user that can read the interpreter")
    folder = Path(tempfile.mkdtemp(prefix="rift-anyones-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def without_wandb(folder: Path) -> str:
    """A folder for PYTHONPATH in which W&B cannot be imported."""
    (folder / "stub" / "wandb").mkdir(parents=True)
    (folder / "stub" / "wandb" / "__init__.py").write_text("raise ImportError('W&B is not here')\n")
    return str(folder / "stub")


def in_surroundings(
    folder, *, variables=(), without=(), flags=(), arguments=(), closed=(), before=(), **options
):
    """The job as a process in the given surroundings; how it ended, and its results.

    Args:
        folder: becomes the working directory.
        variables: of the environment.
        without: variables that are not there.
        flags: of the interpreter.
        arguments: besides `TINY`.
        closed: numbers of the standard streams that are not open.
        before: a command that starts the interpreter.
        **options: of `subprocess.run`.
    """
    given = subprocess_arguments(*TINY, f"output={folder}/out", *arguments)
    environment = {name: value for name, value in given["env"].items() if name not in without}
    added = dict(variables)
    added["PYTHONPATH"] = os.pathsep.join(
        path for path in (added.get("PYTHONPATH"), environment["PYTHONPATH"]) if path
    )
    given["args"][1:1] = flags
    given["args"][:0] = before
    given |= {"env": environment | added | {"PYTHONDONTWRITEBYTECODE": "1"}, "cwd": folder}
    done = subprocess.run(
        **given,
        **({"capture_output": True} | options),
        errors="replace",
        check=False,
        preexec_fn=(lambda: [os.close(number) for number in closed]) if closed else None,
    )
    return done, results_of(folder / "out")


def without_versions(value):
    """Results but for the libraries' versions: another user may have another Python of the same name."""
    if isinstance(value, dict):
        return {name: without_versions(part) for name, part in value.items() if name != "versions"}
    return value


def unharmed(done, results, usual):
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    assert "Traceback" not in said and "Error" not in said, said
    assert without_versions(results) == without_versions(usual)


@pytest.mark.slow
def test_everything_at_once(anyones, usual):
    """Each alone too, in the tests below."""
    (anyones / "netrc").write_bytes(b"machine \xff broken")
    done, results = in_surroundings(
        anyones,
        variables=ASCII | {"NETRC": str(anyones / "netrc"), "PYTHONPATH": without_wandb(anyones)},
        without=("HOME", "USER", "LOGNAME"),
        flags=("-O",),
        closed=(0,),
        before=AS_NOBODY,
        umask=0o077,
    )
    unharmed(done, results, usual)
    assert "?" in done.stdout and done.stdout.isascii()
    assert {path.name for path in anyones.iterdir()} == {"out", "netrc", "stub"}, "litter"


@pytest.mark.slow
@pytest.mark.parametrize(
    "surroundings",
    [
        {"variables": ASCII},
        {"variables": {"PYTHONIOENCODING": "ascii"}},
        {"variables": {"LANG": "C", "LC_ALL": "C"}},
        {"without": ("HOME", "USER", "LOGNAME")},
        {"flags": ("-O",)},
        {"umask": 0o077},
        {"umask": 0o000},
        {"closed": (0,)},
        {"closed": (1,)},
        {"closed": (2,)},
        {"closed": (0, 1, 2)},
    ],
    ids=str,
)
def test_each_alone(tmp_path, usual, surroundings):
    done, results = in_surroundings(tmp_path, **surroundings)
    unharmed(done, results, usual)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}, "litter"


@pytest.mark.slow
def test_a_user_without_an_entry_and_without_a_home(anyones, usual):
    done, results = in_surroundings(
        anyones, without=("HOME", "USER", "LOGNAME"), arguments=("logger=wandb",), before=AS_NOBODY
    )
    unharmed(done, results, usual)


@pytest.mark.slow
@pytest.mark.parametrize(
    "netrc", [b"machine \xff", b"machine", b"login x\nmachine api.wandb.ai password", b""]
)
def test_a_broken_netrc(tmp_path, usual, netrc):
    (tmp_path / "netrc").write_bytes(netrc)
    where = {"NETRC": str(tmp_path / "netrc")}
    done, results = in_surroundings(tmp_path, variables=where, arguments=("logger=wandb",))
    unharmed(done, results, usual)
    assert done.stderr.count("W&B") == 1 and "no credentials found" in done.stderr


@pytest.mark.parametrize(
    "logger", [pytest.param("none", marks=pytest.mark.slow), pytest.param("wandb", marks=pytest.mark.slow)]
)
def test_w_and_b_is_not_installed(tmp_path, usual, logger):
    path = {"PYTHONPATH": without_wandb(tmp_path)}
    done, results = in_surroundings(tmp_path, variables=path, arguments=(f"logger={logger}",))
    assert (done.returncode, results) == (0, usual), done.stderr
    hints = [line for line in done.stderr.splitlines() if "W&B" in line]
    assert len(hints) == (logger == "wandb") and all("cannot be imported" in line for line in hints)


# -- where the output goes ------------------------------------------------------------------------------


def shell(folder, ending: str) -> subprocess.CompletedProcess:
    """The job in bash, its streams as `ending` says; the exit code is the job's, not the pipe's."""
    given = subprocess_arguments(*TINY, f"output={folder}/out")
    script = f'"$@" {ending}; exit "${{PIPESTATUS[0]}}"'
    given["args"] = ["bash", "-c", script, "bash", *given["args"]]
    return subprocess.run(**given, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "ending",
    [
        "2>&1 | head -1",
        pytest.param("| head -1", marks=pytest.mark.slow),
        pytest.param("| true", marks=pytest.mark.slow),
        pytest.param("> /dev/full 2> /dev/full", marks=pytest.mark.slow),
    ],
)
def test_a_stream_that_takes_nothing(tmp_path, usual, ending):
    done = shell(tmp_path, ending)
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "out") == usual
    assert "Traceback" not in done.stdout + done.stderr and "Exception" not in done.stderr


# -- the clock ------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_backwards(tmp_path, usual, monkeypatch, capsys):
    falling = itertools.count(start=2_000_000_000, step=-3600)
    monkeypatch.setattr(time, "time", lambda: float(next(falling)))

    class Falling(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(next(falling), tz)

    monkeypatch.setattr(job, "datetime", Falling)
    assert command(*TINY, f"output={tmp_path}") == 0
    assert results_of(tmp_path) == usual
    (state,) = tmp_path.glob("jobs/demo/*/state.json")
    noted = json.loads(state.read_text())
    assert noted["state"] == "done" and noted["ended"] < noted["began"]
    capsys.readouterr()
    assert command(*TINY, f"output={tmp_path}") == 0, "what is finished is reused all the same"
    assert "reused" in capsys.readouterr().err
