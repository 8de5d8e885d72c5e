"""A network cut at one module: the halves together are the network, and so is the weight's gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rift.models import build_model, scannable_modules
from rift.models.normalisation import Normalize
from rift.runtime import Runtime
from rift.runtime.suffix import FrozenGraph, whole_network
from rift.stages.scanned_network import checked_cut, frozen_graph

RUNTIME = Runtime(torch.device("cpu"))
LABELS = torch.arange(4)
NETWORKS = [("resnet_small", 4), ("preact_resnet18", 4), ("wrn34_10", 1), ("wrn_silu_28_10", 1)]


def images(size=8):
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def build(name, size=8, **options):
    torch.manual_seed(0)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    network = build_model(name, num_classes=10, image_size=size, mean=mean, std=std, **options)
    return network.double().eval().requires_grad_(False)


def moved_weight(cut, by):
    noise = torch.randn(cut.weights[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return cut.weights[0] + by * cut.weights[0].norm() / noise.norm() * noise


def logits_and_gradient(after, weight, boundary):
    weight = weight.clone().requires_grad_()
    logits = after(weight, *boundary)
    return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, LABELS), weight)[0]


@pytest.mark.parametrize(("name", "width"), NETWORKS)
def test_every_cut_is_the_network_in_value_and_gradient(name, width, shaken):
    network = shaken(build(name, width=width))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    graph, x = FrozenGraph(network, RUNTIME), images()
    for module in scannable_modules(network):
        cut, whole = graph.cut(module), whole_network(network, module)
        assert torch.equal(cut.weights[0], network.get_submodule(module).weight), module
        boundary = cut.before(x)
        copies = [tensor.clone() for tensor in boundary]
        for weight in (cut.weights[0], moved_weight(cut, by=0.1)):
            found = logits_and_gradient(cut.after, weight, boundary)
            right = logits_and_gradient(whole.after, weight, (x,))
            for one, other in zip(found, right, strict=True):
                assert torch.allclose(one, other, rtol=1e-10, atol=1e-10), module
            # What was computed once serves again and again.
            assert all(torch.equal(a, b) for a, b in zip(boundary, copies, strict=True)), module
        with torch.no_grad():
            torch.testing.assert_close(cut.after(*cut.weights, *boundary), network(x), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_only_what_follows_the_module_is_computed_again():
    network = build("resnet_small", width=8)
    graph = FrozenGraph(network, RUNTIME)
    called = {
        module: {node.target for node in graph.cut(module).after.graph.nodes if node.op == "call_module"}
        for module in scannable_modules(network)
    }
    assert called["fc"] == {"moved_0"}
    assert "layer3.0.conv2" not in called["layer4.0.conv1"]
    assert "layer4.0.conv2" in called["layer4.0.conv1"]
    assert "layer4.0.conv2" not in called["layer4.0.downsample.0"]  # the other branch of the block


def test_boundary_of_a_residual_block_holds_the_shortcut_too():
    network, x = build("resnet_small", width=8), images()
    graph = FrozenGraph(network, RUNTIME)
    assert [tuple(t.shape) for t in graph.cut("conv1").before(x)] == [(4, 3, 8, 8)]
    assert [tuple(t.shape) for t in graph.cut("layer1.0.conv2").before(x)] == [(4, 8, 8, 8)] * 2
    assert [tuple(t.shape) for t in graph.cut("fc").before(x)] == [(4, 64)]


def test_whole_network_is_the_network_with_another_weight(shaken):
    network, x = shaken(build("resnet_small", width=8)), images()
    whole = whole_network(network, "layer2.0.conv1")
    weight = moved_weight(whole, by=0.5)
    original = whole.weights[0].clone()
    found = whole.after(weight, *whole.before(x))
    assert torch.equal(network.layer2[0].conv1.weight, original)
    with torch.no_grad():
        network.layer2[0].conv1.weight.copy_(weight)
    torch.testing.assert_close(found, network(x))


class Shared(nn.Module):
    """Calls one convolution twice and another never."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.twice, self.never, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 10)

    def forward(self, x):
        return self.fc(self.twice(self.twice(self.normalize(x))).mean((2, 3)))


class Overwriting(nn.Module):
    """The second half writes into a tensor that the first half made."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.first, self.second, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 10)

    def forward(self, x):
        x = self.first(self.normalize(x))
        return self.fc(x.add_(self.second(x.clone())).mean((2, 3)))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, x):
        return self.fc(x.mean((2, 3))) if x.sum() > 0 else x


def plain(network):
    torch.manual_seed(0)
    return network.double().eval().requires_grad_(False)


@pytest.mark.parametrize(("module", "calls"), [("twice", 2), ("never", 0)])
def test_a_module_that_is_not_called_once_cannot_be_cut(module, calls):
    graph = FrozenGraph(plain(Shared()), RUNTIME)
    with pytest.raises(ValueError, match=f"{module} is called {calls} times"):
        graph.cut(module)
    graph.cut("fc")


@pytest.mark.parametrize(
    ("make", "module", "reason"),
    [
        (Shared, "twice", "cannot be cut at every module"),
        (Overwriting, "second", "other logits"),
        (Untraceable, "fc", "cannot be traced"),
    ],
)
def test_what_cannot_be_cut_is_run_whole_and_says_so(make, module, reason):
    network, x = plain(make()), images()
    runtime = Runtime(torch.device("cpu"))
    cut, boundary = checked_cut(frozen_graph(network, runtime), network, [module], x, network(x), runtime)
    assert len(runtime.fallbacks) == 1 and reason in runtime.fallbacks[0]
    assert boundary[0] is x and cut.before(x)[0] is x
    for weight in (cut.weights[0], moved_weight(cut, by=0.1)):
        found = [cut.after(weight, *boundary) for _ in range(2)]
        assert torch.equal(*found)
        whole = torch.func.functional_call(network, {f"{module}.weight": weight}, (x,))
        assert torch.equal(found[0], whole)


def test_the_rest_of_an_overwriting_network_is_still_cut():
    network, x = plain(Overwriting()), images()
    runtime = Runtime(torch.device("cpu"))
    _, boundary = checked_cut(frozen_graph(network, runtime), network, ["fc"], x, network(x), runtime)
    assert runtime.fallbacks == [] and boundary[0].shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet26d", ("conv1.0", "layer2.0.downsample.1", "fc")),
        # Norms written as functions read their parameters directly.
        ("test_efficientnet", ("conv_stem", "blocks.3.0.se.conv_reduce", "classifier")),
        ("vit_tiny_patch16_224", ("patch_embed.proj", "blocks.3.attn.qkv", "head")),
        # A size read from a tensor crosses the cut.
        ("resnest14d", ("layer1.0.conv2.fc2", "fc")),
    ],
)
def test_timm_networks_are_cut_and_not_run_whole(name, modules, shaken):
    network, x = shaken(build("timm", size=32, timm_name=name)), images(32)
    runtime = Runtime(torch.device("cpu"))
    graph = frozen_graph(network, runtime)
    reference = network(x)
    for module in modules:
        cut, boundary = checked_cut(graph, network, [module], x, reference, runtime)
        assert runtime.fallbacks == []
        whole = whole_network(network, module)
        assert any(isinstance(value, Tensor) for value in boundary)
        weight = moved_weight(cut, by=0.1)
        found = logits_and_gradient(cut.after, weight, boundary)
        right = logits_and_gradient(whole.after, weight, (x,))
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
