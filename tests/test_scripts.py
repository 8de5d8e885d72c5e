"""The scripts run, on the smallest of their work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("RIFT_TEST_DATA", "/nonexistent"))


def run(*command, **options):
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


@pytest.mark.slow
def test_the_benchmark_writes_a_row_per_loop(tmp_path):
    output = tmp_path / "benchmark.json"
    names = ["data_path", "craft_bf16"]
    options = ["--rounds", "1", "--changes", "--output", output]
    done = run(sys.executable, "scripts/benchmark.py", "--only", *names, *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())
    assert [row["name"] for row in rows][:2] == names
    assert [row["name"] for row in rows][2:5] == [
        "craft: weights frozen",
        "craft: channels last",
        "craft: BatchNorm folded",
    ]
    for row in rows:
        assert row["ratio"] is None or {"images_per_s", "tflops", "peak_mib"} <= row.keys()
    machine = json.loads((tmp_path / "benchmark.machine.json").read_text())["machine"]
    assert machine["versions"]["torch"] and machine["matmul_tflops"] > 0


@pytest.mark.slow
def test_a_paper_rows_time_is_extrapolated_from_a_few_batches():
    code = (
        "import sys, json, torch; sys.path[:0] = ['scripts', 'tests']; from extrapolation import paper_row;"
        "row = paper_row(torch.device('cpu'), 'resnet18', 'cifar10', batch=2, large=4, steps=1);"
        "print(json.dumps(row))"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    seconds = row["seconds"]
    assert list(seconds) == ["at", "mrc", "finetune", "interpolate", "evaluate"]
    assert all(value > 0 for value in seconds.values())
    # By the passes alone: 11 points of three runs, and two networks of three.
    assert seconds["interpolate"] / seconds["evaluate"] == pytest.approx(33 / 6)
    assert row["hours"] == pytest.approx(sum(seconds.values()) / 3600)
    assert row["fallbacks"] == []


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar-10-batches-py").is_dir(), reason="RIFT_TEST_DATA has no real CIFAR-10")
def test_the_paper_row_stops_in_time_and_goes_on(tmp_path):
    def row(minutes):
        folders = ["--data", DATA, "--results", tmp_path / "results"]
        options = ["smoke=true", "model=resnet_small", f"output={tmp_path / 'out'}"]
        script = ROOT / "scripts/paper_row.sh"
        return run(script, *folders, "--minutes", minutes, "--python", sys.executable, *options)

    first = row(0)
    assert first.returncode == 75, first.stderr
    assert "goes on from here" in first.stdout
    last = row(30)
    assert last.returncode == 0, last.stderr
    assert {"results.tar.gz", "weights.part-aa", "report"} <= {
        p.name for p in (tmp_path / "results").iterdir()
    }


def test_the_paper_row_refuses_what_it_cannot_use(tmp_path):
    for arguments, sentence in [
        ([], "--data and --results are needed"),
        (["--data", tmp_path, "--results", tmp_path / "r"], "no cifar-10-batches-py in"),
        (["--data"], "--data needs a value"),
    ]:
        done = run(ROOT / "scripts/paper_row.sh", *arguments)
        assert done.returncode == 2
        assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
