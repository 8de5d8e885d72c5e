"""Adversarial training: the stage's fast path takes the textbook's steps; the learning rate's course."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import textbook
import torch

from rift.attacks import Attack, random_start
from rift.data import batches
from rift.methods import make_method
from rift.models import build_model
from rift.runtime import Runtime
from rift.stage_options import ATConfig
from rift.stages import Session, adversarial_training
from rift.stages.training import make_optimizer, make_schedule
from rift.store import Store

ATTACK = Attack("linf", epsilon=0.1, step_size=0.04, steps=4)
AUGMENTATION = {"padding": 1, "padding_mode": "zeros", "flip": True}
SEED = 3


def at_options(**options):
    """The paper's, but for the size."""
    defaults = {
        "epochs": 2,
        "batch_size": 32,
        "optimizer": "momentum",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "multistep",
        "milestones": [100, 105],
        "decay_rate": 0.1,
        "padding_mode": "zeros",
        "selection_split": "test",
        "select": "last",
        "evaluate_every": 100,
        "label_smoothing": 0.0,
        "average": None,
        "patience": None,
        "start_epoch": 0,
    }
    return ATConfig(**{**defaults, **options})


def make_session(digits, dtype, **runtime):
    """320 images: ten steps an epoch."""
    dataset = replace(digits, train=digits.train.subset(torch.arange(320)), test=digits.test)
    dataset = replace(dataset, test=digits.test.subset(torch.arange(20)))

    def new_network():
        torch.manual_seed(SEED)
        network = build_model(
            "resnet_small",
            num_classes=10,
            in_channels=1,
            image_size=8,
            mean=digits.mean,
            std=digits.std,
            width=8,
        )
        return network.to(dtype)

    return Session(dataset, Runtime(torch.device("cpu"), **runtime), SEED, new_network)


def by_textbook(session, options):
    """Weights and mean loss of each epoch, step by step."""
    network = session.new_network()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    )
    epoch_losses = []
    for epoch in range(options.epochs):
        for group in optimizer.param_groups:
            passed = sum(epoch >= milestone for milestone in options.milestones)
            group["lr"] = options.lr * options.decay_rate**passed
        total = 0.0
        for x, y, indices in batches(
            session.dataset.train, options.batch_size, epoch=epoch, seed=SEED, shuffle=True, **AUGMENTATION
        ):
            start = random_start(x, indices, ("training start", SEED, epoch), ATTACK)
            loss = textbook.at_step(
                network, optimizer, x, y, start, ATTACK.epsilon, ATTACK.step_size, ATTACK.steps
            )
            total += loss * len(y)
        epoch_losses.append(total / len(session.dataset.train))
    return network.state_dict(), epoch_losses


def by_stage(session, options, folder_root, attack=ATTACK):
    folder = Store(folder_root).folder("at", "test", {"test": 1})
    folder.path.mkdir(parents=True)
    folder.begin()
    adversarial_training(
        session, folder, options, make_method("pgd_at", {}), attack, replace(ATTACK, steps=1), AUGMENTATION
    )
    return folder.load("last"), [row["train_loss"] for row in folder.rows()]


def assert_states_close(found, right, **tolerance):
    assert found.keys() == right.keys()
    for name, value in right.items():
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("folded", [False, True])
def test_twenty_steps_are_the_textbooks(digits, tmp_path, folded):
    session = make_session(digits, torch.float64, fold_batchnorm=folded, channels_last=folded)
    options = at_options(milestones=[1])  # so that the rate changes on the way
    found, losses = by_stage(session, options, tmp_path)
    right, right_losses = by_textbook(session, options)
    assert found["bn1.num_batches_tracked"] == 20
    # Images and the loss are float32 in the stage; the rest is exact.
    assert_states_close(found, right, rtol=1e-4, atol=1e-6)
    assert losses == pytest.approx(right_losses, rel=1e-5)
    start = session.new_network().state_dict()
    for name in ("conv1.weight", "fc.bias"):
        assert not torch.allclose(found[name], start[name], atol=1e-3)


