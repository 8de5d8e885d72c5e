"""One module's view of a frozen network: searched in the precision asked for, valued in the network's own."""

from __future__ import annotations

import copy

import pytest
import textbook
import torch
from torch import nn

from rift.attacks import Attack, pgd
from rift.criticality import Solver, robust_loss
from rift.models import scannable_modules
from rift.models.normalisation import Normalize
from rift.randomness import permutation
from rift.runtime import Runtime
from rift.stages.mrc_scan import criticality_of
from rift.stages.scanned_network import ScannedNetwork

SOLVER = Solver(
    "sgd", 0.1, "l2", 3, "epoch", "continue", "worst", lambda weights: torch.optim.SGD(weights, lr=0.03)
)


@pytest.fixture
def examples(trained, digits):
    x = digits.train.images[:96] / 255
    y = digits.train.labels[:96]
    return pgd(trained, x, y, x, Attack("linf", 0.1, 0.05, 4)), y


def scan(network, examples, precision, **options):
    runtime = Runtime(torch.device("cpu"), **options)
    network.requires_grad_(False)
    images, labels = examples
    baseline = robust_loss(lambda _, x: network(x), images.new_empty(0), [((images,), labels)])
    scanned = ScannedNetwork(network, images, labels, 64, precision, runtime)
    found = {name: criticality_of(scanned.at(name), baseline, SOLVER) for name in scannable_modules(network)}
    return found, runtime.fallbacks


def test_a_search_in_bfloat16_finds_what_float32_finds(trained, examples):
    exact, fallbacks = scan(trained, examples, torch.float32)
    low, low_fallbacks = scan(trained, examples, torch.bfloat16)
    assert fallbacks == low_fallbacks == []
    for name, right in exact.items():
        assert low[name].mrc == pytest.approx(right.mrc, rel=0.05, abs=2e-3), name
        assert low[name].mrc != right.mrc, name
        assert low[name].relative_norm <= 0.1 * (1 + 1e-5)
    lowest, highest = (choose(exact, key=lambda name: exact[name].mrc) for choose in (min, max))
    assert lowest in sorted(low, key=lambda name: low[name].mrc)[:3]
    assert highest in sorted(low, key=lambda name: low[name].mrc)[-3:]


@pytest.mark.parametrize("cache_mib", [0, 1])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_bound_of_the_cache_changes_no_bit(trained, examples, precision, cache_mib):
    plenty, _ = scan(trained, examples, precision)
    little, _ = scan(trained, examples, precision, cache_mib=cache_mib)
    assert little == plenty


def orders_of(name, count):
    return [permutation(("scan shuffle", 3, name, number), 96) for number in range(count)]


@pytest.mark.parametrize("cache_mib", [0, 64])
def test_shuffled_anew_in_each_epoch_it_equals_the_textbook(trained, examples, cache_mib):
    images, labels = examples
    trained.requires_grad_(False)
    runtime = Runtime(torch.device("cpu"), cache_mib=cache_mib)
    baseline = robust_loss(lambda _, x: trained(x), images.new_empty(0), [((images,), labels)])
    scanned = ScannedNetwork(trained, images, labels, 64, torch.float32, runtime, orders=("scan shuffle", 3))
    for name in ("conv1", "layer2.0.downsample.0", "layer3.0.conv2", "fc"):
        found = criticality_of(scanned.at(name), baseline, SOLVER)
        epochs = [
            list(zip(images[o].split(64), labels[o].split(64), strict=True)) for o in orders_of(name, 3)
        ]
        expected = textbook.mrc(
            copy.deepcopy(trained), name, [(images, labels)],
            lr=0.03, epsilon_w=0.1, epochs=3, stop=False, worst=True, shuffled=epochs,
        )  # fmt: skip
        assert (found.mrc, found.robust_accuracy_drop) == pytest.approx(expected, rel=1e-3, abs=1e-5), name
        assert criticality_of(scanned.at(name), baseline, SOLVER) == found, "resumed it would go elsewhere"


def test_each_shuffled_pass_is_another_mixture_of_all_images(trained, examples):
    images, labels = examples
    runtime = Runtime(torch.device("cpu"))
    scanned = ScannedNetwork(
        trained.requires_grad_(False), images, labels, 64, torch.bfloat16, runtime, ("scan shuffle", 3)
    )
    view = scanned.at("fc")
    for order in orders_of("fc", 2):
        passed = list(view.search_batches())
        assert torch.equal(torch.cat([part for _, part in passed]), labels[order])
        assert [len(part) for _, part in passed] == [64, 32]
        assert all(boundary[0].dtype == torch.bfloat16 for boundary, _ in passed)


def test_values_of_the_unmoved_network_are_the_networks(trained, examples):
    images, labels = examples
    trained.requires_grad_(False)
    scanned = ScannedNetwork(trained, images, labels, 64, torch.bfloat16, Runtime(torch.device("cpu")))
    loss, accuracy = robust_loss(lambda _, x: trained(x), images.new_empty(0), [((images,), labels)])
    for name in ("conv1", "layer2.0.downsample.0", "fc"):
        view = scanned.at(name)
        assert robust_loss(view.logits, view.weights, view.batches()) == pytest.approx(
            (loss, accuracy), rel=1e-5
        )
        rough, _ = robust_loss(view.search_logits, view.weights, view.search_batches())
        assert rough == pytest.approx(loss, rel=0.05) and rough != pytest.approx(loss, rel=1e-6)


class Delicate(nn.Module):
    """Small differences of large numbers, which bfloat16 loses."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.3,), (0.38,))
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x):
        x = self.fc((self.conv(self.normalize(x)) + 1000.0 - 1000.0).mean((2, 3)))
        return 10 * x


class Overwriting(nn.Module):
    """The second half writes into what the first one made."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.3,), (0.38,))
        self.first, self.second, self.fc = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 10)

    def forward(self, x):
        x = self.first(self.normalize(x))
        return self.fc(x.add_(self.second(x.clone())).mean((2, 3)))


def test_what_is_run_whole_is_searched_in_float32_and_says_so(examples):
    torch.manual_seed(0)
    found, fallbacks = scan(Overwriting().eval(), examples, torch.bfloat16)
    assert found["second"].mrc > 0
    assert len(fallbacks) == 2 and "cut at second gives other logits" in fallbacks[0]
    assert fallbacks[1] == "the scan searches second in float32 (it is run whole)"


def test_a_network_that_does_not_bear_bfloat16_is_searched_in_float32_and_says_so(examples):
    torch.manual_seed(0)
    network = Delicate().eval()
    exact, _ = scan(network, examples, torch.float32)
    low, fallbacks = scan(network, examples, torch.bfloat16)
    assert fallbacks == ["the scan searches conv in float32 (its logits are too far off)"]
    assert low["conv"] == exact["conv"]
