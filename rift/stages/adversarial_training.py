"""Step 0, adversarial training: the weights θ_AT that everything else starts from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rift.attacks import Attack, pgd, random_start
from rift.attacks.evaluation import Craft
from rift.data import batches
from rift.methods import Method
from rift.progress import measured
from rift.runtime import CraftingNetwork, Runtime, borrowed, distributed, gradient_pass, graphed, untuned
from rift.runtime.data_parallel import synchronised_batchnorm
from rift.runtime.throughput import at_flops, forward_flops, matmul_rate
from rift.stage_options import ATConfig
from rift.stages.collapse import collapse_notes, watch
from rift.stages.session import Session
from rift.stages.training import Training
from rift.store import StageFolder


def adversarial_training(
    session: Session,
    folder: StageFolder,
    options: ATConfig,
    method: Method,
    attack: Attack,
    selection_attack: Attack,
    augmentation: dict[str, Any],
    initial: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Trains a network against an attack; Sec. 5.1 of the paper, after Rice et al. and Pang et al.

    Every step is resumable: what it does depends on the weights, the optimiser's state, the seed, and the
    numbers of the epoch and the step alone.

    Args:
        session: data, machine, seed.
        folder: gets `best` and `last` weights, a metrics row per epoch, and the held-out indices.
        options: schedule, selection split, how often robust accuracy is measured, averaging.
        method: what is minimised.
        attack: of the training images, as it was asked for; the method may have its own.
        selection_attack: of the selection split, one run.
        augmentation: `padding`, `padding_mode` and `flip` for `rift.data.batches`.
        initial: weights to start from; with no epochs they are θ_AT.

    Returns:
        The stage's result: the best and the last epoch's metrics, of the moving average if there is one, and
        notes for whoever reads it.
    """
    attack = method.attack(attack)
    network = session.new_network()
    if initial is not None:
        network.load_state_dict(initial)
    training = Training(
        folder,
        network,
        network.parameters(),
        options,
        "at",
        "robust_accuracy",
        session.runtime,
        average=options.average if options.epochs else None,
        patience=options.patience,
        start_epoch=options.start_epoch if options.epochs else 0,
    )
    if session.dataset.holdout is not None:
        folder.save("holdout", {"indices": session.dataset.holdout.indices})
    runtime = session.runtime
    crafting = CraftingNetwork(network, runtime, runtime.precision)
    judging = crafting
    # Compiled for batches of one size, the twin for training would judge uncompiled.
    if training.judged is not network or runtime.selection_precision != runtime.precision or runtime.compile:
        judging = CraftingNetwork(training.judged, runtime, runtime.selection_precision)
    craft = crafter(network, crafting, method, attack, runtime)
    gradients = gradient_pass(method.loss, network, runtime)
    selection = session.dataset.split(options.selection_split)

    def update(images: Tensor, labels: Tensor, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        start = images
        if attack.random_start:
            start = random_start(images, indices, ("training start", session.seed, epoch), attack)
        inputs = images, start, craft(images, labels, start), labels
        network.train()
        with method.around_update(network, partial(gradients, *inputs), epoch):
            loss, logits = gradients(*inputs)
            training.optimizer.step()
        training.updated()
        return loss, logits

    def judge() -> dict[str, float]:
        verdicts = session.attacked(
            training.judged, selection, selection_attack, runs=1, label="at: selection", crafting=judging
        )
        return {"clean_accuracy": verdicts.clean_accuracy, "robust_accuracy": verdicts.robust_accuracy}

    one_image = session.dataset.train.images[:1] / 255
    with untuned():
        work = at_flops(forward_flops(network, one_image), attack.steps, method.passes)
    for epoch in training.remaining():
        training.begin_epoch("at", session.seed, epoch)  # seeds dropout and the like
        row = _epoch(session, training, update, augmentation, options.batch_size, epoch, work)
        if attack.steps == 1:
            row |= watch(session, network, crafting, selection, selection_attack, folder.rows())
        if robust_accuracy_is_due(epoch, options.epochs, options.evaluate_every):
            row |= judge()
        training.end_epoch(row)
    if options.epochs == 0:
        training.best_row = training.last_row = {"epoch": 0, **judge()}
        folder.add_row(training.last_row)
    return {**training.finish(), "notes": _notes(training, options, folder.rows())}


def _notes(training: Training, options: ATConfig, rows: list[dict[str, Any]]) -> list[str]:
    """What a reader of the result must know of the way to it."""
    notes = collapse_notes(rows)
    if options.start_epoch and options.epochs:
        notes.append(
            f"training went on after epoch {options.start_epoch} of a checkpoint, with fresh momentum"
            + ("" if options.average is None else " and a fresh average")
            + "; the best epoch is of those that followed"
        )
    if training.average is not None:
        notes.append(f"θ_AT is a moving average of the weights, decay {options.average:g}")
    if training.next_epoch < options.epochs:
        notes.append(
            f"training ended after {training.next_epoch} of {options.epochs} epochs: "
            f"{options.patience} without a better one"
        )
    return notes


def robust_accuracy_is_due(epoch: int, epochs: int, every: int) -> bool:
    """Whether robust accuracy is measured after this epoch (from 0): every few, and in the last tenth."""
    return (epoch + 1) % every == 0 or epoch >= epochs - math.ceil(epochs / 10)


def _epoch(
    session: Session,
    training: Training,
    update: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]],
    augmentation: dict[str, Any],
    batch_size: int,
    epoch: int,
    work: float,
) -> dict[str, Any]:
    """One pass over the training images, of `work` FLOP each; nothing in it waits for the device."""
    runtime, train = session.runtime, session.dataset.train
    passes = batches(
        train,
        batch_size,
        epoch=epoch,
        seed=session.seed,
        shuffle=True,
        channels_last=runtime.channels_last_in(runtime.precision),
        skip=training.steps,
        share=distributed.share(),
        **augmentation,
    )
    with measured(f"at {epoch + 1}/{training.epochs}", len(train)) as meter:
        for images, labels, indices in passes:
            with training.step(batch_size):
                loss, logits = update(images, labels, indices, epoch)
            training.end_step(loss, logits, labels)
            meter.count(len(labels) * distributed.world_size())
        loss_sum, correct = training.epoch_totals()  # the epoch's one synchronisation
        seconds = training.epoch_seconds
        rate = len(train) / max(seconds, 1e-9)
        return {
            "epoch": epoch + 1,
            "lr": training.lr,
            "train_loss": loss_sum / len(train),
            "train_robust_accuracy": correct / len(train),
            "seconds": seconds,
            "images_per_s": rate,
            "tflops": work * rate / 1e12,
            "of_matmul_rate": work * rate / matmul_rate(runtime.device, runtime.precision),
        }


