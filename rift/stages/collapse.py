"""Catastrophic overfitting of single-step training: robust to its own step, and to no other, overnight.

Wong et al. 2020: within an epoch PGD accuracy can fall to nothing while the training accuracy rises.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rift.attacks import Attack
from rift.data import Split
from rift.runtime import CraftingNetwork
from rift.stages.session import Session

log = logging.getLogger(__name__)

WATCHED = 300  # images: a standard error of at most 2.9 points
COLUMN = "watched_robust_accuracy"


def watch(
    session: Session,
    network: nn.Module,
    crafting: CraftingNetwork,
    selection: Split,
    attack: Attack,
    rows: Sequence[dict[str, Any]],
) -> dict[str, float]:
    """Attacks a few hundred selection images, and says at once if the network has collapsed.

    Args:
        session: how to attack.
        network: in training, not its average; left as found.
        crafting: its form for attacks; brought up to date.
        selection: `WATCHED` images of it, evenly spread, are attacked.
        attack: the threat model; one of a single step is replaced by PGD-10, since the network may be robust
            to just that.
        rows: the metrics of the epochs before.

    Returns:
        The column for this epoch's metrics.
    """
    if attack.steps == 1:
        attack = replace(attack, steps=10, step_size=attack.epsilon / 4, random_start=True)
    some = torch.linspace(0, len(selection) - 1, min(WATCHED, len(selection))).long()
    verdicts = session.attacked(
        network, selection.subset(some), attack, runs=1, label="at: watch", crafting=crafting
    )
    accuracies = [row[COLUMN] for row in rows] + [verdicts.robust_accuracy]
    if collapsed(accuracies):
        log.warning(
            "catastrophic overfitting: robust accuracy on %d selection images fell to %.1f %% after %.1f %%; "
            "a smaller budget, method=aaer or more steps (method=pgd_at) avoid it",
            len(some),
            100 * accuracies[-1],
            100 * max(accuracies),
        )
    return {COLUMN: verdicts.robust_accuracy}


def collapsed(accuracies: Sequence[float]) -> bool:
    """Whether the last of these robust accuracies is under half of an earlier one, and ten points lower."""
    best = max(accuracies)
    return accuracies[-1] < best / 2 and accuracies[-1] <= best - 0.1


def collapse_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence on the epochs after which the network had collapsed, if there were any."""
    watched = [row for row in rows if COLUMN in row]
    accuracies = [row[COLUMN] for row in watched]
    epochs = [str(row["epoch"]) for n, row in enumerate(watched, 1) if collapsed(accuracies[:n])]
    return [f"catastrophic overfitting after epoch {', '.join(epochs)}"] if epochs else []
