"""Step 0, adversarial training: the weights θ_AT that everything else starts from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rift.attacks import Attack, pgd, random_start
from rift.attacks.evaluation import Craft
from rift.data import batches
from rift.methods import Method
from rift.progress import measured
from rift.runtime import CraftingNetwork, Runtime, borrowed, gradient_pass, seed_everything
from rift.runtime.graphs import Pass
from rift.runtime.throughput import at_flops, forward_flops, matmul_rate
from rift.stage_options import ATConfig
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

    Every epoch is resumable: what it does depends on the weights, the optimiser's state, the seed and
    the epoch's number alone.

    Args:
        session: data, machine, seed.
        folder: gets `best` and `last` weights, a metrics row per epoch, and the held-out indices.
        options: schedule, selection split, how often robust accuracy is measured.
        method: what is minimised.
        attack: of the training images.
        selection_attack: of the selection split, one run.
        augmentation: `padding`, `padding_mode` and `flip` for `rift.data.batches`.
        initial: weights to start from; with no epochs they are θ_AT.

    Returns:
        The stage's result: the best and the last epoch's metrics.
    """
    network = session.new_network()
    if initial is not None:
        network.load_state_dict(initial)
    training = Training(
        folder, network, network.parameters(), options, "at", "robust_accuracy", session.runtime
    )
    if session.dataset.holdout is not None:
        folder.save("holdout", {"indices": session.dataset.holdout.indices})
    crafting = CraftingNetwork(network, session.runtime, session.runtime.precision)
    judging = crafting
    if session.runtime.evaluation_precision != session.runtime.precision:
        judging = CraftingNetwork(network, session.runtime, session.runtime.evaluation_precision)
    craft = crafter(network, crafting, method, attack, session.runtime)
    gradients = gradient_pass(method.loss, network, session.runtime)
    selection = session.dataset.split(options.selection_split)

    def judge() -> dict[str, float]:
        verdicts = session.attacked(
            network, selection, selection_attack, runs=1, label="at: selection", crafting=judging
        )
        return {"clean_accuracy": verdicts.clean_accuracy, "robust_accuracy": verdicts.robust_accuracy}

    for epoch in training.remaining():
        seed_everything("at", session.seed, epoch)  # for dropout and the like
        row = _epoch(session, training, craft, gradients, attack, augmentation, options.batch_size, epoch)
        if robust_accuracy_is_due(epoch, options.epochs, options.evaluate_every):
            row |= judge()
        training.end_epoch(row)
    if options.epochs == 0:
        training.best_row = training.last_row = {"epoch": 0, **judge()}
        folder.add_row(training.last_row)
    return training.finish()


def robust_accuracy_is_due(epoch: int, epochs: int, every: int) -> bool:
    """Whether robust accuracy is measured after this epoch (from 0): every few, and in the last tenth."""
    return (epoch + 1) % every == 0 or epoch >= epochs - math.ceil(epochs / 10)


def _epoch(
    session: Session,
    training: Training,
    craft: Craft,
    gradients: Pass,
    attack: Attack,
    augmentation: dict[str, Any],
    batch_size: int,
    epoch: int,
) -> dict[str, Any]:
    """One pass over the training images; nothing in it waits for the device."""
    network, runtime, train = training.network, session.runtime, session.dataset.train
    totals = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    passes = batches(
        train,
        batch_size,
        epoch=epoch,
        seed=session.seed,
        shuffle=True,
        channels_last=runtime.channels_last,
        **augmentation,
    )
    work = at_flops(forward_flops(network, train.images[:1] / 255), attack.steps)
    with measured(f"at {epoch + 1}/{training.epochs}", len(train)) as meter:
        for images, labels, indices in passes:
            start = images
            if attack.random_start:
                start = random_start(images, indices, ("training start", session.seed, epoch), attack)
            adversarial = craft(images, labels, start)
            network.train()
            loss, logits = gradients(images, adversarial, labels)
            training.optimizer.step()
            totals += torch.stack([loss * len(labels), (logits.argmax(dim=1) == labels).sum()])
            meter.advance(len(labels))
        loss_sum, correct = totals.tolist()  # the epoch's one synchronisation
        seconds, rate = meter.seconds, meter.rate
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

    def with_fixed_statistics(images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        crafting.refresh()
        return pgd(crafting, images, labels, start, attack, method.objective)

    def with_batch_statistics(images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        with borrowed(network, training=True), runtime.autocast():
            return pgd(network, images, labels, start, attack, method.objective)

    if attack.batchnorm == "train":
        return with_batch_statistics

    def craft(images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        # Asked for at each call: a network that had to be replaced has dropped its graphs.
        return crafting.captured("training", with_fixed_statistics)(images, labels, start)

    return craft
