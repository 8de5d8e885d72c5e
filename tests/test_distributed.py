"""One run in two processes on a CPU equals the run in one; it ends, and goes on, as one does.

How near is equal: a share of a batch is summed in another order than the whole, so gradients and weights
differ in the last bits of float32. From there a training goes its own way once a ReLU's input, or a pixel's
gradient, is zero but for rounding: seen after some ten steps, and as much in one process after 1e-7 in the
weights; with TRADES, which attacks from where its gradient is next to nothing, at the second. So gradients
are held close, weights after a few steps loosely. Where none are updated batches are shared out whole, and
everything is the same to the bit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import two_processes
from tiny_jobs import TINY, config_of, same_bits, subprocess_arguments

from rift.assembly import make_method
from rift.checkpoint import load_tensors
from rift.data import batches
from rift.errors import UserError
from rift.resume_point import read_resume_point
from rift.runtime import data_parallel, distributed

NEAR = 5e-3  # of weights, whose size is one and which move by ten times as much in a step; see above
CLOSE = 1e-3  # of gradients, as a share of the largest
HERE = Path(__file__).parent


def together(*words: str, number: int = 2) -> dict:
    """A command of Python's in several processes: what to give to `subprocess`."""
    found = subprocess_arguments()
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}", *words]
    paths = os.pathsep.join([found["env"]["PYTHONPATH"], str(HERE)])
    environment = found["env"] | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return found | {"args": launcher, "env": environment}


def rift_together(*arguments: str, number: int = 2) -> dict:
    return together("-m", "rift", *arguments, number=number)


def rows_of(folder: Path) -> list[dict]:
    timed = ("seconds", "images_per_s", "tflops", "of_matmul_rate")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def farthest(first: Path, second: Path) -> float:
    """The largest difference of any number in two files of weights."""
    ours, theirs = load_tensors(first)[0], load_tensors(second)[0]
    assert ours.keys() == theirs.keys()
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)


# -- in one process ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 3)])
def test_batchnorm_by_sums_is_torchs(shape):
    """Alone, its sums are over its own batch."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, 5, dtype=torch.float64).requires_grad_().unbind()
    statistics = [torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)]
    ours, theirs = ([value.clone() for value in statistics] for _ in range(2))
    found = data_parallel._batch_norm(x, *ours, weight, bias, training=True, momentum=0.3)
    right = F.batch_norm(x, *theirs, weight, bias, training=True, momentum=0.3)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn(shape, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, (x, weight, bias), direction) for y in (found, right)]
    torch.testing.assert_close(*gradients)


def test_the_shares_of_a_batch_are_the_batch(digits):
    options = {"epoch": 1, "shuffle": True, "padding": 1, "flip": True, "skip": 2}
    whole = list(batches(digits.train, 50, **options))
    shares = [list(batches(digits.train, 50, share=(rank, 3), **options)) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert max(len(part.labels) for part in parts) - min(len(part.labels) for part in parts) <= 1
        assert all(torch.equal(one, torch.cat(others)) for one, *others in zip(batch, *parts, strict=True))


def test_alone_nothing_is_shared():
    tensor = torch.ones(3)
    assert distributed.share() == (0, 1) and distributed.mine(7) and not distributed.active()
    assert distributed.summed(tensor) is tensor and distributed.merged(tensor) is tensor
    assert distributed.each([1, 2, 3], str) == ["1", "2", "3"]
    assert distributed.largest(3, 1) == (3, 1) and distributed.gather("x") == ["x"]


def test_a_method_that_compares_images_is_refused_in_several_processes(monkeypatch):
    config = config_of("experiment=demo", "method=aaer")
    make_method(config)
    monkeypatch.setattr(distributed, "active", lambda: True)
    with pytest.raises(UserError, match="method=aaer compares the images of a whole batch"):
        make_method(config)


# -- in two --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path, trained):
    weights = tmp_path / "weights.pt"
    torch.save(trained.state_dict(), weights)
    one, two = tmp_path / "one", tmp_path / "two"
    running = subprocess.Popen(
        **together(str(HERE / "two_processes.py"), str(two), str(weights)), stderr=subprocess.PIPE, text=True
    )
    two_processes.everything(one, weights)
    said = running.communicate()[1]
    assert running.returncode == 0, said

    def both(stage: str) -> tuple[Path, Path]:
        return tuple(next(root.glob(f"{stage}/stage/*/metrics.jsonl")).parent for root in (one, two))

    for stage in ("pgd_at", "awp", "finetune"):
        ours, theirs = both(stage)
        for name in ("best", "last"):
            distance = farthest(ours / f"{name}.safetensors", theirs / f"{name}.safetensors")
            assert distance < NEAR, (stage, name, distance)
        pairs = list(zip(rows_of(ours), rows_of(theirs), strict=True))
        assert all(a == pytest.approx(b, abs=1e-3) for a, b in pairs), pairs
    right, found = (load_tensors(root / "gradients.safetensors")[0] for root in (one, two))
    for name, value in right.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=CLOSE * value.abs().max().item(), msg=name
        )
    right, found = (load_tensors(root / "crafted.safetensors")[0]["images"] for root in (one, two))
    assert (found - right).abs().lt(1e-6).double().mean() > 0.999  # signs of gradients that are no gradients
    for stage in ("mrc", "sweep"):
        ours, theirs = both(stage)
        assert rows_of(ours) == rows_of(theirs) and rows_of(ours)
    alone, shared = (load_tensors(root / "verdicts.safetensors")[0] for root in (one, two))
    assert same_bits(alone, shared)
    assert 0 < alone["robust True"].sum() < alone["robust True"].numel()  # neither all nor nothing


SMALL = (
    *TINY, "runtime.threads=1", "stage.at.epochs=6", "dataset.train_limit=500", "runtime.batch_size=32",
)  # fmt: skip
FAILING = """
import sys
from rift import torchrun
from rift.errors import UserError
from rift.main import main
from rift.stages.loss_watch import LossWatch

