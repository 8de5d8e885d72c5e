"""A trained job, exported; each form, in a fresh interpreter, gives the job's own verdict on every image."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_tracking import records
from tiny_jobs import TINY, command, tiny_config

import rift
from rift.assembly import make_runtime, make_session

pytestmark = pytest.mark.slow
OPTIONS = (
    "stage.at.epochs=8",
    "stage.at.milestones=[6]",
    "attack.steps=1",
    "stage.finetune.lr=0.1",
    "stage.interpolate.tolerance=1.0",  # so that α* > 0, and θ* is not θ_AT
)
# What a user types after the code of the page: RobustBench's way of asking a model.
ASK = """
import torch
from safetensors.torch import load_file, save_file
images = load_file("{images}")["images"]
assert not model.training and images.min() >= 0 and images.max() <= 1
with torch.no_grad():
    logits = torch.cat([model(batch) for batch in images.split(32)])
save_file({{"logits": logits}}, "{logits}")
"""
AS_TIMM = """
import torch, torchvision
mean, std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
model = torch.nn.Sequential(torchvision.transforms.Normalize(mean, std), network).eval()
"""
HUB = 'import torch\nmodel = torch.hub.load("{root}", "rift_model", ".", source="local")\n'


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The job's folder, the test images in a file, and the logits of the job's own θ*."""
    output = tmp_path_factory.mktemp("exported")
    assert command(*TINY, *OPTIONS, f"output={output}") == 0
    (job,) = output.glob("jobs/demo/*")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(output / "netrc"))
        done = fresh("-m", "rift.export", str(job), "--artifact")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(job / "export")
    config = tiny_config(*OPTIONS, output=output)
    session = make_session(config, make_runtime(config))
    images, labels = session.dataset.test.images.float() / 255, session.dataset.test.labels
    save_file({"images": images, "labels": labels}, output / "test.safetensors")
    # The job computes in another memory format, which changes the last bits.
    network = session.new_network().eval().to(memory_format=torch.contiguous_format)
    stages = json.loads((job / "summary.json").read_text())["stages"]
    network.load_state_dict(load_file(Path(stages["interpolate"]) / "weights.safetensors"))
    with torch.no_grad():
        logits = torch.cat([network(batch) for batch in images.split(32)])
    return job, output / "test.safetensors", logits


def fresh(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Python anew, with nothing but the package's place in common with this process."""
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(rift.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=environment, **options
    )


def verdicts_of(job: Path, which: str) -> torch.Tensor:
    stages = json.loads((job / "summary.json").read_text())["stages"]
    return load_file(Path(stages[f"evaluate_{which}"]) / "verdicts.safetensors")["clean"].bool()


def code_of(job: Path) -> dict[str, str]:
    """Each form's lines, from the page that lies beside the weights."""
    text = (job / "export" / "README.md").read_text(encoding="utf-8")
    ours, plain, timm = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return {
        "rift": ours,
        "plain": plain,
        "timm": timm + AS_TIMM,
        "hub": HUB.format(root=Path(rift.__file__).parents[1]),
    }


@pytest.mark.parametrize("form", ["rift", "plain", "timm", "hub"])
def test_a_fresh_interpreter_finds_the_same_accuracy(form, exported, tmp_path):
    job, images, expected = exported
    code = code_of(job)[form] + ASK.format(images=images, logits=tmp_path / "logits")
    done = fresh("-c", code, cwd=job / "export")
    assert done.returncode == 0, done.stderr
    logits, labels = load_file(tmp_path / "logits")["logits"], load_file(images)["labels"]
    assert torch.equal(logits, expected)
    right = logits.argmax(1) == labels
    assert torch.equal(right, verdicts_of(job, "rift"))
    card = json.loads((job / "export" / "card.json").read_text())
    assert right.double().mean().item() == card["numbers"]["rift"]["clean_accuracy"] > 0.3
    assert (
        card["chosen"]["alpha"] > 0 and card["weights"]["at"]["sha256"] != card["weights"]["rift"]["sha256"]
    )


def test_wandb_has_the_folder(exported):
    job, *_ = exported
    (path,) = job.glob("wandb/offline-run-*/*.wandb")
    found = [one.artifact for one in records(path) if one.WhichOneof("record_type") == "artifact"]
    (artifact,) = [one for one in found if one.type == "model"]
    files = {entry.path for entry in artifact.manifest.contents}
    assert files == {p.relative_to(job / "export").as_posix() for p in (job / "export").rglob("*.*")}
    assert artifact.name == job.name
