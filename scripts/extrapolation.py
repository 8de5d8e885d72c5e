"""How long a paper row takes on this device, from a few steps of each of its loops."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import ATTACK, crafting_loop, make_at_step, make_network
from torch import nn

from rift.attacks import random_start
from rift.criticality import Solver
from rift.data import Split, batches
from rift.methods import make_method
from rift.models import scannable_modules
from rift.runtime import Runtime
from rift.runtime.throughput import wait_for
from rift.stages.adversarial_training import robust_accuracy_is_due
from rift.stages.mrc_scan import criticality_of
from rift.stages.scanned_network import ScannedNetwork

SETS = {  # side, training images, test images, classes
    "cifar10": (32, 50_000, 10_000, 10),
    "cifar100": (32, 50_000, 10_000, 100),
    "tiny_imagenet": (64, 100_000, 10_000, 200),
}
# The paper's row: epochs of AT, of fine-tuning and of the scan; attacks of the sweep and of the evaluation.
AT_EPOCHS, FINETUNE_EPOCHS, SCAN_EPOCHS, SWEEP_RUNS, FINAL_RUNS = 110, 10, 10, 11 * 3, 2 * 3
SCANNED = 4  # modules that stand for all, evenly spaced


def paper_rows(device: torch.device, models: tuple[str, ...] = ("resnet18", "resnet34", "wrn34_10")) -> list:
    """Every backbone on every data set."""
    return [paper_row(device, model, dataset) for model in models for dataset in SETS]


def paper_row(
    device: torch.device, model: str, dataset: str, batch: int = 128, large: int = 512, steps: int = 10
) -> dict[str, Any]:
    """Seconds of each stage of a row at the paper's sizes; everything is extrapolated from a few batches.

    Args:
        device: where it is timed.
        model, dataset: which row.
        batch: of training.
        large: of evaluation and of the scan.
        steps: training steps that are timed.
    """
    side, train, test, classes = SETS[dataset]
    runtime = Runtime(device, precision=torch.bfloat16 if device.type == "cuda" else torch.float32)
    network = runtime.place(make_network(model, classes))
    count = max(batch * (steps + 2), large)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    split = Split(pixels, torch.randint(0, classes, (count,)), torch.arange(count)).to(device)
    step = training_seconds(network, runtime, split, batch, steps)
    frozen = network.eval().requires_grad_(False)
    attacked = attack_seconds(frozen, runtime, split, large) / large
    names = list(scannable_modules(frozen))
    module = scan_seconds(frozen, runtime, split, large, names) / large
    selections = sum(robust_accuracy_is_due(epoch, AT_EPOCHS, 5) for epoch in range(AT_EPOCHS))
    epoch = step * train / batch
    stages = {
        "at": AT_EPOCHS * epoch + selections * test * attacked,
        "mrc": len(names) * SCAN_EPOCHS * test * module,  # the published scan's 10 000 images
        "finetune": FINETUNE_EPOCHS * epoch * 3 / (2 * ATTACK.steps + 3),  # by its share of the passes
        "interpolate": SWEEP_RUNS * test * attacked,
        "evaluate": FINAL_RUNS * test * attacked,
    }
    hours = sum(stages.values()) / 3600
    print(f"{model} {dataset}: {epoch:.1f} s per AT epoch, {hours:.1f} h in all", file=sys.stderr)
    return {
        "model": model,
        "dataset": dataset,
        "seconds_per_at_epoch": epoch,
        "seconds": stages,
        "hours": hours,
        "fallbacks": runtime.fallbacks,
    }


def training_seconds(network: nn.Module, runtime: Runtime, split: Split, batch: int, steps: int) -> float:
    """Of one step: crop and flip, random start, attack, update."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    step = make_at_step(network, optimizer, runtime, make_method("pgd_at", {}), ATTACK)
    passes = batches(split, batch, shuffle=True, padding=4, flip=True, channels_last=runtime.channels_last)

    def one() -> None:
        images, labels, indices = next(passes)
        step(images, labels, random_start(images, indices, ("training start", 0), ATTACK))

    for _ in range(2):  # captures, and makes kernels
        one()
    return seconds_of(lambda: [one() for _ in range(steps)], runtime) / steps


def attack_seconds(network: nn.Module, runtime: Runtime, split: Split, count: int) -> float:
    """PGD-10 on a large batch, in the precision of reported numbers."""
    craft = crafting_loop(network, runtime, runtime.evaluation_precision, ATTACK)
    (images, labels, _), *_ = batches(split.subset(torch.arange(count)), count, channels_last=True)
    craft(images, labels, images)
    return seconds_of(lambda: craft(images, labels, images), runtime)


def scan_seconds(network: nn.Module, runtime: Runtime, split: Split, count: int, names: list[str]) -> float:
    """One epoch of one module, on average, without what is done once for a module."""
    (images, labels, _), *_ = batches(split.subset(torch.arange(count)), count, channels_last=True)
    scanned = ScannedNetwork(network, images, labels, count, torch.float32, runtime)
    every = len(names) // SCANNED
    chosen = names[every // 2 :: every]
    seconds = 0.0
    for name in chosen:
        view = scanned.at(name)
        times = []
        for epochs in (1, 1, 3):  # the first makes kernels
            optimizer = partial(torch.optim.SGD, lr=1.0)
            solver = Solver("sgd", 0.1, "l2", epochs, "epoch", "continue", "worst", optimizer)
            times.append(seconds_of(lambda s=solver, v=view: criticality_of(v, (0.0, 0.0), s), runtime))
        seconds += (times[2] - times[1]) / 2
    return seconds / len(chosen)


def seconds_of(call: Callable[[], object], runtime: Runtime) -> float:
    """Wall time, the device's work included."""
    wait_for(runtime.device)
    began = time.perf_counter()
    call()
    wait_for(runtime.device)
    return time.perf_counter() - began
