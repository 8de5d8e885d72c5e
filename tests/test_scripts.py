"""The scripts run, on the smallest of their work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import pytest
import torch

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
def test_the_gpu_check_runs_through_on_a_cpu(tmp_path):
    files = ["--output", tmp_path / "lines.jsonl", "--options", tmp_path / "options.txt"]
    # However busy the machine is, nothing is left out for lack of minutes.
    done = run(sys.executable, "scripts/gpu_check.py", "--small", "--minutes", 100, *files)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "wrong" in line]
    by_part = {name: [line for line in lines if line["part"] == name] for name in {x["part"] for x in lines}}
    assert {line["benchmark_limit"] for line in by_part["at_steps"] if "ms" in line} == {0, 10}
    assert [line["kind"] for line in by_part["same_bits"] if line["bit_equal"]] == ["plain", "replayed"]
    assert len(by_part["kernels"]) == 20 and len(by_part["one_save"]) == 2
    assert by_part["end"][0]["fallbacks"] == []
    chosen = dict(line.split("=") for line in (tmp_path / "options.txt").read_text().split())
    assert set(chosen) == {
        "runtime.cuda_graphs",
        "runtime.compile",
        "runtime.benchmark_limit",
        "runtime.channels_last",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_check_needs_a_gpu():
    done = run(sys.executable, "scripts/gpu_check.py")
    assert done.returncode == 2 and "there is no CUDA device here" in done.stderr


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
        return paper_row(*folders, "--minutes", minutes, *options)

    first = row(0)
    assert first.returncode == 75, first.stderr
    assert "goes on from here" in first.stdout
    last = row(30)
    assert last.returncode == 0, last.stderr
    results = tmp_path / "results"
    assert {"results.tar.gz", "weights.part-00", "weights.json"} <= {p.name for p in results.iterdir()}
    with tarfile.open(results / "results.tar.gz") as archive:
        names = archive.getnames()
    assert "report/table.md" in names
    assert len([name for name in names if name.endswith("summary.json")]) == 9  # one for each step
    assert json.loads((results / "weights.json").read_text())["what"] == "θ_AT"


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar-10-batches-py").is_dir(), reason="RIFT_TEST_DATA has no real CIFAR-10")
def test_a_paper_row_goes_on_elsewhere_from_the_weights_that_travelled(tmp_path):
    """The machine is lost in the midst of AT; another one goes on from the parts, and says so."""
    small = [
        "smoke=true",
        "model=resnet_small",
        "model.width=4",
        "stage.at.epochs=200",
        "runtime.save_seconds=0",
    ]
    results = tmp_path / "results"
    for minutes in (1, 2, 4, 8):  # a busy machine may need more than one for the first epoch
        arguments = ["--data", DATA, "--results", results, "--minutes", minutes, *small]
        lost = paper_row(*arguments, f"output={tmp_path / 'lost'}")
        assert lost.returncode == 75, lost.stderr
        if (results / "weights.json").exists():
            break
    about = json.loads((results / "weights.json").read_text())
    assert about["what"] == "AT so far" and 0 < about["epoch"] < 200
    joined = tmp_path / "at.safetensors"
    joined.write_bytes(b"".join(part.read_bytes() for part in sorted(results.glob("weights.part-*"))))
    epochs = about["epoch"] + 2
    done = run(
        sys.executable, "-m", "rift", *small[:3], "dataset=cifar10", f"dataset.root={DATA}", "stage=at",
        "logger=none", f"output={tmp_path / 'other'}", f"model.checkpoint={joined}",
        f"stage.at.start_epoch={about['epoch']}", f"stage.at.epochs={epochs}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "other").glob("store/at/*/result.json")
    result = json.loads(path.read_text())
    assert result["last"]["epoch"] == epochs
    assert f"after epoch {about['epoch']} of a checkpoint, with fresh momentum" in result["notes"][0]


def paper_row(*arguments):
    environment = os.environ | {"PYTHON": sys.executable}
    return run(ROOT / "scripts/paper_row.sh", *arguments, env=environment)


def test_the_paper_row_refuses_what_it_cannot_use(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = import_module("paper_row")
    for arguments, sentence in [
        ([], "--data and --results are needed"),
        (["--data", tmp_path, "--results", tmp_path / "r"], "no cifar-10-batches-py in"),
        (["--data", tmp_path, "--results", tmp_path / "r", "at"], "no cifar-10-batches-py in"),
        (["--data", tmp_path / "d", "--results", tmp_path / "r", "at"], "'at' is no option=value"),
        (["--data", tmp_path / "d", "--results", tmp_path / "r", "--options", "x"], "there is no file x"),
    ]:
        (tmp_path / "d" / "cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(sys, "argv", ["paper_row.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            script.parse()
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert sentence in said and len(said.splitlines()) == 1


def test_the_cost_of_a_row_is_counted_on_the_network(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    row_cost = import_module("row_cost")
    flops, modules = row_cost.forward_flops("resnet18", "cifar10")
    # 556 million multiply-adds, as published for ResNet18 on 32×32 pixels; 17 convolutions, 3 shortcuts, fc.
    assert flops == pytest.approx(2 * 0.556e9, rel=0.01)
    assert modules == 21
    cost = row_cost.row_cost("resnet18", "cifar10")
    assert cost["at"] == pytest.approx(110 * (50_000 * 23 + 10_000 * 21) * flops / 1e15)
    rows = {("resnet18", name): cost for name in ("cifar10", "cifar100")}
    totals = row_cost.tables(rows)
    assert totals["table2"] == pytest.approx(24 * sum(cost.values()))
    assert totals["table4"] == pytest.approx(3 * (cost["at"] + cost["scan"] + 4 * cost["after"]))
