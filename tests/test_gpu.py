"""What only a GPU does: graphs of folded networks, autocast and fused steps, the scan, saving without a wait.

Each test also runs on the CPU, where the same code takes the plain paths, so that the test itself is known
to be right before there is a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_jobs import Killed, same_bits, stage_folder, tiny_config, tiny_session

from rift.attacks import Attack, random_start
from rift.data import load_dataset
from rift.methods import make_method
from rift.runtime import CraftingNetwork
from rift.stages import adversarial_training, mrc_scan
from rift.stages.adversarial_training import crafter
from rift.store import StageFolder

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for a CUDA device")
    ),
]
ATTACK = Attack("linf", epsilon=0.15, step_size=0.06, steps=4)
AUGMENTATION = {"padding": 1, "padding_mode": "zeros", "flip": True}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=300, test_limit=150)


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


def make_session(digits, device, **runtime):
    """Strict: a fallback is an error."""
    return tiny_session(digits, width=16, device=device, strict=True, **runtime)


def train(session, folder, *overrides, method="pgd_at", options=None, attack=ATTACK):
    at = tiny_config("stage.at.lr=0.02", "stage.at.evaluate_every=1", *overrides).stage.at
    return adversarial_training(
        session, folder, at, make_method(method, options or {}), attack, attack, AUGMENTATION
    )


@pytest.mark.parametrize("method", ["pgd_at", "trades"])
def test_a_captured_attack_through_the_folded_network_follows_its_weights(digits, device, method):
    session = make_session(digits, device)
    network = session.new_network().eval()
    made = make_method(method, {} if method == "pgd_at" else {"beta": 6.0, "start_std": 0.03})
    attack = made.attack(ATTACK)
    train_split = session.dataset.train
    x, y = session.runtime.laid_out(train_split.images[:64] / 255), train_split.labels[:64]
    start = random_start(x, train_split.indices[:64], ("a",), attack)
    crafts = []
    for graphs in (False, True):
        runtime = replace(session.runtime, cuda_graphs=graphs)
        crafts.append(
            crafter(network, CraftingNetwork(network, runtime, torch.float32), made, attack, runtime)
        )
    for factor in (1.0, 0.5, 2.0):
        with torch.no_grad():
            network.fc.weight.mul_(factor)
            network.bn1.running_var.mul_(1 + factor)
        plain, captured = (craft(x, y, start) for craft in crafts)
        assert torch.isclose(plain, captured, rtol=0, atol=1e-3).double().mean() > 0.95
        half = crafts[1](x[:20], y[:20], start[:20])
        assert torch.isclose(half, captured[:20], rtol=0, atol=1e-3).double().mean() > 0.95


@pytest.mark.parametrize("method", ["pgd_at", "awp", "aaer"])
def test_training_in_bfloat16_learns_as_in_float32(digits, device, tmp_path, method):
    """Autocast, fused SGD, channels-last, graphs, and a graph that is replayed twice in a step (AWP)."""
    options = {
        "pgd_at": {},
        "awp": {"base": "pgd_at", "gamma": 0.01, "warmup": 0},
        "aaer": {"start_radius": 2.0, "step": 1.0, "lambda1": 1.0, "lambda2": 1.5, "lambda3": 0.15},
    }[method]
    losses, accuracies = [], []
    for precision in (torch.float32, torch.bfloat16):
        session = make_session(digits, device, precision=precision)
        folder = stage_folder(tmp_path / str(precision))
        schedule = ["stage.at.epochs=5", "stage.at.milestones=[]", "stage.at.lr=0.05"]
        schedule += ["stage.at.batch_size=20"]
        gentle = replace(ATTACK, epsilon=0.03, step_size=0.01)
        result = train(session, folder, *schedule, method=method, options=options, attack=gentle)
        losses.append([row["train_loss"] for row in folder.rows()])
        accuracies.append(result["best"]["clean_accuracy"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert min(accuracies) > 0.3  # of ten classes


def test_the_scan_ranks_as_on_the_cpu(digits, device, tmp_path):
    options = replace(tiny_config("stage.mrc.lr=0.1").stage.mrc, max_images=100)
    results = []
    for name, where in (("cpu", torch.device("cpu")), ("device", device)):
        session = make_session(digits, where, full_batches=name == "device")
        theta = session.new_network().state_dict()
        results.append(mrc_scan(session, stage_folder(tmp_path / name), options, theta, ATTACK))
    for one, other in zip(results[0]["modules"], results[1]["modules"], strict=True):
        assert other["mrc"] == pytest.approx(one["mrc"], rel=0.05, abs=1e-3), one["module"]


def test_an_interrupted_save_leaves_the_one_before(digits, device, tmp_path, monkeypatch):
    session = make_session(digits, device)
    real = StageFolder.save_resume_point
    kept = {}

    def dying(self, tensors, note):
        if note["next_epoch"] == 2:
            raise Killed
        real(self, tensors, note)
        self.settle()
        kept.update({n: t.detach().cpu().clone() for n, t in tensors.items()})

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StageFolder, "save_resume_point", dying)
        train(session, stage_folder(tmp_path), "stage.at.epochs=3")
    folder = stage_folder(tmp_path)
    tensors, note = folder.load_resume_point()
    assert note["next_epoch"] == 1 and same_bits(kept, tensors)
    result = train(session, stage_folder(tmp_path), "stage.at.epochs=3")
    assert result["last"]["epoch"] == 3


def test_the_averaged_network_is_judged_where_it_is(digits, device, tmp_path):
    session = make_session(digits, device)
    folder = stage_folder(tmp_path)
    result = train(session, folder, "stage.at.average=0.9")
    network = session.network({n: t.to(device) for n, t in folder.load("last").items()})
    verdicts = session.attacked(network, session.dataset.test, ATTACK, runs=1)
    assert verdicts.clean_accuracy == pytest.approx(result["last"]["clean_accuracy"], abs=0.01)
