"""Module robust criticality: closed forms, the textbook's Algorithm 1, the ball, the activation cache."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import pytest
import textbook
import torch
import torch.nn.functional as F
from torch import nn

from rift.attacks import Attack, pgd, random_start
from rift.criticality import Solver, module_robust_criticality, norm_of, project, robust_loss
from rift.data import batches
from rift.models import scannable_modules
from rift.runtime import Runtime
from rift.runtime.activations import ActivationCache
from rift.runtime.suffix import FrozenGraph
from rift.stage_options import MRCConfig
from rift.stages.mrc_scan import make_solver

RUNTIME = Runtime(torch.device("cpu"))


def sgd_solver(**options):
    """The paper's solver, as the configuration makes it."""
    defaults = {
        "solver": "sgd",
        "split": "train",
        "max_images": None,
        "epsilon_w": 0.1,
        "norm": "l2",
        "epochs": 10,
        "batch_size": 64,
        "optimizer": "momentum",
        "lr": 1.0,
        "momentum": 0.0,
        "project": "epoch",
        "on_violation": "stop",
        "score": "last",
        "precision": "float32",
        "exclude": [],
    }
    return make_solver(MRCConfig(**{**defaults, **options}))


def projected_solver(**options):
    return sgd_solver(solver="projected", **options)


def passes_at(graph, name, images, labels):
    """The network cut at a module, and what makes passes in batches of 64 from there."""
    cache = ActivationCache(graph, images, labels, 64, limit_mib=100)
    cut = graph.cut(name)
    cache.enter(cut)
    assert cache.cached == 1
    return cut, cache.passes


def search(solver, logits, weight, pairs):
    """MRC over fixed batches of (boundary, labels)."""
    baseline = robust_loss(logits, weight, pairs)
    return module_robust_criticality(logits, weight, lambda: iter(pairs), baseline, solver)


# -- closed forms on one linear layer and one image --------------------------------------------------
#
# With two classes the loss is softplus(−gap), gap = (w_y − w_o)·x. A perturbation (Δ_y, Δ_o) changes the gap
# by (Δ_y − Δ_o)·x, which over ‖Δ‖₂ ≤ r is at least −√2 r ‖x‖₂, and over ‖Δ‖∞ ≤ r at least −2 r ‖x‖₁.


class OneImage:
    def __init__(self, norm, epsilon_w=0.1, label=0):
        draw = torch.Generator().manual_seed(4)
        self.x = torch.rand(1, 20, generator=draw, dtype=torch.float64) + 0.5
        self.weight = torch.randn(2, 20, generator=draw, dtype=torch.float64)
        self.labels = torch.tensor([label])
        # The gap is put just above zero, so that the worst perturbation fools the network.
        gap = ((self.weight[label] - self.weight[1 - label]) @ self.x[0]) / self.x.norm() ** 2
        self.weight[label] -= (gap - 0.01) * self.x[0]
        self.gap = ((self.weight[label] - self.weight[1 - label]) @ self.x[0]).item()
        length = norm_of(self.weight, norm).item()
        reach = math.sqrt(2) * self.x.norm() if norm == "l2" else 2 * self.x.abs().sum()
        self.change = epsilon_w * length * reach.item()

    def logits(self, weight, x):
        return x @ weight.T

    @property
    def mrc(self):
        return math.log1p(math.exp(-(self.gap - self.change))) - math.log1p(math.exp(-self.gap))


SOLVERS = {
    "sgd": sgd_solver(lr=100.0),
    "sgd, every step": sgd_solver(lr=100.0, project="step", on_violation="continue"),
    "sgd, worst": sgd_solver(lr=100.0, on_violation="continue", score="worst"),
    "projected": projected_solver(),
}


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_the_worst_perturbation_of_a_linear_layer(name, norm, label):
    case = OneImage(norm, label=label)
    assert 0 < case.gap < case.change
    solver = replace(SOLVERS[name], norm=norm)
    found = search(solver, case.logits, case.weight, [((case.x,), case.labels)])
    assert found.mrc == pytest.approx(case.mrc, rel=1e-5)
    assert found.relative_norm == pytest.approx(0.1, rel=1e-9)
    assert found.robust_accuracy_drop == 1.0
    assert found.farthest > 0.1
    assert found.epochs == (1 if name == "sgd" else 10)


