"""Robust accuracy: equality with attacking everything every time, and no work that cannot matter."""

from __future__ import annotations

import pytest
import textbook
import torch
from torch import nn

from rift.attacks import Attack, Verdicts, random_start, robust_verdicts
from rift.attacks.evaluation import correct
from rift.data import Split, batches
from rift.runtime import CraftingNetwork, Runtime

ATTACK = Attack("linf", epsilon=0.15, step_size=0.03, steps=2)  # so weak that the start matters
RUNS = 3


@pytest.fixture
def split(digits):
    return digits.test.subset(torch.arange(150))


@pytest.fixture
def network(trained):
    """In float64, so that the way batches are cut decides no sign of a gradient."""
    return trained.double()


class Counter:
    """A network that counts the images it is shown."""

    def __init__(self, network):
        self.network, self.images = network, 0

    def __call__(self, x):
        self.images += len(x)
        return self.network(x)


@pytest.fixture
def plain(network, split):
    """(runs, N): every image attacked in every run by the textbook."""
    parts = list(batches(split, 64))
    starts = [
        [random_start(part.images, part.indices, ("evaluation start", 5, run), ATTACK) for part in parts]
        for run in range(RUNS)
    ]
    pairs = [(part.images, part.labels) for part in parts]
    return textbook.worst_of_k(network, pairs, starts, ATTACK.epsilon, ATTACK.step_size, ATTACK.steps)


def test_verdicts_are_the_textbooks_image_by_image(network, split, plain):
    found = robust_verdicts(network, network, split, ATTACK, runs=RUNS, exact_runs=True, seed=5)
    assert found.exact_runs
    assert torch.equal(found.robust, plain)
    assert torch.equal(found.clean, correct(network, split, 64))
    assert found.robust_accuracy == plain.double().mean(1).min().item()
    # The runs differ, so that worst run and worst per image are two different readings here.
    assert found.robust_accuracy_per_image < found.robust_accuracy < found.clean_accuracy < 1


def test_skipping_fooled_images_changes_no_image_that_counts(network, split, plain):
    found = robust_verdicts(network, network, split, ATTACK, runs=RUNS, exact_runs=False, seed=5)
    assert not found.exact_runs
    # In run r an image is right if it was in every run up to r.
    assert torch.equal(found.robust, plain.to(torch.uint8).cumprod(0).bool())
    assert found.robust_accuracy_per_image == plain.all(0).double().mean().item()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batch_size_and_memory_format_change_no_verdict(network, digits, batch_size, exact):
    split = digits.test.subset(torch.arange(30))
    options = {"runs": 2, "exact_runs": exact, "seed": 5}
    right = robust_verdicts(network, network, split, ATTACK, batch_size=16, **options)
    found = robust_verdicts(
        network, network, split, ATTACK, batch_size=batch_size, channels_last=True, **options
    )
    assert torch.equal(found.clean, right.clean) and torch.equal(found.robust, right.robust)


def test_an_image_has_the_same_verdict_in_any_company(network, split):
    positions = torch.tensor([140, 3, 77, 20, 21])
    options = {"runs": 2, "exact_runs": True, "seed": 5}
    whole = robust_verdicts(network, network, split, ATTACK, **options)
    part = robust_verdicts(network, network, split.subset(positions), ATTACK, **options)
    assert torch.equal(part.robust, whole.robust[:, positions])


@pytest.mark.parametrize("exact", [True, False])
def test_only_images_that_can_still_fall_are_attacked(network, split, plain, exact):
    crafting, told = Counter(network), []
    found = robust_verdicts(
        network,
        crafting,
        split,
        ATTACK,
        runs=RUNS,
        exact_runs=exact,
        seed=5,
        batch_size=64,
        advance=told.append,
    )
    right = int(found.clean.sum())
    survivors = plain.to(torch.uint8).cumprod(0).sum(1).tolist()
    attacked = [right] * RUNS if exact else [right, *survivors[:-1]]
    assert crafting.images == ATTACK.steps * sum(attacked)
    assert right < len(split) and survivors[0] < right  # or nothing could have been skipped
    assert sum(told) == RUNS * len(split)


