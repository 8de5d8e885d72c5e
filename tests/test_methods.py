"""Every training method against its textbook form: losses, gradients, statistics, crafted images, steps."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import method_twins as twins
import pytest
import torch
import torch.nn.functional as F
from tiny_jobs import changed, same_bits

from rift.attacks import Attack, pgd, random_start
from rift.methods import make_method
from rift.methods.awp import awp, perturbed, perturbed_weights
from rift.methods.score import clip_bound
from rift.methods.types import undisturbed
from rift.models import build_model
from rift.runtime import CraftingNetwork, Runtime, gradient_pass
from rift.stages.adversarial_training import crafter

B, K = 12, 10
DIVERGENCE = {"beta": 3.0, "start_std": 0.001}
SINGLE = {"start_radius": 2.0, "step": 1.0}
LAMBDAS = (1.0, 1.5, 0.3)
OPTIONS = {
    "pgd_at": {},
    "trades": DIVERGENCE,
    "mart": DIVERGENCE,
    "score_pgd_at": {"form": "pgd_at", "clip": 0.4, "beta": 0.0, "start_std": 0.0},
    "score_trades": {"form": "trades", "clip": 0.3, **DIVERGENCE},
    "score_ddpm": {"form": "ddpm", "clip": 0.1, "beta": 4.0, "start_std": 0.0},
    "n_fgsm": SINGLE,
    "aaer": {**SINGLE, **dict(zip(("lambda1", "lambda2", "lambda3"), LAMBDAS, strict=True))},
}
TEXTBOOK = {
    "pgd_at": lambda model, x, start, adv, y: F.cross_entropy(model(adv), y),
    "trades": lambda model, x, start, adv, y: twins.trades_loss(model, x, adv, y, 3.0),
    "mart": lambda model, x, start, adv, y: twins.mart_loss(model, x, adv, y, 3.0),
    "score_pgd_at": lambda model, x, start, adv, y: twins.score_at_loss(model, adv, y, bound(0.4)),
    "score_trades": lambda model, x, start, adv, y: twins.score_trades_loss(
        model, x, adv, y, 3.0, bound(0.3)
    ),
    "score_ddpm": lambda model, x, start, adv, y: twins.score_ddpm_loss(model, x, adv, y, 4.0, bound(0.1)),
    "n_fgsm": lambda model, x, start, adv, y: F.cross_entropy(model(adv), y),
    "aaer": lambda model, x, start, adv, y: twins.aaer_loss(model, start, adv, y, LAMBDAS),
}
METHOD = pytest.mark.parametrize("name", list(OPTIONS))


def bound(clip: float) -> float:
    """The squared error of (1 − c, c/(K−1), …) to its label, written out."""
    predicted = [1 - clip] + [clip / (K - 1)] * (K - 1)
    return sum((p - q) ** 2 for p, q in zip(predicted, [1.0] + [0.0] * (K - 1), strict=True))


def method_of(name: str, **options):
    return make_method(name.partition("_")[0] if "score" in name else name, {**OPTIONS[name], **options})


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_network(dtype=torch.float64):
    """A narrow ResNet with BatchNorm in train mode, trained by a few steps so that nothing is symmetric."""
    torch.manual_seed(4)
    network = build_model(
        "resnet_small", num_classes=K, in_channels=3, image_size=8, mean=[0.4] * 3, std=[0.2] * 3, width=4
    ).to(dtype)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for seed in range(4):
        x, y = images(dtype, seed), torch.arange(B) % K
        optimizer.zero_grad()
        F.cross_entropy(network.train()(x), y).backward()
        optimizer.step()
    network.zero_grad()
    return network


def images(dtype=torch.float64, seed=0):
    return torch.rand((B, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).to(dtype)


def four_inputs(dtype=torch.float64):
    """(x, start, adversarial, labels); some adversarial examples have a smaller loss than their start."""
    x, noise = images(dtype), draw(B, 3, 8, 8, seed=1).to(dtype)
    return x, (x + 0.1 * noise).clamp(0, 1), (x - 0.1 * noise).clamp(0, 1), torch.arange(B) % K


def assert_same_gradients(found, right):
    for (name, a), b in zip(found.named_parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


# -- losses -------------------------------------------------------------------------------------------


@METHOD
def test_loss_and_gradient_on_random_logits_are_the_textbooks(name):
    """The "network" hands its input on, so clean, start and adversarial logits are free."""
    given = [3 * draw(B, K, seed=seed) for seed in range(3)]
    labels = torch.arange(B) % K
    ours, theirs = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    loss, logits = method_of(name).loss(lambda x: x, *ours, labels)
    right = TEXTBOOK[name](lambda x: x, *theirs, labels)
    torch.testing.assert_close(loss, right, rtol=1e-12, atol=1e-12)
    assert torch.equal(logits, given[2])
    loss.backward()
    right.backward()
    for a, b in zip(ours, theirs, strict=True):
        zeros = torch.zeros_like(a)
        a, b = (zeros if x.grad is None else x.grad for x in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@METHOD
def test_loss_gradients_and_statistics_of_a_network_are_the_textbooks(name):
    """In train mode the number and the order of the passes are seen in BatchNorm's statistics."""
    ours, theirs = small_network(), small_network()
    inputs = four_inputs()
    passes = gradient_pass(method_of(name).loss, ours.train(), Runtime(torch.device("cpu")))
    loss, logits = passes(*inputs)
    right = TEXTBOOK[name](theirs.train(), *inputs)
    right.backward()
    torch.testing.assert_close(loss, right.detach(), rtol=1e-10, atol=1e-12)
    assert logits.shape == (B, K)
    assert_same_gradients(ours, theirs)
    for (buffer, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=lambda m, n=buffer: f"{n}: {m}")


