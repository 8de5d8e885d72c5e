"""Accuracy on other photographs of the same classes, which no corruption made: CIFAR-10.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rift.attacks.evaluation import correct
from rift.data import Split
from rift.stages.session import Session
from rift.store import StageFolder


def natural_shift(
    session: Session, folder: StageFolder, weights: dict[str, Tensor], images: Split
) -> dict[str, Any]:
    """Clean accuracy on images that were collected anew (Recht et al. 2019).

    Args:
        session: machine.
        folder: gets the verdict on every image as `verdicts`: `clean` (N,).
        weights: a state dict.
        images: the new test set.

    Returns:
        The accuracy, as a fraction, and the number of images behind it.
    """
    folder.load_resume_point()
    runtime = session.runtime
    right = correct(
        runtime.filled(session.network(weights), len(images)),
        images.to(runtime.device),
        runtime.batch_size,
        runtime.channels_last_in(torch.float32),
    )
    folder.save("verdicts", {"clean": right.to(torch.uint8)})
    accuracy = right.double().mean().item()
    folder.add_row({"run": 1, "accuracy": accuracy})
    return {"clean_accuracy": accuracy, "num_images": len(images)}