def test_what_remains_is_packed_into_full_batches(network, digits):
    split = digits.test.subset(torch.arange(100))
    sizes = []

    def crafting(x):
        sizes.append(len(x))
        return network(x)

    found = robust_verdicts(network, crafting, split, ATTACK, runs=2, exact_runs=False, batch_size=10)
    for attacked in (found.clean, found.robust[0]):
        batches_of_run = sizes[: ATTACK.steps * -(-int(attacked.sum()) // 10)]
        sizes = sizes[len(batches_of_run) :]
        assert set(batches_of_run[: -ATTACK.steps]) <= {10}
    assert sizes == []


def test_random_starts_are_those_of_seed_and_run(network, split):
    one = robust_verdicts(network, network, split, ATTACK, runs=1, seed=5)
    assert one.exact_runs  # with one run nothing is cut short
    again = robust_verdicts(network, network, split, ATTACK, runs=RUNS, exact_runs=True, seed=5)
    assert torch.equal(one.robust[0], again.robust[0])
    assert not torch.equal(again.robust[0], again.robust[1])
    other = robust_verdicts(network, network, split, ATTACK, runs=RUNS, exact_runs=True, seed=6)
    assert not torch.equal(again.robust, other.robust)


def test_without_random_start_all_runs_are_one(network, split):
    attack = Attack("linf", 0.1, 0.05, 3, random_start=False)
    found = robust_verdicts(network, network, split, attack, runs=2, exact_runs=True)
    assert torch.equal(found.robust[0], found.robust[1])


def test_a_network_that_is_always_wrong_needs_no_attack(split):
    def wrong(x):
        return nn.functional.one_hot((split.labels[: len(x)] + 1) % 10, 10).float()

    def never(x):
        raise AssertionError("attacked")

    found = robust_verdicts(wrong, never, split, ATTACK, runs=2, exact_runs=False)
    assert found.clean_accuracy == found.robust_accuracy == found.robust_accuracy_per_image == 0


def test_the_network_judges_and_not_the_form_that_was_attacked(split):
    """Crafting may be as wrong as it likes: the verdict is the network's own, on the images it made."""

    def never_fooled(x):
        return nn.functional.one_hot(split.labels, 10).float() * 5 + x.mean() * 0

    found = robust_verdicts(
        never_fooled, lambda x: x.flatten(1)[:, :10] * 3, split, ATTACK, batch_size=len(split)
    )
    assert found.robust_accuracy == 1


def test_readings_of_verdicts():
    clean = torch.tensor([1, 1, 1, 0], dtype=torch.bool)
    robust = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    exact = Verdicts(clean, robust, exact_runs=True)
    assert exact.clean_accuracy == 0.75
    assert exact.robust_accuracy == 0.5
    assert exact.robust_accuracy_per_image == 0.25
    # Where runs were cut short, the worst run is not known and the per-image reading stands for both.
    assert Verdicts(clean, robust, exact_runs=False).robust_accuracy == 0.25


def test_the_network_and_its_attacked_form_are_left_as_found(trained, split):
    trained.train()
    trained.bn1.eval()
    trained.fc.weight.requires_grad_(False)
    modes = {name: module.training for name, module in trained.named_modules()}
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in trained.named_parameters()}
    crafting = CraftingNetwork(trained, Runtime(torch.device("cpu")), torch.float32)
    frozen = {name: value.clone() for name, value in crafting.state_dict().items()}
    robust_verdicts(crafting, crafting, split, ATTACK, runs=2)
    assert {name: module.training for name, module in trained.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
    assert all(torch.equal(value, frozen[name]) for name, value in crafting.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in trained.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in (*trained.parameters(), *crafting.parameters()))


def test_correct_is_the_argmax_of_every_image(digits):
    """On images whose mean brightness is their class."""
    labels = torch.arange(10).repeat(5)
    images = (labels * 25).to(torch.uint8)[:, None, None, None].expand(50, 1, 4, 4).contiguous()
    split = Split(images, labels.clone(), torch.arange(50))
    split.labels[7] = 0

    def reads_brightness(x):
        return -(x.mean((1, 2, 3))[:, None] * 255 / 25 - torch.arange(10)).abs()

    right = correct(reads_brightness, split, batch_size=8)
    assert right.dtype == torch.bool
    assert right.tolist() == [position != 7 for position in range(50)]


@pytest.mark.parametrize(("precision", "moved"), [(torch.float32, 0.001), (torch.bfloat16, 0.01)])
def test_low_precision_crafting_fools_as_many_images(trained, digits, precision, moved):
    """Single images may change sides; over 1438 in three runs the accuracy stays within 0.2 points."""
    attack = Attack("linf", epsilon=0.1, step_size=0.025, steps=10)
    crafting = CraftingNetwork(trained, Runtime(torch.device("cpu")), precision)
    options = {"runs": 3, "exact_runs": True}
    right = robust_verdicts(trained, trained, digits.train, attack, **options).robust.double()
    found = robust_verdicts(trained, crafting, digits.train, attack, **options).robust.double()
    assert (found != right).double().mean() <= moved
    assert abs(found.mean() - right.mean()) <= 0.002
    assert 0.5 < right.mean() < 0.95
    assert crafting._precision == precision and crafting._runtime.fallbacks == []