def test_three_steps_in_float32_are_the_textbooks(digits, tmp_path):
    """Later the two drift apart, as any two orders of summation do: a sign of a gradient is chaotic."""
    session = make_session(digits, torch.float32)
    train = session.dataset.train.subset(torch.arange(96))
    session = replace(session, dataset=replace(session.dataset, train=train))
    options = at_options(epochs=1, lr=0.01)
    found, losses = by_stage(session, options, tmp_path)
    right, right_losses = by_textbook(session, options)
    assert_states_close(found, right, rtol=1e-3, atol=1e-4)
    assert losses == pytest.approx(right_losses, rel=1e-4)


def test_crafting_in_train_mode_moves_statistics_once_a_step_only(digits, tmp_path):
    session = make_session(digits, torch.float32)
    eval_mode, _ = by_stage(session, at_options(epochs=1), tmp_path / "eval")
    train_mode, _ = by_stage(
        session, at_options(epochs=1), tmp_path / "train", replace(ATTACK, batchnorm="train")
    )
    assert eval_mode["bn1.num_batches_tracked"] == train_mode["bn1.num_batches_tracked"] == 10
    assert not torch.equal(eval_mode["fc.weight"], train_mode["fc.weight"])


def test_bfloat16_training_stays_near_float32(digits, tmp_path):
    options = at_options(epochs=1, lr=0.01)
    right, right_losses = by_stage(make_session(digits, torch.float32), options, tmp_path / "full")
    low = make_session(digits, torch.float32, precision=torch.bfloat16)
    found, losses = by_stage(low, options, tmp_path / "low")
    assert losses == pytest.approx(right_losses, rel=0.02)
    assert all(value.dtype == right[name].dtype for name, value in found.items())
    assert not torch.equal(found["fc.weight"], right["fc.weight"])


# -- optimiser and schedule --------------------------------------------------------------------------


def test_optimiser_is_sgd_with_plain_momentum_and_decay_on_everything():
    """v ← 0.9 v + g + 5e-4 θ, θ ← θ − lr v: for matrices and biases alike."""
    draw = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((3, 4), (3,), ())]
    by_hand = [copy.deepcopy(parameter.detach()) for parameter in parameters]
    velocity = [torch.zeros_like(value) for value in by_hand]
    optimizer = make_optimizer(parameters, at_options(), "at")
    for _ in range(5):
        for position, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=draw)
            gradient = parameter.grad + 5e-4 * by_hand[position]
            velocity[position] = 0.9 * velocity[position] + gradient
            by_hand[position] = by_hand[position] - 0.1 * velocity[position]
        optimizer.step()
    for parameter, right in zip(parameters, by_hand, strict=True):
        torch.testing.assert_close(parameter.detach(), right, rtol=1e-6, atol=1e-6)


def rates(options):
    """The rate of every epoch, as `Training` sets it."""
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(2))], options, "at")
    schedule = make_schedule(optimizer, options, "at")
    found = []
    for epoch in range(options.epochs):
        if schedule is not None:
            schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_papers_schedule_epoch_by_epoch():
    found = rates(at_options(epochs=110, milestones=[100, 105], decay_rate=0.1))
    # 100 epochs at the full rate, five at a tenth, five at a hundredth.
    assert found == pytest.approx([0.1] * 100 + [0.01] * 5 + [0.001] * 5, rel=1e-12)


def test_fine_tunings_schedule_epoch_by_epoch():
    found = rates(at_options(epochs=10, lr=0.001, milestones=[5]))
    assert found == pytest.approx([0.001] * 5 + [0.0001] * 5, rel=1e-12)


def test_a_constant_rate_is_constant():
    assert rates(at_options(epochs=5, schedule="constant", lr=0.3)) == [0.3] * 5


def test_cosine_begins_at_the_full_rate_and_ends_a_step_before_nothing():
    epochs = 20
    found = rates(at_options(epochs=epochs, schedule="cosine", lr=0.2))
    right = [0.1 * (1 + math.cos(math.pi * epoch / epochs)) for epoch in range(epochs)]
    assert found == pytest.approx(right, rel=1e-9)
    assert found[0] == 0.2 and 0 < found[-1] < 0.002


def test_a_rate_depends_on_the_epochs_number_alone():
    """A resumed training sets the rate of its first epoch without having been through the earlier ones."""
    for options in (at_options(epochs=110), at_options(epochs=110, schedule="cosine")):
        optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(2))], options, "at")
        schedule = make_schedule(optimizer, options, "at")
        schedule.step(103)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rates(options)[103], rel=1e-12)
