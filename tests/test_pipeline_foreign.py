"""A whole job that starts from foreign weights of each form: nothing leaks, and nothing falls back."""

from __future__ import annotations

import pytest
import torch
from tiny_jobs import changed, restored_process, tiny_config

from rift.assembly import make_runtime, make_session
from rift.models import scannable_modules
from rift.pipeline import Pipeline
from rift.store import Store
from rift.tracking import Tracker


@pytest.fixture(autouse=True)
def process():
    with restored_process():
        yield


@pytest.mark.parametrize(
    ("model", "width", "target"),
    [
        ("preact_resnet18", 4, "layer2.0.shortcut.0"),
        ("preact_resnet18", 4, "last_layer"),
        ("wrn28_10", 1, "least_critical"),
        ("wrn_silu_28_10", 1, "layer.1.block.0.conv_0"),
    ],
)
def test_scanned_and_fine_tuned(tmp_path, shaken, model, width, target):
    options = (f"model={model}", f"model.width={width}", f"stage.finetune.target={target}")
    file = tmp_path / "published.pt"
    options = (*options, "stage=from_checkpoint", "stage.finetune.batchnorm=frozen")
    config = tiny_config(*options, output=tmp_path)
    config.model.checkpoint = str(file)
    session = make_session(config, make_runtime(config))
    published = shaken(session.new_network()).state_dict()
    torch.save({"net": {f"module.{name}": value for name, value in published.items()}}, file)
    folders = Pipeline(config, session, Store(tmp_path / "store")).run(Tracker())
    scanned = folders["mrc"].result()["ranking"]
    assert set(scanned) == set(scannable_modules(session.new_network()))
    theta_at, tuned = folders["at"].load("last"), folders["finetune"].load("last")
    assert not changed(published, theta_at)
    (module,) = folders["finetune"].result()["modules"]
    moved = changed(theta_at, tuned)
    assert {f"{module}.weight"} <= moved <= {f"{module}.weight", f"{module}.bias"}
    assert folders["finetune"].result()["leak"]["last"]["parameters"] == 0
    assert session.runtime.fallbacks == []
