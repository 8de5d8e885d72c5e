"""The last step: what a network is worth, on the test split."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rift.attacks import Attack
from rift.stage_options import EvaluateConfig
from rift.stages.pauses import Pauses
from rift.stages.session import Session
from rift.store import StageFolder


def evaluation(
    session: Session,
    folder: StageFolder,
    options: EvaluateConfig,
    weights: dict[str, Tensor],
    attack: Attack,
) -> dict[str, Any]:
    """Clean accuracy, and robust accuracy as the worst of several runs, in both readings. Resumable.

    Args:
        session: data, machine, seed.
        folder: gets the verdict on every image as `verdicts`: `clean` (N,), `robust` (runs, N).
        options: number of runs.
        weights: a state dict.
        attack: of the test split.

    Returns:
        The accuracies, as fractions, and the number of images behind them.
    """
    point = folder.load_resume_point(session.runtime.device)
    pauses, test = Pauses(folder, session.runtime), session.dataset.test
    verdicts = session.attacked(
        session.network(weights),
        test,
        attack,
        runs=options.restarts,
        exact_runs=options.exact_runs,
        label="evaluate",
        purpose="evaluation",
        begun=None if point is None else point[0]["known"],
        pause=lambda known: pauses.reached(lambda: ({"known": known}, {})),
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
