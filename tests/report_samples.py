"""Made-up summaries for the report's tests."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from rift.corruption_names import ALL

RESNET_BLOCKS = {"resnet_small": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


def resnet_modules(model: str) -> list[str]:
    """The scannable modules of a ResNet with basic blocks, in network order."""
    names = ["conv1"]
    for stage, blocks in enumerate(RESNET_BLOCKS[model], start=1):
        for block in range(blocks):
            names += [f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.conv2"]
            if block == 0 and stage > 1:
                names.append(f"layer{stage}.0.downsample.0")
    return [*names, "fc"]


def scan(modules: list[str], least: str, seed: int = 0) -> list[dict[str, Any]]:
    """MRC values spread over two decades, `least` with the smallest."""
    draw = random.Random(seed)
    values = {module: 0.12 * 10 ** (2 * draw.random()) for module in modules} | {least: 0.095}
    ranks = {module: rank for rank, module in enumerate(sorted(values, key=values.__getitem__), start=1)}
    return [
        {
            "module": module,
            "mrc": mrc,
            "robust_accuracy_drop": min(0.55, 0.03 + 0.045 * mrc),
            "relative_norm": 0.1,
            "rank": ranks[module],
        }
        for module, mrc in values.items()
    ]


def sweep(steps: int = 10) -> list[dict[str, float]]:
    """Clean accuracy saturates and robust accuracy bends down, as in the paper's Figure 1."""
    alphas = [i / steps for i in range(steps + 1)]
    return [
        {
            "alpha": a,
            "clean_accuracy": round(0.8146 + 0.022 * a * (1.9 - 0.9 * a), 4),
            "robust_accuracy": round(0.5363 + 0.004 * a - 0.013 * a**4, 4),
        }
        for a in alphas
    ]


def summary(**changes: Any) -> dict[str, Any]:
    """A full summary of ResNet18 on CIFAR-10; `changes` replace top-level entries, None removes one."""
    full = {
        "format": 2,
        "name": "resnet18-cifar10-pgd_at-s0",
        "key": "3f2a",
        "study": "default",
        "model": "resnet18",
        "dataset": "cifar10",
        "method": "pgd_at",
        "seed": 0,
        "protocol": "paper",
        "smoke": False,
        "attack": {
            "name": "pgd10",
            "norm": "linf",
            "epsilon": "8/255",
            "step_size": "2/255",
            "epsilon_value": 8 / 255,
            "steps": 10,
            "restarts": 3,
        },
        "target": "least_critical",
        "target_modules": ["layer2.1.conv2"],
        "alpha": 0.7,
        "at": accuracies(0.81, 0.53, 0.52),
        "rift": accuracies(0.8375, 0.5305, 0.5195),
        "paired": {
            "clean": {"only_at": 125, "only_rift": 400, "p_value": 1e-33},
            "robust": {"only_at": 60, "only_rift": 55, "p_value": 0.7091},
        },
        "mrc": scan(resnet_modules("resnet18"), "layer2.1.conv2"),
        "sweep": sweep(),
        "alpha_tolerance": 0.001,
        "differences": ["trained for 5 epochs, not 110"],
        "notes": ["the AT epoch was selected on the test set"],
        "overrides": {"stage.at.epochs": 5},
        "options": {"stage.at.epochs": 5, "stage.finetune.lr": 0.001},
        "provenance": {"command": "python -m rift", "commit": "abc123", "dirty": True, "device": "cpu"},
        "wall_seconds": {"at": 10.2, "mrc": 3.0},
    }
    return {key: value for key, value in (full | changes).items() if value is not None}


def corruptions(kind: str = "generated", delta: float = 0.01) -> dict[str, Any]:
    """Accuracy falls with severity, more for some corruptions than for others; RiFT is `delta` above."""
    versions = {
        f"{name}/{severity}": round(0.8 - 0.01 * severity * (1 + ALL.index(name) % 5), 4)
        for name in ALL
        for severity in range(1, 6)
    }
    at, rift = versions, {version: value + delta for version, value in versions.items()}
    means = {"15x5": 0.7, "15_severity5": 0.65, "18x5": 0.71, "all": 0.705}
    return {
        "kind": kind,
        "paired": True,
        "images": {"kind": kind, "constants": "cifar", "set": "CIFAR-10-C"},
        "num_images": 10_000,
        "ood": "paper15",
        "severities": [1, 2, 3, 4, 5],
        "at": {"means": means, "accuracy": at},
        "rift": {"means": {name: value + delta for name, value in means.items()}, "accuracy": rift},
    }


def interval(delta: float, half: float, verdict: str) -> dict[str, Any]:
    return {"delta": delta, "low": delta - half, "high": delta + half, "images": 10_000, "verdict": verdict}


INTERVALS = {
    "clean": interval(0.0275, 0.004, "better"),
    "robust": interval(0.0005, 0.003, "no difference seen"),
    "robust_per_image": interval(-0.0005, 0.003, "no difference seen"),
    "ood": interval(0.021, 0.004, "better"),
    "ood_beyond_clean": interval(-0.0065, 0.002, "worse"),
}


def accuracies(clean: float, robust: float, per_image: float, num_images: int = 10_000) -> dict[str, Any]:
    return {
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "robust_accuracy_per_image": per_image,
        "num_images": num_images,
    }


def write(root: Path, folder_name: str = "job", *, written: float | None = None, **changes: Any) -> Path:
    """Writes `root/folder_name/summary.json`, optionally with a file time, and returns the folder."""
    folder = root / folder_name
    folder.mkdir(parents=True)
    file = folder / "summary.json"
    file.write_text(json.dumps(summary(**changes)))
    if written is not None:
        os.utime(file, (written, written))
    return folder
