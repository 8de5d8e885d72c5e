"""The activation cache: every pass is what a pass from the images is, and memory stays within its bound."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rift.models import build_model, scannable_modules
from rift.models.normalisation import Normalize
from rift.runtime import Runtime
from rift.runtime.activations import ActivationCache, lowered
from rift.runtime.suffix import FrozenGraph, whole_network

RUNTIME = Runtime(torch.device("cpu"))
COUNT, BATCH = 300, 64  # four full batches and one of 44 images


def make(name="resnet_small", **options):
    torch.manual_seed(0)
    network = build_model(name, num_classes=10, image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3, **options)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network():
    return make(width=8)


@pytest.fixture(scope="module")
def graph(network):
    return FrozenGraph(network, RUNTIME)


@pytest.fixture(scope="module")
def images():
    return torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def cache_of(graph, images, limit_mib):
    return ActivationCache(graph, images, torch.arange(COUNT), BATCH, limit_mib)


def assert_is_a_pass(found, cut, images, precision=None):
    found = list(found)
    assert [len(labels) for _, labels in found] == [64, 64, 64, 64, 44]
    assert torch.equal(torch.cat([labels for _, labels in found]), torch.arange(COUNT))
    for (boundary, _), part in zip(found, images.split(BATCH), strict=True):
        right = lowered(cut.before(part), precision)
        assert len(boundary) == len(right)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(boundary, right, strict=True))


@pytest.mark.parametrize("limit_mib", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_in_network_order_every_pass_is_right_and_within_the_bound(limit_mib, precision):
    network = make(width=16)  # an activation of the first stage is 4 KiB: 1.17 MiB for all images
    graph, images = FrozenGraph(network, RUNTIME), torch.rand(COUNT, 3, 8, 8)
    cache, shares = cache_of(graph, images, limit_mib), {}
    for name in scannable_modules(network):
        cut = graph.cut(name)
        cache.enter(cut, precision)
        assert cache.kept_bytes <= limit_mib * 2**20
        shares[name] = cache.cached
        for _ in range(2):
            assert_is_a_pass(cache.passes(), cut, images, precision)
            assert_is_a_pass(cache.exact_passes(), cut, images)
    if limit_mib == 0:
        assert set(shares.values()) == {0}
    if limit_mib == 100:
        assert set(shares.values()) == {1}
    if limit_mib == 2 and precision is None:
        # One tensor of this stage fits for all images, two do not.
        assert shares["layer1.0.conv1"] == 1 and 0 < shares["layer1.0.conv2"] < 1
        assert shares["layer4.0.conv1"] == shares["fc"] == 1


@pytest.mark.parametrize("limit_mib", [1, 100])
def test_in_any_order_too(network, graph, images, limit_mib):
    cache = cache_of(graph, images, limit_mib)
    for name in ("fc", "layer2.0.conv2", "layer2.0.downsample.0", "conv1", "conv1", "layer4.0.conv1"):
        cut = graph.cut(name)
        cache.enter(cut)
        assert_is_a_pass(cache.passes(), cut, images)


class Counting:
    """Counts the images that go through each layer of a network."""

    def __init__(self, graph):
        self.seen = {}
        for name, module in graph._graph.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(lambda _, x, y, name=name: self.add(name, len(y)))

    def add(self, name, count):
        self.seen[name] = self.seen.get(name, 0) + count


def test_nothing_is_computed_twice_on_the_way_through_the_network(images):
    network = make(width=8)
    graph = FrozenGraph(network, RUNTIME)
    counting, cache = Counting(graph), cache_of(graph, images, 100)
    names = list(scannable_modules(network))
    for name in names:
        cache.enter(graph.cut(name))
        for _ in range(3):
            list(cache.passes())
    # Once on the way to the next block, and once for each module whose boundary it is a part of.
    assert set(counting.seen) == set(names) - {"fc"}
    assert max(counting.seen.values()) <= 4 * COUNT
    assert counting.seen["conv1"] == COUNT


def test_what_does_not_fit_is_computed_from_its_block_and_not_from_the_image():
    network = make(width=16)
    graph, images = FrozenGraph(network, RUNTIME), torch.rand(COUNT, 3, 8, 8)
    counting, cache = Counting(graph), cache_of(graph, images, limit_mib=2)
    cut = graph.cut("layer1.0.conv2")
    assert cut.entry is not None
    cache.enter(cut)
    assert 0 < cache.cached < 1
    counting.seen.clear()
    list(cache.passes())
    assert counting.seen == {"layer1.0.conv1": round((1 - cache.cached) * COUNT)}


def test_a_network_that_cannot_be_cut_keeps_nothing(network, images):
    cache = ActivationCache(None, images, torch.arange(COUNT), BATCH, limit_mib=100)
    cut = whole_network(network, "layer1.0.conv1")
    cache.enter(cut)
    assert cache.cached == cache.kept_bytes == 0
    assert_is_a_pass(cache.passes(), cut, images)


class InPlace(nn.Module):
    """Three points where one tensor carries everything; the first is written over by what follows."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.first, self.act = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)
        self.second, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 10)

    def forward(self, x):
        x = self.act(self.first(self.normalize(x)))
        return self.fc((x + self.second(x)).mean((2, 3)))


def test_an_entry_is_never_a_tensor_that_is_written_over():
    graph = FrozenGraph(InPlace().eval().requires_grad_(False), RUNTIME)
    assert graph.cut("first").entry == "normalize"
    assert graph.cut("second").entry == "act"
    assert graph.cut("fc").entry == "mean"
    assert graph.follows(None, "normalize") and graph.follows("act", "mean")
    assert not graph.follows("mean", "act")


class Splitting(nn.Module):
    """Between two convolutions, a pair of tensors is all there is."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1), nn.Linear(4, 10)

    def forward(self, x):
        a, b = self.first(self.normalize(x)).split(2, dim=1)
        return self.fc(torch.cat([self.second(a), b], dim=1).mean((2, 3)))


def test_an_entry_is_one_tensor(images):
    graph = FrozenGraph(Splitting().eval().requires_grad_(False), RUNTIME)
    cut = graph.cut("second")
    assert cut.entry == "first"
    cache = cache_of(graph, images, 100)
    cache.enter(cut)
    assert_is_a_pass(cache.passes(), cut, images)


def test_entries_of_a_residual_network_are_its_blocks(graph, network):
    entries = [graph.cut(name).entry for name in scannable_modules(network)]
    # The stem, four blocks (the modules of one share its entry), the pooled features.
    assert len(dict.fromkeys(entries)) == 6
    assert graph.cut("layer2.0.conv1").entry == graph.cut("layer2.0.downsample.0").entry


def test_lowering_keeps_what_is_no_float():
    value = (torch.ones(2), 3, [torch.tensor([1, 2])])
    low = lowered(value, torch.bfloat16)
    assert low[0].dtype == torch.bfloat16 and low[1] == 3 and low[2][0].dtype == torch.int64
    assert lowered(value, None) is value
