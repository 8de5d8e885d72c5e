"""`python -m rift.doctor`: what it says of machines that have, lack, or cannot load something."""

from __future__ import annotations

import importlib
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rift import doctor

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def without(monkeypatch):
    """Gives a package that does not import: as a torchvision of another torch, with no ImportError."""
    genuine = importlib.import_module

    def leave_out(name, error):
        def attempt(asked, *package):
            if asked == name:
                raise error
            return genuine(asked, *package)

        monkeypatch.setattr(doctor.importlib, "import_module", attempt)

    return leave_out


def rows(output: Path = Path("outputs")) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(output)}


def test_a_sound_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert doctor.main(["--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.err == "" and KEY not in said.out
    for word in (
        "Python",
        torch.__version__,
        "all 17 that are required import",
        "a key was found",
        "GiB free",
    ):
        assert word in said.out
    assert list(tmp_path.iterdir()) == []


def test_a_required_package_that_does_not_import(capsys, without):
    without("torchvision", RuntimeError("operator torchvision::nms does not exist\nmore"))
    assert doctor.main([]) == 1
    said = capsys.readouterr()
    assert said.err == (
        "rift: error: torchvision does not import (RuntimeError: operator torchvision::nms does not exist): "
        "install it for this Python, pip install torch torchvision; requirements.txt has the versions.\n"
    )
    assert "W&B" in said.out, "the rest is looked at all the same"


def test_what_is_optional_is_not_broken(without, monkeypatch, tmp_path):
    without("wandb", ImportError("no such thing"))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = rows(tmp_path)
    assert not any(finding.broken for finding in found.values())
    assert found["W&B"].advice == "logger=none, or pip install wandb"
    assert found["slurm"].advice == "hydra/launcher=slurm needs it: pip install -e '.[slurm]'"
    assert found["SLURM"].found == "not on this machine"


@pytest.mark.parametrize(
    ("name", "capability", "native", "advice"),
    [
        ("NVIDIA H100", (9, 0), True, "trains and crafts in bfloat16 by itself"),
        ("Tesla V100", (7, 0), False, "float32 by itself; runtime.tf32 brings nothing"),
    ],
)
def test_gpus(monkeypatch, name, capability, native, advice):
    about = SimpleNamespace(name=name, total_memory=80 * 2**30, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
    first, second, both = doctor._gpus()
    assert first.what == "GPU 0" and second.what == "GPU 1" and first.advice == advice
    assert first.found.startswith(f"{name}, 80 GiB, compute capability {capability[0]}.{capability[1]}, ")
    assert "hydra/launcher=gpus" in both.advice and "--nproc-per-node=2" in both.advice


def test_a_driver_that_torch_cannot_use():
    assert "built without CUDA" in doctor._no_gpu(driver=True, built=False)[0]
    assert "nvidia-smi" in doctor._no_gpu(driver=True, built=True)[0]
    assert doctor._no_gpu(driver=False, built=True)[0] == "none"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (SimpleNamespace(returncode=0, stdout="debug*\ngpu\n", stderr=""), "reachable: debug*, gpu"),
        (SimpleNamespace(returncode=1, stdout="", stderr="no controller\n"), "not reachable (no controller)"),
        (subprocess.TimeoutExpired("sinfo", 5), "does not answer (TimeoutExpired"),
    ],
)
def test_slurm(monkeypatch, answer, words):
    def run(*_, **__):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor.subprocess, "run", run)
    (finding,) = doctor._slurm()
    assert words in finding.found


def test_a_look_that_fails_hides_nothing(monkeypatch, tmp_path):
    def fails():
        raise OSError("no such device")
        yield

    monkeypatch.setattr(doctor, "_memory", fails)
    found = rows(tmp_path)
    assert found["memory"].found == "cannot be told: OSError: no such device"
    assert "disk" in found
