"""Optimisers, schedules and weight averages, all of them timm's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from rift.errors import UserError
from rift.stage_options import MRCConfig, TrainingConfig


def make_optimizer(
    parameters: Iterable[Tensor], options: TrainingConfig | MRCConfig, stage: str
) -> torch.optim.Optimizer:
    """Any optimiser of timm by name; weight decay on every parameter, as the published AT code has it.

    Raises:
        UserError: timm knows no such optimiser, or it takes no such options.
    """
    training = isinstance(options, TrainingConfig)
    # timm's `momentum` is torch's SGD without Nesterov; the fused kernel computes the same update.
    fused = {"fused": True} if training and options.optimizer in ("sgd", "momentum") else {}
    try:
        return create_optimizer_v2(
            list(parameters),
            opt=options.optimizer,
            lr=options.lr,
            weight_decay=options.weight_decay if training else 0.0,
            momentum=options.momentum,
            filter_bias_and_bn=False,
            **fused,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise no_optimizer(options, stage, error) from error


def no_optimizer(options: TrainingConfig | MRCConfig, stage: str, error: Exception) -> UserError:
    """The sentence for an optimiser that cannot be made, or that cannot take a step."""
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return UserError(
        f"stage.{stage}.optimizer={options.optimizer} cannot be used ({reason}): take one of timm's, "
        "such as momentum or adamw."
    )


def make_schedule(optimizer: torch.optim.Optimizer, options: TrainingConfig, stage: str) -> Scheduler | None:
    """Any schedule of timm by name; `schedule.step(epoch)` sets the rate of that epoch, counted from 0.

    Raises:
        UserError: timm knows no such schedule.
    """
    if options.schedule == "constant":
        return None
    if options.schedule == "plateau":
        raise UserError(
            f"stage.{stage}.schedule=plateau needs a metric that is not measured every epoch: use multistep."
        )
    # timm looks one epoch ahead in its milestones; ours say how many epochs run at the full rate.
    milestones = [milestone + 1 for milestone in options.milestones]
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=options.schedule,
            num_epochs=max(options.epochs, 1),
            decay_milestones=milestones,
            decay_rate=options.decay_rate,
            warmup_epochs=0,
        )
    except ValueError:  # newer versions of timm say so, older ones return None
        schedule = None
    if schedule is None:
        raise UserError(
            f"stage.{stage}.schedule={options.schedule} is not known: use constant, multistep, cosine or "
            "another of timm's."
        )
    return schedule


def moving_average(network: nn.Module, decay: float) -> ModelEmaV3:
    """A copy of the network that follows it as timm's moving average does, in eval mode.

    Everything in the state dict is averaged, BatchNorm's running statistics too; counters are copied. The
    decay grows as t / (t + 10) until it reaches `decay`, so that the first weights are soon forgotten.
    """
    average = ModelEmaV3(network, decay=decay, use_warmup=True, warmup_gamma=10.0, warmup_power=1.0)
    average.requires_grad_(False)
    return average
