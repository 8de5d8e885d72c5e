"""The last step: what a network is worth, on the test split."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from rift.attacks import Attack
from rift.config import EvaluateConfig
from rift.stages.session import Session
from rift.store import StageFolder


def evaluation(
    session: Session,
    folder: StageFolder,
    options: EvaluateConfig,
    weights: dict[str, Tensor],
    attack: Attack,
) -> dict[str, Any]:
    """Clean accuracy, and robust accuracy as the worst of several runs, in both readings.

    Args:
        session: data, machine, seed.
        folder: gets the verdict on every image as `verdicts`: `clean` (N,), `robust` (runs, N).
        options: number of runs.
        weights: a state dict.
        attack: of the test split.

    Returns:
        The accuracies, as fractions, and the number of images behind them.
    """
    folder.load_resume_point()
    test = session.dataset.test
    verdicts = session.attacked(
        session.network(weights),
        test,
        attack,
        runs=options.restarts,
        exact_runs=options.exact_runs,
        label="evaluate",
        purpose="evaluation",
    )
    folder.save(
        "verdicts",
        {"clean": verdicts.clean.to(torch.uint8), "robust": verdicts.robust.to(torch.uint8)},
    )
    for run, robust in enumerate(verdicts.robust):
        folder.add_row(
            {
                "run": run + 1,
                "clean_accuracy": verdicts.clean_accuracy,
                "robust_accuracy": robust.double().mean().item(),
            }
        )
    return {
        "clean_accuracy": verdicts.clean_accuracy,
        "robust_accuracy": verdicts.robust_accuracy,
        "robust_accuracy_per_image": verdicts.robust_accuracy_per_image,
        "num_images": len(test),
    }


def mcnemar(first: Tensor, second: Tensor) -> dict[str, float | int]:
    """Exact McNemar test of two networks on the same images.

    Args:
        first, second: (N,) verdicts, non-zero where the network is right.

    Returns:
        How many images only the one and only the other has right, and the two-sided p-value of their
        being equally likely.
    """
    first, second = first.bool(), second.bool()
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    different = only_first + only_second
    p_value = float(binomtest(only_first, different).pvalue) if different else 1.0
    return {"only_at": only_first, "only_rift": only_second, "p_value": p_value}
