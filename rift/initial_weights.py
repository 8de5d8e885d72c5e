"""The weights that a job starts from, if it is given some: read, tried on images, named by content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rift.checkpoint import file_digest
from rift.config import Config
from rift.data import SHAPES
from rift.models import Images, check_normalisation, load_foreign_checkpoint
from rift.stages import Session

TRIED = 500  # training images on which imported weights are tried


@dataclass(frozen=True)
class InitialWeights:
    """Weights from elsewhere.

    Attributes:
        state: a state dict of the job's network, or None where there is no checkpoint.
        digest: SHA-256 of the file.
        notes: what had to be done to the checkpoint, and what it is worth.
    """

    state: dict[str, Tensor] | None = None
    digest: str | None = None
    notes: tuple[str, ...] = ()


def initial_weights(config: Config, session: Session) -> InitialWeights:
    """Reads and tries `model.checkpoint`.

    Raises:
        UserError: it cannot be read, or does not fit the network or the images.
    """
    if config.model.checkpoint is None:
        return InitialWeights()
    path = Path(config.model.checkpoint).expanduser()
    network, train = session.new_network(), session.dataset.train
    known = {name: (shape[0], classes) for name, (shape, classes) in SHAPES.items()}
    notes = load_foreign_checkpoint(network, path, Images(config.dataset.name, known))
    some = torch.linspace(0, len(train) - 1, min(TRIED, len(train))).long()
    sample = train.subset(some)
    worth = check_normalisation(network.eval(), sample.images / 255, sample.labels, f"The checkpoint {path}")
    return InitialWeights(network.state_dict(), file_digest(path), (*notes, worth))