def see(self, loss, epoch, batch, real=LossWatch.see):
    if torchrun.rank() == 1 and (epoch, batch) == (2, 2):
        raise UserError("process one has had enough")
    real(self, loss, epoch, batch)

LossWatch.see = see
main()
"""


def results(output: Path) -> list[Path]:
    """The result folders of a job; beside them lie their locks."""
    return [path for path in sorted(output.glob("store/*/*")) if path.is_dir()]


def state_of(output: Path) -> dict:
    (path,) = output.glob("jobs/*/*/state.json")
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (
            ["stage.evaluate.measure=[pgd,corruptions]", "stage.evaluate.severities=[5]"],
            {"mrc", "interpolate", "evaluate", "corruptions"},
        ),
        (
            [
                "stage.run=[at,mrc,gains,joint,finetune,interpolate,evaluate]",
                "stage.finetune.target=joint_k",
                "stage.finetune.top_k=2",
                "stage.evaluate.measure=[pgd,auto_attack]",
                "stage.evaluate.auto_attack=quick",
                "stage.evaluate.auto_attack_images=70",
            ],
            {"mrc", "gains", "joint", "interpolate", "evaluate", "auto_attack"},
        ),
    ],
    ids=["corruptions", "gains joint auto_attack"],
)
def test_a_whole_job_has_one_writer_and_the_results_of_one_process(tmp_path, options, stages):
    arguments = [*SMALL, *options]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = subprocess.run(
        **subprocess_arguments(*arguments, f"output={one}"), capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    for stage in ("at", "finetune"):  # from the same weights on everything is equal; their keys are
        shutil.copytree(one / "store" / stage, two / "store" / stage)
    shared = subprocess.run(**rift_together(*arguments, f"output={two}"), capture_output=True, text=True)
    assert shared.returncode == 0, shared.stderr
    assert shared.stderr.count("INFO job:") == 1 and shared.stdout.count("page:") == 1
    assert "Traceback" not in shared.stderr and state_of(two)["state"] == "done"
    folders = results(one)
    assert {folder.parent.name for folder in folders} >= stages
    for folder in folders:
        other = two / folder.relative_to(one)
        assert rows_of(folder) == rows_of(other), folder.parent.name
        for name in ("verdicts.safetensors", "weights.safetensors"):
            if (folder / name).exists():
                assert same_bits(load_tensors(folder / name)[0], load_tensors(other / name)[0])
        if folder.parent.name not in ("at", "finetune"):
            result = json.loads((other / "result.json").read_text())
            assert result["world_size"] == 2
            assert result["command"].startswith("torchrun --nproc-per-node=2 -m rift experiment=demo")


# After the third of eight steps, saved: this process, its launcher and what that has started are killed.
DYING = """
import os, signal
from pathlib import Path
from rift import torchrun
from rift.main import main
from rift.store import StageFolder