def test_both_kinds_of_examples_are_in_the_aaer_tests():
    network, (_, start, adversarial, labels) = small_network().train(), four_inputs()
    before, after = (F.cross_entropy(network(x), labels, reduction="none") for x in (start, adversarial))
    assert 0 < (before > after).sum() < B


def test_aaer_is_plain_cross_entropy_where_a_batch_has_one_kind_only():
    x, labels = draw(B, K), torch.arange(B) % K
    worse = x - 3 * F.one_hot(labels, K)  # every loss grows
    for start, adversarial in ((x, worse), (worse, x)):
        loss, logits = method_of("aaer").loss(lambda x: x, x, start, adversarial, labels)
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_lambda2_changes_the_loss_and_no_gradient():
    found = []
    for weight in (0.0, 9.0):
        network = small_network()
        passes = gradient_pass(
            method_of("aaer", lambda2=weight).loss, network.train(), Runtime(torch.device("cpu"))
        )
        loss, _ = passes(*four_inputs())
        found.append((loss.item(), [p.grad for p in network.parameters()]))
    assert found[0][0] != found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_trades_without_its_divergence_is_standard_training():
    network, right = small_network(), small_network()
    x, start, adversarial, labels = four_inputs()
    loss, _ = gradient_pass(
        method_of("trades", beta=0.0).loss, network.train(), Runtime(torch.device("cpu"))
    )(x, start, adversarial, labels)
    expected = F.cross_entropy(right.train()(x), labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    assert_same_gradients(network, right)


@pytest.mark.parametrize(
    ("clip", "classes", "value"), [(0.4, 10, 0.1778), (0.3, 10, 0.1), (0.3, 100, 0.0909)]
)
def test_scores_clip_constants_are_their_closed_form(clip, classes, value):
    assert clip_bound(clip, classes) == pytest.approx(value, abs=5e-5)
    probabilities = torch.full((1, classes), clip / (classes - 1), dtype=torch.float64)
    probabilities[0, 3] = 1 - clip
    # A prediction exactly at the bound costs nothing, one a little worse does.
    for worse, costs in ((0.0, False), (1e-3, True)):
        logits = probabilities.clone()
        logits[0, 3] -= worse
        logits[0, 0] += worse
        method = make_method("score", {"form": "pgd_at", "clip": clip, "beta": 0.0, "start_std": 0.0})
        loss, _ = method.loss(lambda x: x, *[logits.log()] * 3, torch.tensor([3]))
        assert (loss.item() > 1e-9) is costs


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart", "n_fgsm", "aaer"])
def test_label_smoothing_mixes_in_the_mean_over_classes(name):
    """(1 − s)·CE(y) + s·mean_k CE(k), and nothing else of the loss changes."""
    given, labels, s = [draw(B, K, seed=seed) for seed in range(3)], torch.arange(B) % K, 0.2
    plain, _ = method_of(name).loss(lambda x: x, *given, labels)
    smoothed, _ = make_method(name, OPTIONS[name], label_smoothing=s).loss(lambda x: x, *given, labels)
    logits = given[0] if name == "trades" else given[2]
    log_p = logits.log_softmax(dim=1)
    change = s * (-log_p.mean() - F.nll_loss(log_p, labels))
    torch.testing.assert_close(smoothed, plain + change)


def test_label_smoothing_of_score_softens_the_labels():
    logits, labels, s = draw(B, K), torch.arange(B) % K, 0.2
    soft = F.one_hot(labels, K) * (1 - s) + s / K
    method = make_method("score", {**OPTIONS["score_pgd_at"], "clip": 0.0}, label_smoothing=s)
    loss, _ = method.loss(lambda x: x, *[logits] * 3, labels)
    torch.testing.assert_close(loss, twins.squared(logits.softmax(dim=1), soft).mean())


# -- crafting -----------------------------------------------------------------------------------------

ATTACK = Attack("linf", epsilon=0.1, step_size=0.03, steps=5)


def distance_of(name, network, x, labels):
    """What the method's attack increases, summed over the batch, by its definition."""
    with torch.no_grad():
        clean = network(x)
    return {
        "trades": lambda logits: twins.kl(clean, logits).sum(),
        "score_pgd_at": lambda logits: twins.squared(
            logits.softmax(dim=1), twins.one_hot(labels, logits)
        ).sum(),
        "score_trades": lambda logits: twins.squared(logits.softmax(dim=1), clean.softmax(dim=1)).sum(),
        "score_ddpm": lambda logits: twins.squared(logits.softmax(dim=1), clean.softmax(dim=1)).sum(),
    }.get(name, lambda logits: F.cross_entropy(logits, labels, reduction="sum"))


@METHOD
@pytest.mark.parametrize("folded", [False, True])
def test_crafted_images_are_the_textbook_loops(name, folded):
    network = small_network(torch.float32).eval()
    runtime = Runtime(torch.device("cpu"), fold_batchnorm=folded, channels_last=folded)
    method, x, labels = method_of(name), images(torch.float32), torch.arange(B) % K
    attack = method.attack(ATTACK)
    if attack.start_std:  # nearer to the image a divergence's slope is of the size of float32's rounding
        attack = replace(attack, start_std=0.03)
    start = random_start(x, torch.arange(B), ("a",), attack)
    crafting = CraftingNetwork(network, runtime, torch.float32)
    found = crafter(network, crafting, method, attack, runtime)(x, labels, start)
    right = twins.craft(
        network,
        x,
        start,
        distance_of(name, network, x, labels),
        ATTACK.epsilon,
        ATTACK.epsilon if attack.steps == 1 else ATTACK.step_size,
        attack.steps,
        project=attack.steps > 1,
    )
    same = torch.isclose(found, right, rtol=0, atol=1e-5).double().mean()
    assert same > 0.999  # a gradient at a rounding error's distance from zero may have the other sign
    assert not torch.isclose(found, x, atol=1e-3).double().mean() > 0.5


def test_crafting_in_train_mode_compares_with_the_clean_output_of_that_mode():
    network, x, labels = small_network(torch.float32), images(torch.float32), torch.arange(B) % K
    runtime = Runtime(torch.device("cpu"))
    method = method_of("trades")
    attack = replace(method.attack(ATTACK), batchnorm="train")
    start = random_start(x, torch.arange(B), ("a",), attack)
    before = copy.deepcopy(network.state_dict())
    found = crafter(network, None, method, attack, runtime)(x, labels, start)
    assert same_bits(before, network.state_dict())
    in_train_mode = copy.deepcopy(network).train()
    distance = distance_of("trades", in_train_mode, x, labels)
    right = twins.craft(in_train_mode, x, start, distance, ATTACK.epsilon, ATTACK.step_size, ATTACK.steps)
    assert torch.isclose(found, right, rtol=0, atol=1e-5).double().mean() > 0.999


def test_the_single_step_starts_within_two_epsilon_and_stays_within_three():
    x = torch.full((64, 3, 8, 8), 0.5)
    attack = method_of("n_fgsm").attack(ATTACK)
    start = random_start(x, torch.arange(64), ("a",), attack)
    share = (start - x) / ATTACK.epsilon
    assert share.abs().max() <= 2 + 1e-5 and share.std() == pytest.approx(2 / math.sqrt(3), rel=0.02)
    found = pgd(lambda x: x.flatten(1)[:, :K], x, torch.arange(64) % K, start, attack)
    moved = found - start
    touched = moved.abs() > 0
    torch.testing.assert_close(moved[touched].abs(), torch.full_like(moved[touched], 0.1), rtol=0, atol=1e-5)
    assert (found - x).abs().max() > 2 * ATTACK.epsilon


def test_trades_starts_a_thousandth_from_the_image_and_does_not_clip():
    attack = method_of("trades").attack(replace(ATTACK, random_start=False))
    assert attack.random_start
    start = random_start(torch.zeros(64, 3, 8, 8), torch.arange(64), ("a",), attack)
    assert start.std().item() == pytest.approx(0.001, rel=0.02) and start.min() < 0
    kept = method_of("trades", start_std=0.0).attack(ATTACK)
    assert kept == ATTACK


# -- adversarial weight perturbation ------------------------------------------------------------------


def awp_of(base, gamma=0.01, warmup=0):
    options = {"base": base, "gamma": gamma, "warmup": warmup}
    return make_method("awp", options | ({} if base == "pgd_at" else DIVERGENCE))


@pytest.mark.parametrize("base", ["pgd_at", "trades", "mart"])
def test_awp_takes_the_textbooks_steps(base):
    ours, theirs = small_network().train(), small_network().train()
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    optimizers = [torch.optim.SGD(network.parameters(), **settings) for network in (ours, theirs)]
    method, inputs = awp_of(base), four_inputs()
    gradients = gradient_pass(method.loss, ours, Runtime(torch.device("cpu")))
    for _ in range(3):
        with method.around_update(ours, lambda: gradients(*inputs), 0):
            loss, _ = gradients(*inputs)
            optimizers[0].step()
        right = twins.awp_step(theirs, optimizers[1], lambda model: TEXTBOOK[base](model, *inputs), 0.01)
        assert loss.item() == pytest.approx(right, rel=1e-9)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    assert changed(small_network().state_dict(), ours.state_dict())


def test_the_perturbation_has_the_length_asked_for_and_is_undone_exactly():
    network, inputs = small_network(torch.float32).train(), four_inputs(torch.float32)
    gradient_pass(method_of("pgd_at").loss, network, Runtime(torch.device("cpu")))(*inputs)
    before = copy.deepcopy(network.state_dict())
    with perturbed(perturbed_weights(network), gamma=0.02):
        during = copy.deepcopy(network.state_dict())
    moved = changed(before, during)
    assert moved == {name for name, p in network.named_parameters() if p.dim() > 1}
    for name in moved:
        share = (during[name] - before[name]).norm() / before[name].norm()
        assert share.item() == pytest.approx(0.02, rel=1e-4)
    assert same_bits(before, network.state_dict())


def test_the_perturbation_makes_the_loss_larger_and_moves_no_statistics_of_its_own():
    network, inputs = small_network().train(), four_inputs()
    gradients = gradient_pass(method_of("pgd_at").loss, network, Runtime(torch.device("cpu")))
    plain = copy.deepcopy(network)
    at_weights, _ = gradient_pass(method_of("pgd_at").loss, plain, Runtime(torch.device("cpu")))(*inputs)
    with awp_of("pgd_at").around_update(network, lambda: gradients(*inputs), 0):
        at_worse, _ = gradients(*inputs)
    assert at_worse > at_weights
    assert network.bn1.num_batches_tracked == plain.bn1.num_batches_tracked


def test_warmup_epochs_are_the_bases():
    method = awp_of("pgd_at", warmup=2)
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    for epoch in (0, 1):
        with method.around_update(network, pytest.fail, epoch):
            assert same_bits(before, network.state_dict())
    calls = []

    def ascend():
        calls.append(1)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)

    with method.around_update(network, ascend, 2):
        assert calls and changed(before, network.state_dict())


def test_awp_leaves_its_base_alone():
    base = method_of("trades")
    around = awp(base, gamma=0.1, warmup=0)
    assert (around.loss, around.objective, around.attack) == (base.loss, base.objective, base.attack)
    assert base.around_update is undisturbed and around.passes == 2 * base.passes
