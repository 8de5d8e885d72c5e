"""PGD: closed forms on linear networks, equality with the textbook, ball and box, random starts."""

from __future__ import annotations

import math

import pytest
import textbook
import torch
import torch.nn.functional as F
from torch import nn

from rift.attacks import Attack, pgd, random_start, summed_cross_entropy
from rift.attacks.pgd import cross_entropy
from rift.models import build_model
from rift.runtime import CraftingNetwork, Runtime

SHAPE = (1, 4, 4)
EPSILON = 0.05


class Linear(nn.Module):
    """Two classes: logits (0, w·x + b)."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = torch.randn(math.prod(SHAPE), generator=generator, dtype=torch.float64) * 0.3
        self.b = -0.5 * self.w.sum()  # zero at mid-grey

    def forward(self, x):
        score = x.flatten(1).double() @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], dim=1)

    def gap(self, x, labels):
        """The true class's logit less the other's."""
        logits = self(x)
        return (logits * F.one_hot(labels, 2) - logits * (1 - F.one_hot(labels, 2))).sum(1)

    def away(self, labels):
        """Per image, the direction in which the gap shrinks."""
        return torch.where(labels == 1, -1.0, 1.0)[:, None] * self.w


def random_images(n, low=0.0, high=1.0, shape=SHAPE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, *shape, generator=generator)


def noisy_network(seed=0, channels=3):
    """An untrained network whose loss is rugged at large steps."""
    torch.manual_seed(seed)
    network = build_model(
        "resnet_small",
        num_classes=10,
        in_channels=channels,
        image_size=8,
        mean=[0.5] * channels,
        std=[0.25] * channels,
        width=8,
    )
    return network.eval()


def norms(delta, norm):
    return torch.linalg.vector_norm(delta.flatten(1), ord=2 if norm == "l2" else math.inf, dim=1)


# -- closed forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("random", [False, True])
def test_linf_shrinks_the_gap_of_a_linear_network_by_epsilon_times_the_l1_norm(keep, random):
    network, images = Linear(), random_images(32, 0.2, 0.8)
    labels = torch.arange(32) % 2
    attack = Attack("linf", EPSILON, step_size=EPSILON / 4, steps=10, random_start=random, keep=keep)
    start = random_start(images, torch.arange(32), ("a",), attack) if random else images
    adversarial = pgd(network, images, labels, start, attack)
    shrunk = network.gap(images, labels) - network.gap(adversarial, labels)
    right = EPSILON * network.w.abs().sum()
    torch.testing.assert_close(shrunk, right.expand(32), rtol=1e-5, atol=0)
    # The corner of the ball itself, not only a point of equal loss.
    corner = images + EPSILON * network.away(labels).sign().view(images.shape).float()
    torch.testing.assert_close(adversarial, corner, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("random", "steps"), [(False, 10), (True, 60)])
def test_l2_shrinks_the_gap_of_a_linear_network_by_epsilon_times_the_l2_norm(random, steps):
    network, images = Linear(), random_images(32, 0.2, 0.8)
    labels = torch.arange(32) % 2
    attack = Attack("l2", EPSILON, step_size=EPSILON / 2, steps=steps, random_start=random)
    start = random_start(images, torch.arange(32), ("a",), attack) if random else images
    adversarial = pgd(network, images, labels, start, attack)
    shrunk = network.gap(images, labels) - network.gap(adversarial, labels)
    torch.testing.assert_close(shrunk, (EPSILON * network.w.norm()).expand(32), rtol=1e-5, atol=0)
    nearest = network.away(labels) / network.w.norm()
    torch.testing.assert_close(
        (adversarial - images).flatten(1) / EPSILON, nearest.float(), rtol=0, atol=1e-4
    )


def test_linf_reaches_the_corner_of_ball_and_box_together():
    network = Linear()
    images = random_images(64).mul(3).sub(1).clamp(0, 1)  # two thirds of the pixels are black or white
    labels = torch.arange(64) % 2
    adversarial = pgd(network, images, labels, images, Attack("linf", 0.3, 0.1, steps=5))
    corner = (images + 0.3 * network.away(labels).sign().view(images.shape).float()).clamp(0, 1)
    torch.testing.assert_close(adversarial, corner, rtol=0, atol=1e-6)


def test_steps_too_short_for_the_radius_go_as_far_as_they_can():
    network, images, labels = Linear(), random_images(8, 0.2, 0.8), torch.zeros(8, dtype=torch.int64)
    for norm, size in (("linf", network.w.abs().sum()), ("l2", network.w.norm())):
        adversarial = pgd(network, images, labels, images, Attack(norm, 1.0, step_size=0.01, steps=7))
        shrunk = network.gap(images, labels) - network.gap(adversarial, labels)
        torch.testing.assert_close(shrunk, (0.07 * size).expand(8), rtol=1e-5, atol=0)


def test_fgsm_is_one_step_of_full_length_from_the_image():
    network, images = noisy_network(), random_images(16, shape=(3, 8, 8))
    labels = torch.arange(16) % 10
    attack = Attack("linf", EPSILON, step_size=EPSILON, steps=1, random_start=False)
    x = images.clone().requires_grad_()
    F.cross_entropy(network(x), labels, reduction="sum").backward()
    right = (images + EPSILON * x.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(pgd(network, images, labels, images, attack), right, rtol=0, atol=1e-7)


def test_a_flat_loss_leaves_the_start_where_it_is():
    images, labels = random_images(4), torch.zeros(4, dtype=torch.int64)

    def flat(x):
        return x.flatten(1)[:, :2] * 0.0

    for norm in ("linf", "l2"):
        adversarial = pgd(flat, images, labels, images, Attack(norm, 0.5, 0.1, steps=3))
        torch.testing.assert_close(adversarial, images, rtol=0, atol=1e-7)


def test_the_objective_is_what_is_increased():
    network, images, labels = Linear(), random_images(8, 0.2, 0.8), torch.arange(8) % 2
    attack = Attack("linf", EPSILON, EPSILON / 2, steps=4)
    towards = pgd(
        network, images, labels, images, attack, objective=lambda logits, y: -cross_entropy(logits, y)
    )
    grown = network.gap(towards, labels) - network.gap(images, labels)
    torch.testing.assert_close(grown, (EPSILON * network.w.abs().sum()).expand(8), rtol=1e-5, atol=0)


def test_losses_are_those_of_each_image_and_their_sum():
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    by_hand = logits.exp().sum(1).log() - logits[torch.arange(6), labels]
    torch.testing.assert_close(cross_entropy(logits, labels), by_hand)
    torch.testing.assert_close(summed_cross_entropy(logits, labels), by_hand.sum())


# -- ball and box ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_case_leaves_the_ball_or_the_box(norm, keep):
    draw = torch.Generator().manual_seed(3)
    networks = [noisy_network(seed) for seed in range(3)]
    moved = 0
    for case in range(25):
        # Pixels at, near and beyond both edges of the box; radii from nothing to more than the box.
        images = (torch.rand(6, 3, 8, 8, generator=draw) * 1.5 - 0.25).clamp(0, 1)
        images[0], images[1] = 0.0, 1.0
        epsilon, step = (torch.rand(2, generator=draw) ** 2 * torch.tensor([2.0, 1.0])).tolist()
        epsilon = 0.0 if case == 0 else epsilon
        attack = Attack(norm, epsilon, step, steps=1 + case % 4, keep=keep)
        labels = torch.randint(10, (6,), generator=draw)
        start = random_start(images, torch.arange(6), ("a", case), attack)
        adversarial = pgd(networks[case % 3], images, labels, start, attack)
        for x in (start, adversarial):
            assert x.min() >= 0 and x.max() <= 1
            assert norms(x - images, norm).max() <= epsilon * (1 + 1e-5) + 1e-7
        moved += (adversarial != start).any().item()
    assert moved >= 20


# -- equality with the textbook ----------------------------------------------------------------------


def test_equals_the_textbook_bit_for_bit_where_pixels_add_exactly(trained, digits):
    # On a grid of 1/1024 with radius and step on it, x + (start - x) and its like round nowhere; a batch of
    # 64 makes the textbook's mean an exact power of two of our sum.
    images = (digits.test.images[:64].float() * 4 / 1024).clamp(0, 1)
    labels = digits.test.labels[:64]
    epsilon, step, steps = 96 / 1024, 24 / 1024, 10
    attack = Attack("linf", epsilon, step, steps)
    start = (random_start(images, torch.arange(64), ("a",), attack) * 1024).round() / 1024
    right = textbook.pgd(trained, images, labels, start, epsilon, step, steps)
    found = pgd(trained, images, labels, start, attack)
    assert torch.equal(found, right)
    assert (found != images).float().mean() > 0.7  # black pixels cannot go down


@pytest.mark.parametrize("folded", [False, True])
def test_equals_the_textbook_on_real_pixels_but_for_signs_of_vanishing_gradients(trained, digits, folded):
    images, labels = digits.test.images[:200].float() / 255, digits.test.labels[:200]
    attack = Attack("linf", 0.1, 0.025, 10)
    start = random_start(images, torch.arange(200), ("a",), attack)
    right = textbook.pgd(trained, images, labels, start, 0.1, 0.025, 10)
    runtime = Runtime(torch.device("cpu"), fold_batchnorm=folded)
    found = pgd(CraftingNetwork(trained, runtime, torch.float32), images, labels, start, attack)
    different = (found - right).abs() > 1e-6
    assert different.float().mean() < 2e-3
    with torch.no_grad():
        losses = [F.cross_entropy(trained(x), labels).item() for x in (images, right, found)]
    assert losses[0] < losses[1]
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)


def test_batch_size_and_order_do_not_matter(trained, digits):
    trained.double()
    images, labels = digits.test.images[:60].double() / 255, digits.test.labels[:60]
    attack, indices = Attack("linf", 0.1, 0.025, 5), torch.arange(60)

    def attacked(positions):
        x = images[positions]
        return pgd(trained, x, labels[positions], random_start(x, indices[positions], ("a",), attack), attack)

    together = attacked(indices)
    parts = torch.cat([attacked(part) for part in indices.split(7)])
    turned = attacked(indices.flip(0)).flip(0)
    torch.testing.assert_close(parts, together, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-12)


# -- which iterate is kept ---------------------------------------------------------------------------


class Recorder:
    """A network that remembers what it was shown."""

    def __init__(self, network):
        self.network, self.seen = network, []

    def __call__(self, x):
        self.seen.append(x.detach().clone())
        return self.network(x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_best_is_the_iterate_of_highest_loss_of_each_image(norm):
    network = noisy_network()
    images, labels = random_images(32, shape=(3, 8, 8)), torch.arange(32) % 10
    # Steps as long as the ball is wide overshoot, so that the last iterate is often not the best.
    attack = Attack(norm, 0.3, step_size=0.3, steps=6, keep="best")
    start = random_start(images, torch.arange(32), ("a",), attack)
    recorder = Recorder(network)
    best = pgd(recorder, images, labels, start, attack)
    last = pgd(network, images, labels, start, Attack(norm, 0.3, 0.3, 6, keep="last"))

    assert len(recorder.seen) == 7  # six for gradients, and the last iterate is scored too
    assert torch.equal(recorder.seen[0], start)
    assert torch.equal(recorder.seen[-1], last)
    with torch.no_grad():
        losses = torch.stack([cross_entropy(network(x), labels) for x in recorder.seen])
        of_best = cross_entropy(network(best), labels)
    torch.testing.assert_close(of_best, losses.max(0).values, rtol=1e-6, atol=1e-6)
    winners = losses.argmax(0)
    assert torch.equal(best, torch.stack(recorder.seen)[winners, torch.arange(32)])
    assert (winners == 6).any() and (winners != 6).any()  # or the test would show nothing


def test_last_evaluates_the_network_once_a_step():
    recorder = Recorder(noisy_network())
    images, labels = random_images(4, shape=(3, 8, 8)), torch.arange(4)
    pgd(recorder, images, labels, images, Attack("linf", 0.1, 0.05, steps=5, keep="last"))
    assert len(recorder.seen) == 5


def test_inputs_are_not_written_to_and_carry_no_graph():
    network, images = noisy_network(), random_images(4, shape=(3, 8, 8))
    labels, attack = torch.arange(4), Attack("linf", 0.1, 0.05, steps=2, keep="best")
    start = random_start(images, torch.arange(4), ("a",), attack)
    copies = images.clone(), start.clone()
    with torch.no_grad():  # the attack needs gradients wherever it is called
        adversarial = pgd(network, images, labels, start, attack)
    assert torch.equal(images, copies[0]) and torch.equal(start, copies[1])
    assert not (images.requires_grad or start.requires_grad or adversarial.requires_grad)
    assert (adversarial != start).any()


# -- random starts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_depends_on_key_and_index_alone(norm):
    attack, images = Attack(norm, 0.1, 0.1, 1), random_images(40, shape=(3, 5, 5))
    indices = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:40]
    together = random_start(images, indices, ("start", 0, 0), attack)
    alone = torch.cat(
        [random_start(images[i : i + 1], indices[i : i + 1], ("start", 0, 0), attack) for i in range(40)]
    )
    in_other_format = random_start(
        images.to(memory_format=torch.channels_last), indices, ("start", 0, 0), attack
    )
    rounding = 0 if norm == "linf" else 1e-6  # of the cosines and logarithms of normal numbers
    torch.testing.assert_close(together, alone, rtol=0, atol=rounding)
    torch.testing.assert_close(together, in_other_format, rtol=0, atol=rounding)
    assert not torch.equal(together, random_start(images, indices, ("start", 0, 1), attack))
    assert not torch.equal(together, random_start(images, indices + 1, ("start", 0, 0), attack))


def test_linf_starts_are_uniform_in_the_ball():
    images = torch.full((500, 1, 8, 8), 0.5)
    attack = Attack("linf", 0.25, 0.1, 1)
    share = ((random_start(images, torch.arange(500), ("a",), attack) - images) / 0.25).double().flatten()
    n = len(share)
    assert share.abs().max() <= 1 and share.max() > 0.999 and share.min() < -0.999
    # Uniform on [-1, 1]: variance 1/3; standard errors of mean and mean square are √(1/3n) and √(4/45n).
    assert abs(share.mean().item()) < 4 * math.sqrt(1 / 3 / n)
    assert abs((share**2).mean().item() - 1 / 3) < 4 * math.sqrt(4 / 45 / n)


def test_l2_starts_are_uniform_in_the_ball():
    shape, n, epsilon = (1, 2, 2), 20_000, 0.25
    images = torch.full((n, *shape), 0.5)
    delta = random_start(images, torch.arange(n), ("a",), Attack("l2", epsilon, 0.1, 1)) - images
    delta = delta.flatten(1).double()
    radius = delta.norm(dim=1) / epsilon
    assert radius.max() <= 1 + 1e-5
    # In d dimensions (radius/ε)^d is uniform on [0, 1]: Kolmogorov–Smirnov at the 0.1 % level.
    level = (radius**4).sort().values
    steps = torch.arange(n + 1) / n
    distance = torch.maximum((level - steps[:-1]).abs(), (level - steps[1:]).abs()).max().item()
    assert distance < 1.95 / math.sqrt(n)
    # Directions have no preference: mean 0 and covariance 1/d.
    direction = delta / delta.norm(dim=1, keepdim=True)
    assert direction.mean(0).abs().max() < 4 * math.sqrt(1 / 4 / n)
    torch.testing.assert_close(direction.T @ direction / n, torch.eye(4).double() / 4, rtol=0, atol=0.01)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_stay_inside_the_box(norm):
    images = random_images(50).round()
    start = random_start(images, torch.arange(50), ("a",), Attack(norm, 0.5, 0.1, 1))
    assert start.min() >= 0 and start.max() <= 1
    assert norms(start - images, norm).max() <= 0.5 * (1 + 1e-6)
    assert (start != images).float().mean() > 0.3