@pytest.mark.parametrize("epsilon_w", [0.01, 0.05, 0.5])
def test_the_radius_is_a_share_of_the_weights_norm(epsilon_w):
    case = OneImage("l2", epsilon_w)
    solver = replace(SOLVERS["projected"], epsilon_w=epsilon_w)
    found = search(solver, case.logits, case.weight, [((case.x,), case.labels)])
    assert found.mrc == pytest.approx(case.mrc, rel=1e-5)
    assert found.relative_norm == pytest.approx(epsilon_w, rel=1e-9)


@pytest.mark.parametrize("solver", [sgd_solver(lr=100.0), projected_solver()])
def test_many_images_of_one_direction_have_the_same_worst_perturbation(solver):
    case = OneImage("l2")
    pairs = [((case.x.repeat(n, 1),), case.labels.repeat(n)) for n in (3, 3, 2)]
    found = search(solver, case.logits, case.weight, pairs)
    assert found.mrc == pytest.approx(case.mrc, rel=1e-4)
    assert found.robust_accuracy_drop == 1.0


def test_ascent_that_never_reaches_the_ball_is_plain_gradient_ascent():
    case, lr, epochs = OneImage("l2"), 1e-3, 7
    found = search(sgd_solver(lr=lr, epochs=epochs), case.logits, case.weight, [((case.x,), case.labels)])
    # Each step moves the two rows by ∓ lr σ(−gap) x, and so the gap by −2 lr σ(−gap) ‖x‖².
    gap, moved, squared = case.gap, 0.0, (case.x.norm() ** 2).item()
    for _ in range(epochs):
        step = lr / (1 + math.exp(gap))
        gap, moved = gap - 2 * step * squared, moved + math.sqrt(2 * squared) * step
    right = math.log1p(math.exp(-gap)) - math.log1p(math.exp(-case.gap))
    assert found.mrc == pytest.approx(right, rel=1e-4)
    assert found.relative_norm == pytest.approx(moved / case.weight.norm().item(), rel=1e-6)
    assert found.farthest == pytest.approx(found.relative_norm, rel=1e-9)
    assert found.epochs == epochs


def test_a_weight_of_zeros_has_no_ball():
    weight = torch.zeros(2, 3, dtype=torch.float64)
    pairs = [((torch.ones(1, 3, dtype=torch.float64),), torch.tensor([0]))]
    for solver in (sgd_solver(), projected_solver()):
        found = search(solver, lambda w, x: x @ w.T, weight, pairs)
        assert found.mrc == 0 and found.relative_norm == 0 and found.farthest == 0


def test_robust_loss_is_the_mean_over_images_of_unequal_batches():
    draw = torch.Generator().manual_seed(0)
    x, labels = torch.randn(11, 5, generator=draw), torch.randint(5, (11,), generator=draw)
    pairs = [((part,), target) for part, target in zip(x.split(4), labels.split(4), strict=True)]
    loss, accuracy = robust_loss(lambda w, x: x @ w, torch.eye(5), pairs)
    assert loss == pytest.approx(F.cross_entropy(x, labels).item(), rel=1e-6)
    assert accuracy == (x.argmax(1) == labels).double().mean().item()


# -- the textbook's Algorithm 1 ----------------------------------------------------------------------