def save(self, tensors, note, real=StageFolder.save_resume_point):
    real(self, tensors, note)
    if note["steps"] == 3 and torchrun.is_writer():
        self.settle()
        launcher, own = os.getppid(), os.getpid()
        if "RANK" in os.environ:
            others = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
            for pid in [launcher, *map(int, others)]:
                if pid != own:
                    os.kill(pid, signal.SIGKILL)
        os.kill(own, signal.SIGKILL)

StageFolder.save_resume_point = save
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed_with", [1, 2])
def test_killed_and_resumed_with_another_number_of_processes(tmp_path, killed_with):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    words = [*TINY, "stage=at", "runtime.threads=1", "runtime.save_seconds=1e-9"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(**subprocess_arguments(*words, f"output={whole}"), check=True, capture_output=True)
    dying = together(str(script), *words, f"output={killed}")
    if killed_with == 1:
        dying["args"] = [sys.executable, str(script), *words, f"output={killed}"]
    assert subprocess.run(**dying, capture_output=True).returncode == -signal.SIGKILL
    (folder,) = results(killed)
    assert not (folder / "manifest.json").exists() and read_resume_point(folder)[1]["note"]["steps"] == 3
    resume = rift_together if killed_with == 1 else subprocess_arguments
    resumed = subprocess.run(**resume(*words, f"output={killed}"), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((folder / "result.json").read_text())["resumed"] is True
    (right,) = results(whole)
    assert right.name == folder.name
    for name in ("best", "last"):
        assert farthest(right / f"{name}.safetensors", folder / f"{name}.safetensors") < NEAR
    pairs = list(zip(rows_of(right), rows_of(folder), strict=True))
    assert all(a == pytest.approx(b, abs=0.02) for a, b in pairs), pairs


def started(arguments: dict) -> subprocess.Popen:
    """Running, and in the midst of its second epoch."""
    process = subprocess.Popen(**arguments, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "at 1: " in line:
            time.sleep(0.3)
            return process
    raise AssertionError("".join(lines))


LONG = (*SMALL, "stage=at", "dataset.train_limit=1200", "stage.at.batch_size=32", "stage.at.epochs=3")


@pytest.mark.slow
def test_told_to_stop_all_stop_at_one_step_and_it_is_saved(tmp_path):
    words = [*LONG, f"output={tmp_path}", "runtime.save_seconds=3600"]
    process = started(rift_together(*words))
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode != 0 and time.monotonic() - began < 20
    assert said.count("rift: stopped; the same command goes on from here") == 1
    assert state_of(tmp_path)["state"] == "stopped"
    (folder,) = results(tmp_path)
    assert read_resume_point(folder)[1]["note"]["steps"] > 0


@pytest.mark.slow
def test_one_process_that_fails_ends_all_with_one_sentence(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    output = tmp_path / "out"
    began = time.monotonic()
    found = subprocess.run(**together(str(script), *LONG, f"output={output}"), capture_output=True, text=True)
    assert found.returncode != 0 and time.monotonic() - began < 120
    assert found.stderr.count("rift: error:") == 1
    assert found.stderr.count("process one has had enough") == 1
    ours = found.stderr.partition("torch.distributed.run")[0]  # what follows is torchrun's own account
    assert "Traceback" not in ours.split("rift: error:")[0]
    assert (state_of(output)["state"], state_of(output)["reason"]) == ("failed", "process one has had enough")


@pytest.mark.slow
def test_a_mistake_is_said_once_and_leaves_nothing(tmp_path):
    for words, sentence in (
        (["stage.at.epoch=3"], "there is no option 'stage.at.epoch'"),
        (["-m", "seed=0,1"], "torchrun is for one"),
        (["method=aaer"], "compares the images of a whole batch"),
        (["stage.at.batch_size=499"], "fewer than there are processes"),
    ):
        found = subprocess.run(
            **rift_together(*SMALL, *words, f"output={tmp_path / 'out'}"), capture_output=True, text=True
        )
        assert found.returncode != 0
        assert found.stderr.count("rift: error:") == 1 and found.stderr.count(sentence) == 1, found.stderr
        assert not (tmp_path / "out").exists()
