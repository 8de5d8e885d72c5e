"""Saving in the background: what is written is what was given, whole, and errors are heard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import rift
from rift.checkpoint import load_tensors, save_tensors
from rift.saving import BackgroundSaver


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    """Training goes on in the same tensors while they are written."""
    saver, path = BackgroundSaver(), tmp_path / "x.safetensors"
    weight, rows = torch.zeros(200, 200), [1]
    for step in range(5):
        weight.fill_(step)
        saver.save(path, {"w": weight}, {"step": step, "rows": rows})
        weight.fill_(-1.0)
        saver.wait()
        tensors, note = load_tensors(path)
        assert tensors["w"].unique().tolist() == [step] and note == {"step": step, "rows": [1]}


def test_the_caller_does_not_wait_and_the_next_save_does(tmp_path):
    held, order = threading.Event(), []

    def slow(path, tensors, note):
        held.wait(5)
        save_tensors(path, tensors, note)
        order.append(note)

    saver, path = BackgroundSaver(slow), tmp_path / "x.safetensors"
    saver.save(path, {"w": torch.ones(3)}, 1)
    assert not path.exists() and order == []
    threading.Timer(0.1, held.set).start()
    saver.save(path, {"w": torch.zeros(3)}, 2)
    assert order[:1] == [1]
    saver.wait()
    assert order == [1, 2] and load_tensors(path)[1] == 2


def test_an_error_is_raised_at_the_next_save_and_only_once(tmp_path):
    saver = BackgroundSaver()
    saver.save(tmp_path / "no" / "such" / "folder" / "x.safetensors", {"w": torch.ones(3)})
    with pytest.raises(OSError, match="No such file"):
        saver.save(tmp_path / "x.safetensors", {"w": torch.ones(3)})
    saver.save(tmp_path / "x.safetensors", {"w": torch.ones(3)})
    saver.wait()
    assert (tmp_path / "x.safetensors").is_file()


def test_the_end_of_the_process_waits_for_the_file(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from rift.saving import BackgroundSaver;"
        "BackgroundSaver().save(Path(sys.argv[1]), {'w': torch.full((2000, 2000), 3.0)})"
    )
    path = tmp_path / "x.safetensors"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment())
    assert load_tensors(path)[0]["w"].mean() == 3


def environment():
    return os.environ | {"PYTHONPATH": str(Path(rift.__file__).parents[1])}


SAVES_FOR_EVER = """
import sys, torch
from itertools import count
from pathlib import Path
from rift.saving import BackgroundSaver

saver = BackgroundSaver()
for step in count():
    saver.save(Path(sys.argv[1]), {"w": torch.full((1500, 1500), float(step))}, {"step": step})
    print(step, flush=True)
"""


@pytest.mark.parametrize("lines", [2, 5, 9])
def test_a_kill_while_writing_leaves_a_whole_file(tmp_path, lines):
    """kill -9 in the midst of a series of saves: the newest whole file is there, and it is whole."""
    path = tmp_path / "x.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", SAVES_FOR_EVER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    seen = [int(process.stdout.readline()) for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    tensors, note = load_tensors(path)
    # When `save` returns for the n-th time, the one before is on disk.
    assert note["step"] >= seen[-1] - 1
    assert tensors["w"].unique().tolist() == [note["step"]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for a CUDA device")
def test_a_gpu_goes_on_while_its_tensors_are_saved(tmp_path):
    weight, path, saver = torch.ones(4000, 4000, device="cuda"), tmp_path / "x.safetensors", BackgroundSaver()
    for step in range(3):
        weight.fill_(step)
        saver.save(path, {"w": weight}, step)
        weight.fill_(-1.0)  # queued behind the copy
        saver.wait()
        assert load_tensors(path)[0]["w"].unique().tolist() == [step]
