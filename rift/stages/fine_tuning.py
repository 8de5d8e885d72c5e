"""Step 2, fine-tuning: clean images, everything frozen but the module that robustness needs least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rift.attacks.evaluation import correct
from rift.data import Batch, Split, batches
from rift.errors import UserError, choose_from
from rift.models import scannable_modules
from rift.progress import measured
from rift.randomness import derive_seed, permutation
from rift.runtime import Runtime, batchnorm_layers, borrowed, distributed, gradient_pass
from rift.runtime.graphs import Pass
from rift.stage_options import BY_CHANCE, BY_CRITICALITY, SETS, TARGETS, FinetuneConfig
from rift.stages.folder import Folder
from rift.stages.session import Session
from rift.stages.training import Training

Passes = Callable[[int, int], Iterable[Batch]]
"""(epoch from 0, how many of its first batches are left out) -> the others; on the device."""


def choose_modules(
    options: FinetuneConfig,
    network: nn.Module,
    scans: Callable[[str], bool] = lambda name: True,
    ranking: list[str] | None = None,
    joint: list[list[str]] | None = None,
) -> list[str]:
    """The names of the modules that the target stands for, in network order.

    Args:
        options: `target` (one of `TARGETS`, or a module's exact name), `top_k`, `target_seed`.
        network: whose modules they are.
        scans: whether a module of this name is among those that the scan, and chance, choose from.
        ranking: module names, least critical first; needed for the targets that speak of criticality.
        joint: for `joint_k`, the chosen sets of 1, 2, … modules.

    Raises:
        UserError: no such module, or more modules than there are.
    """
    names, target, top_k = list(scannable_modules(network)), options.target, options.top_k
    if target == "none":
        return []
    if target == "all":
        return names
    if target == "last_layer":
        return names[-1:]
    if target in (*BY_CRITICALITY, *BY_CHANCE):
        if target in BY_CHANCE:
            ranking = _shuffled([name for name in names if scans(name)], options.target_seed)
        assert ranking is not None
        if top_k > len(ranking) and target in SETS:
            raise UserError(
                f"stage.finetune.top_k={top_k}, but only {len(ranking)} modules are scanned: give fewer."
            )
        count = top_k if target in SETS else 1
        chosen = ranking[-1:] if target == "most_critical" else ranking[:count]
        if target == "joint_k" and joint is not None:
            chosen = joint[top_k - 1]
        return [name for name in names if name in chosen]
    if target not in names:
        known = choose_from(target, [*TARGETS, *names])
        raise UserError(f"stage.finetune.target={target} is no module of this network: {known}.")
    return [target]


def _shuffled(names: list[str], seed: int) -> list[str]:
    return [names[index] for index in permutation(("target", seed), len(names))]


def fine_tuning(
    session: Session,
    folder: Folder,
    options: FinetuneConfig,
    theta_at: dict[str, Tensor],
    modules: list[str],
    augmentation: dict[str, Any],
) -> dict[str, Any]:
    """Fine-tunes the named modules of θ_AT on clean images; Sec. 3.4 and 5.1 of the paper.

    Every other parameter stays bit for bit as it was. Running statistics of BatchNorm move with
    `batchnorm=train` (what the published code does) and stay with `frozen` (what the paper says).

    Args:
        session: data, machine, seed.
        folder: gets `best` and `last` weights and a metrics row per epoch.
        options: schedule, BatchNorm mode, selection split.
        theta_at: the weights to start from.
        modules: exact names; with none, only statistics move; with all, every parameter moves.
        augmentation: `padding`, `padding_mode` and `flip` for `rift.data.batches`.

    Returns:
        The stage's result: the modules, the best and the last epoch's metrics, and how far everything outside
        the modules has moved until then (`leak`).
    """
    runtime, train = session.runtime, session.dataset.train
    network = runtime.place(session.network(theta_at))
    selection = session.dataset.split(options.selection_split)

    def passes(epoch: int, skip: int) -> Iterator[Batch]:
        return batches(
            train,
            options.batch_size,
            epoch=epoch,
            seed=derive_seed("finetune", session.seed),  # not AT's crops over again
            shuffle=True,
            channels_last=runtime.channels_last_in(runtime.precision),
            skip=skip,
            share=distributed.share(),
            **augmentation,
        )

    everything = len(modules) == len(scannable_modules(network))
    moving = [network] if everything else [network.get_submodule(name) for name in modules]
    judge = clean_accuracy_on(selection, network, runtime)
    result = tune(network, folder, options, moving, passes, len(train), judge, runtime, session.seed)
    tuned = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    leaks = {epoch: leak(theta_at, folder.load(epoch), tuned) for epoch in ("best", "last")}
    return {"modules": modules, **result, "leak": leaks}


def clean_accuracy_on(selection: Split, network: nn.Module, runtime: Runtime) -> Callable[[], float]:
    """What an epoch is judged by: the network's clean accuracy on a split, in eval mode."""
    judged = runtime.filled(network, len(selection))

    def judge() -> float:
        with borrowed(network, training=False):
            channels_last = runtime.channels_last_in(runtime.precision)
            return correct(judged, selection, runtime.batch_size, channels_last).double().mean().item()

    return judge


def tune(
    network: nn.Module,
    folder: Folder,
    options: FinetuneConfig,
    moving: list[nn.Module],
    passes: Passes,
    count: int | None,
    judge: Callable[[], float] | None,
    runtime: Runtime,
    seed: int,
) -> dict[str, Any]:
    """The training itself, on whatever batches: the stage's, or anybody's.

    Args:
        network: at the weights to start from, on the device; trained in place.
        folder: gets `best` and `last` weights and a metrics row per epoch.
        options: schedule, BatchNorm mode.
        moving: modules of the network whose parameters move; with none, only statistics do.
        passes: makes an epoch's batches; of several processes, this one's share of them.
        count: images in a pass; None where only the pass tells.
        judge: accuracy by which an epoch is the best; without it `best` is the last.
        runtime: precision, memory format.
        seed: of dropout and the like.

    Returns:
        `best` and `last` epoch's metrics.
    """
    network.requires_grad_(False)
    parameters = [parameter.requires_grad_() for module in moving for parameter in module.parameters()]
    training = Training(folder, network, parameters, options, "finetune", "clean_accuracy", runtime)
    gradients = gradient_pass(_loss, network, runtime)
    for epoch in training.remaining():
        training.begin_epoch("finetune", seed, epoch)
        row = _epoch(training, gradients, options, passes(epoch, training.steps), count, epoch)
        training.end_epoch(row if judge is None else row | {"clean_accuracy": judge()})
    return training.finish()


def leak(before: dict[str, Tensor], after: dict[str, Tensor], tuned: set[str]) -> dict[str, float | int]:
    """How far what was not to be fine-tuned has moved.

    Args:
        before, after: state dicts.
        tuned: names of the parameters that were.

    Returns:
        ‖Δθ‖₂ over all other parameters (`parameters`, of `num_parameters` numbers), which should be 0, and
        over BatchNorm's running statistics (`statistics`), which move with `batchnorm=train`.
    """
    outside = {name: value for name, value in before.items() if name not in tuned}
    moved = {
        name: torch.linalg.vector_norm(after[name].to(value.device).double() - value.double()).item()
        for name, value in outside.items()
    }
    running = [name for name in outside if name.endswith(("running_mean", "running_var"))]
    fixed = [name for name in outside if name not in running and not name.endswith("num_batches_tracked")]
    return {
        "parameters": math.hypot(*(moved[name] for name in fixed)),
        "num_parameters": sum(outside[name].numel() for name in fixed),
        "statistics": math.hypot(*(moved[name] for name in running)),
    }


def _loss(network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = network(images)
    return F.cross_entropy(logits, labels), logits


def _epoch(
    training: Training,
    gradients: Pass,
    options: FinetuneConfig,
    passes: Iterable[Batch],
    count: int | None,
    epoch: int,
) -> dict[str, Any]:
    """One pass over the clean training images."""
    network, seen = training.network, 0
    network.train()
    if options.batchnorm == "frozen":
        for layer in batchnorm_layers(network):
            layer.eval()
    with measured(f"finetune {epoch + 1}/{training.epochs}", count or 0) as meter:
        for images, labels, _ in passes:
            with training.step(options.batch_size):
                loss, logits = gradients(images, labels)
                if training.optimizer is not None:
                    training.optimizer.step()
                    training.updated()
            training.end_step(loss, logits, labels)
            meter.count(len(labels) * distributed.world_size())
            seen += len(labels)
        loss_sum, right = training.epoch_totals()
        seconds, count = training.epoch_seconds, seen if count is None else count
        return {
            "epoch": epoch + 1,
            "lr": training.lr,
            "train_loss": loss_sum / count,
            "train_clean_accuracy": right / count,
            "seconds": seconds,
            "images_per_s": count / max(seconds, 1e-9),
        }