class Float32Logits(nn.Module):
    """The network with its logits handed out as the scan hands them out."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).float()


@pytest.fixture
def scanned(trained, digits):
    """A robust network in float64 and adversarial examples made on it."""
    attack = Attack("linf", 0.1, 0.05, 4)
    split = digits.train.subset(torch.arange(96))
    (batch,) = batches(split, 96)
    start = random_start(batch.images, batch.indices, ("scan start", 0), attack)
    examples = pgd(trained, batch.images, batch.labels, start, attack)
    return trained.double().requires_grad_(False), examples.double(), batch.labels


@pytest.mark.parametrize("score", ["last", "worst"])
@pytest.mark.parametrize("on_violation", ["stop", "continue"])
def test_equals_the_textbook_and_ranks_alike(scanned, on_violation, score):
    network, images, labels = scanned
    lr, epochs = 0.03, 4
    solver = sgd_solver(lr=lr, on_violation=on_violation, score=score, epochs=epochs)
    graph = FrozenGraph(network, RUNTIME)
    plain_pairs = list(textbook.fixed_batches(images, labels, 64))
    found, right, violated = {}, {}, []
    for name in scannable_modules(network):
        cut, passes = passes_at(graph, name, images, labels)
        original = cut.weights[0].clone()
        baseline = robust_loss(cut.after, cut.weights[0], passes())
        result = module_robust_criticality(cut.after, cut.weights[0], passes, baseline, solver)
        assert torch.equal(network.get_submodule(name).weight, original)
        right[name], drop = textbook.mrc(
            Float32Logits(network),
            f"network.{name}",
            plain_pairs,
            lr=lr,
            epsilon_w=0.1,
            epochs=epochs,
            stop=on_violation == "stop",
            worst=score == "worst",
        )
        found[name] = result.mrc
        assert result.mrc == pytest.approx(right[name], rel=1e-5, abs=1e-7), name
        assert result.robust_accuracy_drop == pytest.approx(drop, abs=1e-12), name
        assert result.relative_norm <= 0.1 * (1 + 1e-9)
        violated.append(result.farthest > 0.1)
    assert sorted(found, key=found.get) == sorted(right, key=right.get)
    assert any(violated) and not all(violated)  # or stopping and going on could not differ


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("on_violation", "score"), [("stop", "last"), ("continue", "worst")])
def test_several_modules_at_once_equal_the_textbook(scanned, on_violation, score, order):
    """Of one block and across blocks, a shortcut and the last layer; cut at the first, whatever the order."""
    network, images, labels = scanned
    names = ["layer2.0.conv2", "layer2.0.downsample.0", "layer3.0.conv1", "fc"][::order]
    solver = sgd_solver(lr=0.03, on_violation=on_violation, score=score, epochs=3)
    graph = FrozenGraph(network, RUNTIME)
    cache = ActivationCache(graph, images, labels, 64, limit_mib=100)
    cut = graph.cut(*names)
    cache.enter(cut)
    baseline = robust_loss(cut.after, cut.weights, cache.passes())
    found = module_robust_criticality(cut.after, cut.weights, cache.passes, baseline, solver)
    right, drop = textbook.mrc(
        Float32Logits(network),
        [f"network.{name}" for name in names],
        list(textbook.fixed_batches(images, labels, 64)),
        lr=0.03,
        epsilon_w=0.1,
        epochs=3,
        stop=on_violation == "stop",
        worst=score == "worst",
    )
    assert found.mrc == pytest.approx(right, rel=1e-5, abs=1e-7)
    assert found.robust_accuracy_drop == pytest.approx(drop, abs=1e-12)
    assert 0 < found.relative_norm <= 0.1 * (1 + 1e-9) < found.farthest


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_projected_solver_moves_each_weight_of_a_set_in_a_ball_of_its_own(norm):
    """Two factors of one logit gap, w·v·x: the worst is where both shrink by their whole radius."""
    labels, x = torch.tensor([0]), torch.ones(1, 1, dtype=torch.float64)
    weights = [torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[0.5]], dtype=torch.float64)]

    def logits(first, second, images):
        gap = images @ first @ second
        return torch.cat([gap, torch.zeros_like(gap)], dim=1)

    solver = projected_solver(norm=norm)
    baseline = robust_loss(logits, weights, [((x,), labels)])
    found = module_robust_criticality(logits, weights, lambda: iter([((x,), labels)]), baseline, solver)
    right = math.log1p(math.exp(-1.8 * 0.45)) - math.log1p(math.exp(-1.0))
    assert found.mrc == pytest.approx(right, rel=1e-5)
    assert found.relative_norm == pytest.approx(0.1, rel=1e-9)


def test_a_pass_in_lower_precision_only_searches(scanned):
    """What is reported comes from the exact function, whatever the search ran on."""
    network, images, labels = scanned
    cut, passes = passes_at(FrozenGraph(network, RUNTIME), "layer3.0.conv1", images, labels)
    baseline = robust_loss(cut.after, cut.weights[0], passes())
    exactly, roughly = [], []

    def exact_logits(weight, *boundary):
        exactly.append(weight.detach().clone())
        return cut.after(weight, *boundary)

    def lowered(weight, *boundary):
        roughly.append(weight.detach().clone())
        return cut.after(weight, *boundary).bfloat16()

    solver = sgd_solver(lr=0.03, epochs=3, on_violation="continue", score="worst")
    exact = module_robust_criticality(cut.after, cut.weights[0], passes, baseline, solver)
    found = module_robust_criticality(exact_logits, cut.weights[0], passes, baseline, solver, lowered)
    # In two batches: of each epoch, gradients and a score; in the end, the one that was chosen.
    assert (len(roughly), len(exactly)) == (3 * (2 + 2), 2)
    assert any(torch.equal(exactly[0], weight) for weight in roughly)
    loss, accuracy = robust_loss(cut.after, exactly[0], passes())
    assert (found.mrc, found.robust_accuracy_drop) == (loss - baseline[0], baseline[1] - accuracy)
    assert found.mrc != exact.mrc
    assert found.mrc == pytest.approx(exact.mrc, rel=0.05)


@pytest.mark.parametrize(("score", "searched"), [("last", 2), ("worst", 4)])
def test_the_search_may_have_passes_of_its_own(scanned, score, searched):
    """Two epochs of gradients; their scores too if they decide between the epochs. One exact pass."""
    network, images, labels = scanned
    cut, passes = passes_at(FrozenGraph(network, RUNTIME), "layer3.0.conv1", images, labels)
    baseline = robust_loss(cut.after, cut.weights[0], passes())
    counts = {"exact": 0, "search": 0}

    def counted(name):
        counts[name] += 1
        return passes()

    module_robust_criticality(
        cut.after,
        cut.weights[0],
        lambda: counted("exact"),
        baseline,
        sgd_solver(lr=0.03, epochs=2, on_violation="continue", score=score),
        lambda *arguments: cut.after(*arguments),
        lambda: counted("search"),
    )
    assert counts == {"exact": 1, "search": searched}


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projected_ascent_is_no_worse_than_the_paper_and_stays_in_the_ball(scanned, norm):
    network, images, labels = scanned
    graph = FrozenGraph(network, RUNTIME)
    epsilon_w = 0.1 if norm == "l2" else 0.02
    for name in ("layer1.0.conv2", "layer4.0.conv1", "fc"):
        cut, passes = passes_at(graph, name, images, labels)
        pairs = list(passes())
        paper = search(sgd_solver(norm=norm, epsilon_w=epsilon_w), cut.after, cut.weights[0], pairs)
        ours = search(projected_solver(norm=norm, epsilon_w=epsilon_w), cut.after, cut.weights[0], pairs)
        assert ours.relative_norm <= epsilon_w * (1 + 1e-9)
        assert ours.mrc >= 0.99 * paper.mrc > 0


def test_projecting_every_step_never_leaves_the_ball_for_long(scanned):
    network, images, labels = scanned
    cut, passes = passes_at(FrozenGraph(network, RUNTIME), "layer3.0.conv2", images, labels)
    pairs = list(passes())
    seen = []

    def spying(weight, *boundary):
        seen.append((norm_of(weight.detach() - cut.weights[0], "l2") / norm_of(cut.weights[0], "l2")).item())
        return cut.after(weight, *boundary)

    for every, inside in (("step", True), ("epoch", False)):
        seen.clear()
        search(sgd_solver(project=every, on_violation="continue", epochs=3), spying, cut.weights[0], pairs)
        assert (max(seen) <= 0.1 * (1 + 1e-9)) is inside


def test_worst_is_the_highest_of_all_epochs(scanned):
    network, images, labels = scanned
    cut, passes = passes_at(FrozenGraph(network, RUNTIME), "layer2.0.conv1", images, labels)
    pairs = list(passes())
    options = {"lr": 5.0, "on_violation": "continue"}
    by_epochs = [
        search(sgd_solver(epochs=n, **options), cut.after, cut.weights[0], pairs).mrc for n in range(1, 6)
    ]
    worst = search(sgd_solver(epochs=5, score="worst", **options), cut.after, cut.weights[0], pairs)
    assert worst.mrc == max(by_epochs)
    assert worst.epochs == 5


# -- the ball ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projection_is_the_nearest_point_of_the_ball(norm):
    draw = torch.Generator().manual_seed(0)
    radius = torch.tensor(0.7, dtype=torch.float64)
    for _ in range(50):
        delta = torch.randn(3, 4, generator=draw, dtype=torch.float64)
        nearest = project(delta, radius, norm)
        assert norm_of(nearest, norm) <= radius * (1 + 1e-12)
        torch.testing.assert_close(project(nearest, radius, norm), nearest, rtol=1e-12, atol=0)
        # Nearest: the rest of the way makes an obtuse angle with the way to any other point of the ball.
        other = torch.randn(3, 4, generator=draw, dtype=torch.float64)
        other = other * (radius / norm_of(other, norm))
        assert ((delta - nearest) * (other - nearest)).sum() <= 1e-12


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projection_leaves_inner_points_alone(norm):
    delta = torch.tensor([[0.3, -0.2], [0.1, 0.0]])
    assert torch.equal(project(delta, torch.tensor(0.5), norm), delta)
    assert torch.equal(project(torch.zeros(3), torch.tensor(0.0), norm), torch.zeros(3))


def test_norms_are_those_of_all_elements_together():
    tensor = torch.tensor([[3.0, -4.0], [0.0, 12.0]])
    assert norm_of(tensor, "l2").item() == 13.0
    assert norm_of(tensor, "linf").item() == 12.0


# -- memory and options -----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [sgd_solver(epochs=2), projected_solver(epochs=2)])
def test_a_search_holds_no_more_than_the_batch_at_hand(solver):
    """What does not fit into the cache must not pile up elsewhere."""
    weight, alive, most = torch.ones(2, 3, dtype=torch.float64), weakref.WeakSet(), []

    def one_pass():
        for _ in range(10):
            boundary = torch.ones(4, 3, dtype=torch.float64)
            alive.add(boundary)
            most.append(len(alive))
            yield (boundary,), torch.zeros(4, dtype=torch.int64)

    def logits(weight, x):
        return x @ weight.T

    module_robust_criticality(logits, weight, one_pass, robust_loss(logits, weight, one_pass()), solver)
    assert max(most) <= 3


def test_solver_options_come_from_the_configuration():
    solver = sgd_solver(epsilon_w=0.3, norm="linf", epochs=3, project="step", score="worst", lr=0.25)
    assert isinstance(solver, Solver)
    assert (solver.name, solver.epsilon_w, solver.norm, solver.epochs) == ("sgd", 0.3, "linf", 3)
    assert (solver.project, solver.on_violation, solver.score) == ("step", "stop", "worst")
    weight = torch.tensor([2.0, -1.0])
    optimizer = solver.optimizer([weight])
    for _ in range(2):
        weight.grad = torch.tensor([1.0, 4.0])
        optimizer.step()
    assert weight.tolist() == [1.5, -3.0]  # no momentum, no weight decay
