"""A real sweep at the command line: shared stages are done once, and SIGKILL costs only what is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import redirect_stderr
from io import StringIO

import pytest
from tiny_jobs import command, results_of, subprocess_arguments

SWEEP = (
    "-m",
    "experiment=demo",
    "smoke=true",
    "model.width=8",
    "stage.at.epochs=4",
    "stage.finetune.lr=0.01,0.001",
    "logger=none",
    "runtime.device=cpu",
    "runtime.threads=1",
)
STAGES = {"at": 1, "mrc": 1, "finetune": 2, "interpolate": 2, "evaluate": 3, "corruptions": 3}


def sweep(output, **options):
    return {**subprocess_arguments(*SWEEP, f"output={output}"), "cwd": output.parent, **options}


def sweep_here(output) -> list[str]:
    """The sweep in this process, since importing torch again takes longest; the lines of its log."""
    with redirect_stderr(StringIO()) as log:
        assert command(*SWEEP, f"output={output}") == 0, log.getvalue()
    return log.getvalue().splitlines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    return output, sweep_here(output)


def stage_folders(output, stage):
    return [path for path in (output / "store" / stage).iterdir() if path.is_dir()]


def test_a_sweep_trains_once_and_scans_once(undisturbed):
    output, log = undisturbed
    found = {stage: len(stage_folders(output, stage)) for stage in STAGES}
    # θ_AT is evaluated once; θ* of the two jobs once each, unless α* = 0 makes no difference to its key.
    assert found == STAGES
    for stage in ("at", "mrc", "evaluate_at"):
        begun = [line for line in log if f" {stage}: " in line and "store/" in line]
        assert len(begun) == 2
        assert "reused" not in begun[0] and "reused" in begun[1]
    assert sum(" at 1: " in line for line in log) == 1
    assert len(list(output.glob("jobs/demo/*/summary.json"))) == 2


def test_the_jobs_of_a_sweep_say_what_sets_them_apart(undisturbed):
    output, _ = undisturbed
    summaries = [json.loads(path.read_text()) for path in output.glob("jobs/demo/*/summary.json")]
    assert {summary["overrides"]["stage.finetune.lr"] for summary in summaries} == {"0.01", "0.001"}
    assert len({summary["key"] for summary in summaries}) == 2
    assert len({summary["stages"]["at"] for summary in summaries}) == 1
    assert all(summary["smoke"] for summary in summaries)


def test_the_output_folder_holds_nothing_else(undisturbed):
    output, _ = undisturbed
    assert {path.name for path in output.iterdir()} <= {"jobs", "store", "hydra"}
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def lines(path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def kill_when(output, stage, rows):
    """Starts the sweep and kills the whole process group once a stage has written that many rows."""
    log = output.parent / "killed.log"
    with log.open("w") as sink:
        process = subprocess.Popen(**sweep(output, stdout=sink, stderr=sink), start_new_session=True)
        try:
            end = time.monotonic() + 180
            while not any(lines(path) >= rows for path in output.glob(f"store/{stage}/*/metrics.jsonl")):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, "the stage never came so far"
                time.sleep(0.002)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL, log.read_text()


def times(output):
    return {path: path.stat().st_mtime_ns for path in output.glob("store/*/*/*")}


def test_killed_and_given_again_it_does_only_what_is_missing(tmp_path, undisturbed):
    """Killed in the middle of training, given again, killed in the middle of the scan, given again."""
    output = tmp_path / "out"
    kill_when(output, "at", rows=2)
    (training,) = stage_folders(output, "at")
    assert not (training / "manifest.json").exists(), "it was killed too late to show anything"

    kill_when(output, "mrc", rows=3)
    (scan,) = stage_folders(output, "mrc")
    assert (training / "manifest.json").exists() and not (scan / "manifest.json").exists()
    assert json.loads((training / "result.json").read_text())["resumed"] is True
    before = times(output)

    log = sweep_here(output)

    # What was finished is reused and untouched; what was begun went on.
    assert {path: times(output)[path] for path in before if path.parent == training} == {
        path: time for path, time in before.items() if path.parent == training
    }
    assert sum(" at: reused " in line for line in log) == 2
    assert json.loads((scan / "result.json").read_text())["resumed"] is True
    # The numbers and the weights are those of the undisturbed sweep.
    assert results_of(output) == results_of(undisturbed[0])
    expected = {path.name: path for path in undisturbed[0].glob("store/*/*") if path.is_dir()}
    found = {path.name: path for path in output.glob("store/*/*") if path.is_dir()}
    assert found.keys() == expected.keys()
    compared = 0
    for name, path in found.items():
        assert lines(path / "metrics.jsonl") == lines(expected[name] / "metrics.jsonl") > 0
        for file in path.glob("*.safetensors"):
            assert file.read_bytes() == (expected[name] / file.name).read_bytes(), f"{name}/{file.name}"
            compared += 1
    assert compared == 2 + 2 * 2 + 2 + 3 + 3  # AT, two fine-tunings, two α*, three networks measured twice
