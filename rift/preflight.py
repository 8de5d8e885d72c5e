"""What later stages will need, tried on a fresh network before any work is done.

A mistake that only the last stage would notice must not cost the first one's hundred epochs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rift.config import Config
from rift.data import Dataset
from rift.errors import UserError
from rift.models import scannable_modules
from rift.runtime import borrowed, distributed
from rift.stage_options import BY_CRITICALITY, MRCConfig, TrainingConfig
from rift.stages import choose_modules
from rift.stages.mrc_scan import check_part
from rift.stages.optimizers import make_optimizer, make_schedule, no_optimizer


def check_plan(config: Config, network: nn.Module) -> None:
    """Checks module names, optimisers and schedules of every stage that will run.

    Args:
        config: with every value within its limits.
        network: as the stages will have it; its weights do not matter.

    Raises:
        UserError: a stage would refuse its options.
    """
    stage, run = config.stage, set(config.stage.run)
    scanned = [name for name in scannable_modules(network) if stage.mrc.scans(name)]
    tuned = bool(run & {"finetune", "interpolate"})
    if not scanned and (
        run & {"mrc", "joint", "gains"} or (tuned and stage.finetune.target in BY_CRITICALITY)
    ):
        raise UserError(
            f"stage.mrc.exclude={stage.mrc.exclude} leaves no module to scan: give fewer patterns."
        )
    if tuned:
        choose_modules(stage.finetune, network, stage.mrc.scans, ranking=scanned)
    if "joint" in run and stage.joint.size > len(scanned):
        raise UserError(
            f"stage.joint.size={stage.joint.size}, but only {len(scanned)} modules are scanned: give fewer."
        )
    if "at" in run:
        _try_training(stage.at, "at")
    solvers = {"mrc": stage.mrc.solver, "joint": stage.joint.solver}
    if any(solvers[name] == "sgd" for name in solvers.keys() & run):
        _try_optimizer(stage.mrc, "mrc")
    if run & {"finetune", "gains"}:
        _try_training(stage.finetune, "finetune")


def check_data(config: Config, dataset: Dataset, network: nn.Module) -> None:
    """Checks what depends on the number and the size of the images.

    Args:
        config: with every value within its limits.
        dataset: as the stages will have it.
        network: on the data set's device; left as found.

    Raises:
        UserError: a stage would fail at its first or last batch.
    """
    run = set(config.stage.run) | ({"finetune"} if "gains" in config.stage.run else set())
    if "mrc" in run:
        check_part(config.stage.mrc, len(dataset.split(config.stage.mrc.split)))
    training = {"at": config.stage.at, "finetune": config.stage.finetune}
    for name in training.keys() & run:
        options, padding = training[name], config.dataset.padding
        if options.padding_mode == "reflect" and padding >= min(dataset.shape[1:]):
            raise UserError(
                f"stage.{name}.padding_mode=reflect cannot add dataset.padding={padding} pixels to images of "
                f"{dataset.shape[1]}×{dataset.shape[2]}: lower dataset.padding."
            )
        moving = name == "at" or config.stage.finetune.batchnorm == "train"
        last = len(dataset.train) % options.batch_size or options.batch_size
        if last < distributed.world_size():
            raise UserError(
                f"stage.{name}.batch_size={options.batch_size} leaves a last batch of {last} of the "
                f"{len(dataset.train)} training images, fewer than there are processes: take another one."
            )
        if moving and last == 1 and not _learns_from_one_image(network, dataset.train.images[:1] / 255):
            raise UserError(
                f"stage.{name}.batch_size={options.batch_size} leaves a last batch of one of the "
                f"{len(dataset.train)} training images, which BatchNorm cannot normalise here: take "
                f"stage.{name}.batch_size={_other_size(len(dataset.train), options.batch_size)}, say."
            )


def _try_training(options: TrainingConfig, stage: str) -> None:
    optimizer = _try_optimizer(options, stage)
    schedule = make_schedule(optimizer, options, stage)
    if schedule is not None:
        schedule.step(max(options.epochs - 1, 0))


def _try_optimizer(options: TrainingConfig | MRCConfig, stage: str) -> torch.optim.Optimizer:
    """Takes one step: some optimisers want what no stage gives, such as a closure."""
    weight: Tensor = nn.Parameter(torch.ones(2, 2, 1, 1))
    weight.grad = torch.ones_like(weight)
    optimizer = make_optimizer([weight], options, stage)
    try:
        optimizer.step()
    except Exception as error:  # anybody's optimiser fails in any way it likes
        raise no_optimizer(options, stage, error) from error
    return optimizer


@torch.no_grad()
def _learns_from_one_image(network: nn.Module, image: Tensor) -> bool:
    """Whether a batch of one can be normalised: on maps of one pixel it has no variance."""
    with borrowed(network, training=True):
        try:
            network(image)
        except ValueError:  # torch's, from BatchNorm
            return False
    return True


def _other_size(count: int, batch_size: int) -> int:
    """The next larger batch size whose last batch is not a single image."""
    return next(size for size in range(batch_size + 1, batch_size + count + 3) if count % size != 1)
