"""What `test_distributed.py` has two processes do together, and one alone: the same functions."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import test_stages_at as at
import test_stages_finetune as finetune
import torch
from tiny_jobs import stage_folder, tiny_config, tiny_session

from rift.attacks import Attack
from rift.checkpoint import save_tensors
from rift.data import batches, load_dataset
from rift.methods import make_method
from rift.runtime import distributed, gradient_pass
from rift.stages import adversarial_training, interpolation, mrc_scan, natural_shift

crafter = import_module("rift.stages.adversarial_training").crafter  # the package has a function of that name
# Shares of 26 and 27 images, and of 22 at the end of an epoch.
UNEVEN = ("stage.at.batch_size=53", "stage.at.epochs=2", "stage.at.lr=0.02", "stage.at.evaluate_every=1")
BY_BATCH_STATISTICS = Attack("linf", epsilon=0.15, step_size=0.1, steps=2, batchnorm="train")
SCAN = ("stage.mrc.epochs=1", "stage.mrc.max_images=60", "stage.mrc.batch_size=30")


def session():
    data = load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=150, test_limit=80)
    return tiny_session(data, batch_size=16)


METHODS = {"pgd_at": {}, "awp": {"base": "pgd_at", "gamma": 0.01, "warmup": 0}}


def trained(root: Path, name: str, method: str, *overrides: str) -> None:
    options, how = at.options_of(*UNEVEN, *overrides), make_method(method, METHODS[method])
    folder = stage_folder(root / name)
    adversarial_training(session(), folder, options, how, at.ATTACK, at.ATTACK, at.AUGMENTATION)


def gradients(root: Path) -> None:
    """Of one update by methods that make one, two, three passes for it; of fixed images, see the test."""
    ours, found = session(), {}
    images, labels, indices = next(batches(ours.dataset.train, 53, share=distributed.share()))
    moved = images + 0.1 * torch.sin(37 * images + indices.view(-1, 1, 1, 1))
    from_clean = {"beta": 5.0, "start_std": 0.001}
    for method, options in {"pgd_at": {}, "mart": from_clean, "trades": from_clean}.items():
        network = ours.new_network().train()
        gradient = gradient_pass(make_method(method, options).loss, network, ours.runtime)
        gradient(images, images, moved.clamp(0, 1), labels)
        parts = {name: value.grad for name, value in network.named_parameters()}
        parts |= dict(network.named_buffers())
        found |= {f"{method} {name}": value for name, value in parts.items()}
    network = ours.new_network().train()
    craft = crafter(network, None, make_method("pgd_at", {}), BY_BATCH_STATISTICS, ours.runtime)
    crafted = torch.cat(distributed.gather(craft(images, labels, images)))
    if distributed.is_writer():
        root.mkdir(parents=True, exist_ok=True)
        save_tensors(root / "crafted.safetensors", {"images": crafted})
        save_tensors(root / "gradients.safetensors", found)


def after_training(root: Path, weights: Path) -> None:
    """Whatever follows, of given weights: fine-tuning, scan, α sweep, verdicts."""
    ours = session()
    theta_at = torch.load(weights, weights_only=True)
    tuned = stage_folder(root / "finetune")
    finetune.tune(ours, tuned, theta_at, [finetune.MODULE], "stage.finetune.batch_size=53")
    config = tiny_config(*SCAN)
    mrc_scan(ours, stage_folder(root / "mrc"), config.stage.mrc, theta_at, at.ATTACK)
    shifted = {
        name: value + 0.1 * value.abs() if value.is_floating_point() else value
        for name, value in theta_at.items()
    }
    ends = theta_at, shifted
    interpolation(ours, stage_folder(root / "sweep"), config.stage.interpolate, *ends, at.ATTACK)
    found = {}
    for exact in (True, False):
        verdicts = ours.attacked(
            ours.network(theta_at), ours.dataset.test, at.ATTACK, runs=3, exact_runs=exact, purpose="here"
        )
        found |= {f"clean {exact}": verdicts.clean, f"robust {exact}": verdicts.robust}
    shift = natural_shift(ours, stage_folder(root / "shift"), theta_at, ours.dataset.test)
    found["natural shift"] = torch.tensor(shift["clean_accuracy"], dtype=torch.float64)
    if distributed.is_writer():
        save_tensors(root / "verdicts.safetensors", found)


def everything(root: Path, weights: Path) -> None:
    trained(root, "pgd_at", "pgd_at", "stage.at.average=0.9")
    trained(root, "awp", "awp")  # two gradients for each update
    gradients(root)
    after_training(root, weights)


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.start()
    everything(Path(sys.argv[1]), Path(sys.argv[2]))
    distributed.finish()
