"""The jobs of a sweep on the GPUs of one machine: never two on one, none lost with its process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_jobs import TINY, command, subprocess_arguments

import rift
from rift import launchers, sweep
from rift.errors import UserError
from rift.launchers.devices import VARIABLE, claimed, devices_here, lock_folder
from rift.locks import is_held

ROOT = Path(rift.__file__).parents[1]
CLAIM = """
import sys, time
from pathlib import Path
from rift.launchers.devices import claimed
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
with claimed(["3", "GPU-5"], 1, folder, lambda: None, interval=0.02) as device:
    print(device, time.monotonic(), flush=True)
    time.sleep(seconds)
    print(time.monotonic(), flush=True)
"""


def claim(folder, seconds):
    arguments = [sys.executable, "-c", CLAIM, str(folder), str(seconds)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_at_a_time_never_have_the_same_gpu(tmp_path):
    said = [
        process.communicate(timeout=60)[0].split() for process in [claim(tmp_path, 0.3) for _ in range(6)]
    ]
    held = {"3": [], "GPU-5": []}
    for device, begin, end in said:
        held[device].append((float(begin), float(end)))
    assert all(held.values()), "a GPU was left idle"
    for spans in held.values():
        spans.sort()
        assert all(first[1] <= second[0] for first, second in pairwise(spans))


def test_a_killed_process_gives_its_gpu_back(tmp_path):
    holders = [claim(tmp_path, 600) for _ in range(2)]
    had = [holder.stdout.readline().split()[0] for holder in holders]
    assert sorted(had) == ["3", "GPU-5"]
    waits = 0

    def waiting():
        nonlocal waits
        waits += 1
        if waits == 3:  # still taken after two waits
            holders[1].kill()

    try:
        with claimed(["3", "GPU-5"], 1, tmp_path, waiting, interval=0.1) as device:
            assert device == had[1] and waits >= 3
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def test_several_jobs_share_a_gpu_only_when_each_has_one(tmp_path):
    def never():
        pytest.fail("waited though a place was free")

    with (
        claimed(["0", "1"], 2, tmp_path, never) as first,
        claimed(["0", "1"], 2, tmp_path, never) as second,
        claimed(["0", "1"], 2, tmp_path, never) as third,
    ):
        assert [first, second, third] == ["0", "1", "0"]


@pytest.mark.parametrize(
    ("visible", "found"), [("2,3", ["2", "3"]), ("GPU-a, MIG-b", ["GPU-a", "MIG-b"]), ("", []), ("-1", [])]
)
def test_the_gpus_are_those_that_this_process_may_see(monkeypatch, visible, found):
    monkeypatch.setenv(VARIABLE, visible)
    assert devices_here() == found


def test_otherwise_those_that_nvidia_smi_names(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    smi.chmod(0o755)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert devices_here() == ["0", "1"]
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert devices_here() == []


def test_locks_are_the_user_s_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert lock_folder() == tmp_path / "rift-gpus"
    assert lock_folder().stat().st_mode & 0o777 == 0o700
    (tmp_path / "rift-gpus").rmdir()
    (tmp_path / "rift-gpus").symlink_to(tmp_path)
    with pytest.raises(UserError, match="not yours"):
        lock_folder()


# -- through the command line -------------------------------------------------------------------------

SWEEP = ("-m", "hydra/launcher=gpus", *TINY, "stage=at", "stage.at.epochs=1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "finds no GPU on this machine"),
        (["hydra.launcher.devices=[]"], "finds no GPU on this machine"),
        (["hydra.launcher.devices=[0,1,0]"], "[0,1,0] names one twice"),
        (
            ["hydra.launcher.devices=[0]", "hydra.launcher.jobs_per_device=0"],
            "jobs_per_device=0 is no number",
        ),
        (["hydra.launcher.devices=[{_target_:os.abort}]"], "is not taken"),
        (["hydra.launcher.devices=[../x]"], "is not taken"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.setenv(VARIABLE, "")
    assert command(*SWEEP, "seed=0,1", *options, f"output={tmp_path}/out") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("rift: error: ") and captured.err.count("\n") == 1
    assert words in captured.err and "Jobs of this sweep" not in captured.out
    assert not list(tmp_path.glob("out/jobs/*"))


def test_without_its_extra_slurm_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rift.command_line.has_slurm_extra", lambda: False)
    assert command("-m", "hydra/launcher=slurm", "seed=0,1", "logger=none", f"output={tmp_path}/out") == 2
    assert "pip install -e '.[slurm]'" in capsys.readouterr().err


@pytest.mark.skipif(not launchers.has_slurm_extra(), reason="waits for the extra `slurm`")
def test_without_slurm_the_machine_is_said_to_have_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("-m", "hydra/launcher=slurm", "seed=0,1", "logger=none", f"output={tmp_path}/out") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "needs sbatch and srun" in captured.err


@pytest.mark.slow
def test_each_job_has_its_gpu_and_a_killed_one_is_told(tmp_path):
    """On two pretended GPUs: one job is killed, and its place free; then the whole sweep is told to stop."""
    options = subprocess_arguments(
        *SWEEP, "stage.at.epochs=400", "seed=0,1", "hydra.launcher.devices=[7,9]", f"output={tmp_path}"
    )
    options["env"]["XDG_RUNTIME_DIR"] = str(tmp_path)
    process = subprocess.Popen(
        **options, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    states = {}
    end = time.monotonic() + 200
    while len(states) < 2:
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        for path in tmp_path.glob("jobs/*/*/state.json"):
            states[re.search(r"-s(\d)-", path.parent.name)[1]] = path
        time.sleep(0.2)
    pid = int(re.search(r'"pid": (\d+)', states["1"].read_text())[1])
    os.kill(pid, signal.SIGKILL)
    places = [tmp_path / "rift-gpus" / f"{device}.0.lock" for device in "79"]
    while all(is_held(place) for place in places):
        assert time.monotonic() < end, "the place of a killed job is not free"
        time.sleep(0.2)
    time.sleep(2)  # so that the sweep has noticed
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    devices = dict(re.findall(r"rift: job #(\d) has GPU (\d)", said))
    assert sorted(devices.values()) == ["7", "9"]
    assert re.search(r"#1 seed=1 +stopped: its process was ended from outside \(SIGKILL\)", out), out
    assert re.search(r"#0 seed=0 +stopped: before its end", out), out
    assert '"state": "stopped"' in states["0"].read_text(), "the other one has saved and said so"


def test_a_lost_job_is_noted_unless_it_said_itself_how_it_ended(tmp_path, monkeypatch):
    monkeypatch.setenv(sweep.VARIABLE, str(tmp_path))
    (tmp_path / "0.json").write_text('{"overrides": [], "state": "done", "reason": ""}')
    (tmp_path / "1.json").write_text('{"overrides": ["a=1"], "state": "stopped", "reason": "before its end"}')
    (tmp_path / "2.json").write_text('{"over')
    for number in (0, 1, 2, 3):
        sweep.lost(number, "killed")
    assert '"done"' in (tmp_path / "0.json").read_text()
    assert '"killed"' in (tmp_path / "1.json").read_text() and "a=1" in (tmp_path / "1.json").read_text()
    (tmp_path / "plan.json").write_text("[[], [], [], []]")
    assert [row["state"] for row in sweep._rows(tmp_path)] == ["done", "stopped", "stopped", "stopped"]