def crafter(
    network: nn.Module, crafting: CraftingNetwork, method: Method, attack: Attack, runtime: Runtime
) -> Craft:
    """(images, labels, start) -> adversarial images, for the network as it is at the call."""

    def target(called: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if not method.from_clean:
            return labels
        with torch.no_grad():
            return called(images).float()

    def through(called: nn.Module, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        return pgd(called, images, target(called, images, labels), start, attack, method.objective)

    def strength(adversarial: Tensor, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        return method.objective(crafting(adversarial), target(crafting, images, labels)).mean()

    def with_fixed_statistics(images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        crafting.refresh()
        return through(crafting, images, labels, start)

    def with_batch_statistics(images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        with borrowed(network, training=True), runtime.autocast(), synchronised_batchnorm():
            return through(network, images, labels, start)

    def strength_in_train_mode(adversarial: Tensor, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        with borrowed(network, training=True):
            return method.objective(network(adversarial).float(), target(network, images, labels)).mean()

    if attack.batchnorm == "train":
        if distributed.active():
            return with_batch_statistics
        return graphed(with_batch_statistics, runtime, strength_in_train_mode, whole=True)

    def craft(images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        # Asked for at each call: a network that had to be replaced has dropped its graphs.
        return crafting.captured("training", with_fixed_statistics, strength)(images, labels, start)

    return craft
