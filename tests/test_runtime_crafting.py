"""The frozen, folded form of a network: the same function, in whatever shape the network comes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from rift.attacks import Attack, pgd
from rift.models import build_model
from rift.models.normalisation import Normalize
from rift.runtime import CraftingNetwork, Runtime
from rift.runtime.folding import foldable_pairs, pad_channels, refresh, scale_and_shift, trace

CPU = torch.device("cpu")


def build(name, size=8, **options):
    torch.manual_seed(0)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    return build_model(name, num_classes=10, image_size=size, mean=mean, std=std, **options)


def images(n=4, size=8):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def crafted(network, precision=torch.float32, **options):
    runtime = Runtime(CPU, **options)
    return CraftingNetwork(network, runtime, precision), runtime


@torch.no_grad()
def logits_in_eval_mode(network, x):
    return copy.deepcopy(network).eval()(x)


def train_a_step(network, x):
    """Moves every weight and every running statistic."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    F.cross_entropy(network(x), torch.arange(len(x)) % 10).backward()
    optimizer.step()
    optimizer.zero_grad()


# -- our own networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("name", "width", "pairs"),
    [
        ("resnet_small", 4, 12),  # stem, two in each of four blocks, three shortcuts
        ("wrn34_10", 1, 15),  # pre-activation: a BatchNorm follows the first convolution of a block alone
        ("preact_resnet18", 4, 8),
        ("wrn_silu_28_10", 1, 12),
    ],
)
def test_is_the_eval_mode_network(name, width, pairs, channels_last, shaken):
    network = shaken(build(name, width=width))
    twin, runtime = crafted(network, channels_last=channels_last)
    assert runtime.fallbacks == []
    assert len(twin._pairs) == pairs
    right = logits_in_eval_mode(network, images())
    with torch.no_grad():
        torch.testing.assert_close(twin(images()), right, rtol=1e-4, atol=1e-4 * right.abs().max().item())

    network.double()
    twin, _ = crafted(network)
    # Logits are handed out in float32; before that nothing is lost.
    with torch.no_grad():
        torch.testing.assert_close(
            twin.body(images().double()),
            logits_in_eval_mode(network, images().double()),
            rtol=1e-10,
            atol=1e-10,
        )


def test_input_gradients_are_the_networks(shaken):
    network = shaken(build("resnet_small", width=8)).double().eval()
    twin, _ = crafted(network)

    def gradient(function):
        x = images().double().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(function(x), torch.arange(4)), x)[0]

    torch.testing.assert_close(gradient(twin.body), gradient(network), rtol=1e-8, atol=1e-10)


def test_no_weight_requires_gradients(shaken):
    network = shaken(build("resnet_small", width=8))
    twin, _ = crafted(network)
    assert len(list(twin.parameters())) > 0
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    called = {str(node.target) for node in twin.body.graph.nodes if node.op == "call_module"}
    assert not any(twin.body.get_submodule(name).training for name in called)
    assert not set(map(id, twin.parameters())) & set(map(id, network.parameters()))


def test_without_folding_it_is_the_network_bit_for_bit(shaken):
    network = shaken(build("resnet_small", width=8))
    twin, runtime = crafted(network, fold_batchnorm=False, channels_last=False)
    assert torch.equal(twin(images()), logits_in_eval_mode(network, images()))
    train_a_step(network, images())
    twin.refresh()
    assert torch.equal(twin(images()), logits_in_eval_mode(network, images()))
    assert runtime.fallbacks == []


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fold", [False, True])
def test_refresh_takes_over_weights_and_statistics(precision, fold, shaken):
    network = shaken(build("resnet_small", width=8))
    twin, _ = crafted(network, precision, fold_batchnorm=fold)
    old = twin(images())
    addresses = {name: value.data_ptr() for name, value in twin.state_dict().items()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(3):
        train_a_step(network, images())
    assert not any(
        torch.equal(value, state[name])
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )
    assert torch.equal(twin(images()), old)  # not before it is told
    twin.refresh()
    anew, _ = crafted(network, precision, fold_batchnorm=fold)
    assert torch.equal(twin(images()), anew(images()))
    assert not torch.allclose(twin(images()), old, atol=1e-2)
    # In place, for whatever holds on to the addresses.
    assert {name: value.data_ptr() for name, value in twin.state_dict().items()} == addresses


def test_the_network_is_left_as_found(shaken):
    network = shaken(build("resnet_small", width=8))
    network.layer1.eval()
    network.fc.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    flags = [parameter.requires_grad for parameter in network.parameters()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    twin, _ = crafted(network, torch.bfloat16)
    twin.refresh()
    pgd(twin, images(), torch.arange(4), images(), Attack("linf", 0.1, 0.05, 2))
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(
        torch.equal(value, state[name]) and value.dtype == state[name].dtype
        for name, value in network.state_dict().items()
    )


@pytest.mark.parametrize(
    ("name", "width"), [("resnet_small", 8), ("preact_resnet18", 8), ("wrn34_10", 1), ("wrn_silu_28_10", 1)]
)
def test_bfloat16_is_close_and_gives_float32_logits(name, width, shaken):
    network = shaken(build(name, width=width))
    twin, _ = crafted(network, torch.bfloat16)
    right = logits_in_eval_mode(network, images(32))
    with torch.no_grad():
        found = twin(images(32))
    assert found.dtype == torch.float32
    # Eight bits of mantissa; errors of the layers add up.
    assert (found - right).norm() < 0.02 * right.norm()
    assert not torch.equal(found, right)
    kept = {"normalize.mean", "normalize.std"}
    dtypes = {
        name: value.dtype
        for name, value in (*twin.body.named_parameters(), *twin.body.named_buffers())
        if value.is_floating_point()
    }
    assert kept <= dtypes.keys()
    assert all((dtype == torch.float32) is (name in kept) for name, dtype in dtypes.items())


@pytest.mark.parametrize(("name", "width"), [("resnet_small", 8), ("preact_resnet18", 4), ("wrn34_10", 1)])
def test_lowered_images_get_channels_of_zeros_that_change_nothing(name, width, shaken):
    network = shaken(build(name, width=width)).double()
    twin, runtime = crafted(network, torch.bfloat16)
    assert runtime.fallbacks == []
    assert twin.body.conv1.weight.shape[1] == 8
    for _ in range(2):
        assert twin.body.conv1.weight[:, :3].abs().min() > 0
        assert twin.body.conv1.weight[:, 3:].abs().max() == 0
        train_a_step(network, images().double())
        twin.refresh()
    graph = trace(network)
    (normalize,) = [node for node in graph.graph.nodes if node.target == "normalize"]
    pad_channels(graph, normalize)
    graph.recompile()
    refresh(graph, network, [])
    x = images().double()
    assert graph.conv1.in_channels == 8
    torch.testing.assert_close(graph(x), logits_in_eval_mode(network, x), rtol=1e-10, atol=1e-10)


def test_pixels_are_normalised_in_float32():
    """Adjacent grey levels that bfloat16 cannot tell apart stay apart where the deviation is small."""
    torch.manual_seed(0)
    network = build_model(
        "resnet_small", num_classes=10, in_channels=1, image_size=8, mean=[0.8], std=[0.004], width=8
    )
    pixels = torch.tensor([0.8, 0.8 + 0.4 / 255]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    assert pixels[0].bfloat16().equal(pixels[1].bfloat16())
    twin, _ = crafted(network, torch.bfloat16)
    right = logits_in_eval_mode(network, pixels)
    with torch.no_grad():
        found = twin(pixels)
    # Were they cast first, the two images would be one, and the error half of their difference or more.
    assert (found - right).norm() < 0.2 * (right[0] - right[1]).norm()


# -- any network -------------------------------------------------------------------------------------


class Dynamic(nn.Module):
    """What tracing cannot follow: the data decides the way."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        x = self.bn(self.conv(x))
        x = F.relu(x) if x.sum() > 0 else F.gelu(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_network_that_cannot_be_traced_is_still_right_and_says_so(precision, shaken):
    torch.manual_seed(0)
    network = shaken(Dynamic())
    twin, runtime = crafted(network, precision, channels_last=False)
    assert len(runtime.fallbacks) == 1
    assert "Dynamic" in runtime.fallbacks[0] and "not folded" in runtime.fallbacks[0]
    assert "\n" not in runtime.fallbacks[0]
    train_a_step(network, images())
    twin.refresh()
    right = logits_in_eval_mode(network, images())
    with torch.no_grad():
        found = twin(images())
    assert found.dtype == torch.float32
    assert (found - right).norm() <= (0 if precision == torch.float32 else 0.02) * right.norm()
    CraftingNetwork(network, runtime, precision)
    assert len(runtime.fallbacks) == 1


class Awkward(nn.Module):
    """One of each kind of convolution and BatchNorm, foldable and not. `pairs` are those that fold."""

    pairs = ("biased", "grouped", "plain")

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.biased, self.bn_biased = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False, padding_mode="reflect")
        self.bn_grouped = nn.BatchNorm2d(4, affine=False)
        self.plain, self.bn_plain = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, eps=0.1)
        self.shared, self.bn_shared = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.seen_twice, self.bn_seen = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.batch_only = nn.Conv2d(4, 4, 1)
        self.bn_batch_only = nn.BatchNorm2d(4, track_running_stats=False)
        self.one_norm_for_two, self.two, self.bn_both = (
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
        )
        self.active = nn.Conv2d(4, 4, 1)
        self.bn_active = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        x = self.bn_biased(self.biased(self.normalize(x)))
        x = self.bn_grouped(self.grouped(x))
        x = self.bn_plain(self.plain(x))
        x = self.bn_shared(self.shared(x)) + self.shared(x)
        seen = self.seen_twice(x)
        x = self.bn_seen(seen) * torch.sigmoid(seen)
        x = self.bn_batch_only(self.batch_only(x))
        x = self.bn_both(self.one_norm_for_two(x)) + self.bn_both(self.two(x))
        x = self.bn_active(F.silu(self.active(x)))
        return self.fc(x.mean((2, 3)))


def test_only_a_convolution_whose_output_nobody_else_sees_is_folded(shaken):
    torch.manual_seed(0)
    network = shaken(Awkward()).double()
    assert tuple(pair.convolution for pair in foldable_pairs(trace(network))) == Awkward.pairs
    twin, runtime = crafted(network)
    assert runtime.fallbacks == []
    x = images().double()
    torch.testing.assert_close(twin.body(x), logits_in_eval_mode(network, x), rtol=1e-10, atol=1e-10)


def test_batchnorm_is_its_scale_and_shift(shaken):
    layer = shaken(nn.BatchNorm2d(5)).double().eval()
    scale, shift = scale_and_shift(layer)
    x = torch.rand(2, 5, 3, 3, dtype=torch.float64)
    right = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), right, rtol=1e-12, atol=1e-12)


class Tied(nn.Module):
    """Two names for one weight, and the later name is called first."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.first(F.relu(self.second(self.normalize(x).flatten(1))))


class FromBuffers(nn.Module):
    """Computes with its buffers in Python before they meet the image, like a BatchNorm written by hand."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.5,) * 3, (0.25,) * 3)
        self.register_buffer("variance", torch.ones(3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.fc = nn.Linear(3, 10)

    def forward(self, x):
        scale = torch.rsqrt(self.variance + 1e-5) + torch.arange(3)
        return self.fc(self.normalize(x).mean((2, 3)) * scale)


@pytest.mark.parametrize(("make", "size"), [(Tied, 2), (FromBuffers, 8)])
def test_refresh_reaches_every_tensor_that_the_traced_code_reads(make, size):
    torch.manual_seed(0)
    network = make()
    twin, runtime = crafted(network)
    assert runtime.fallbacks == []
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(torch.rand(value.shape) * 3)
    twin.refresh()
    torch.testing.assert_close(twin(images(size=size)), logits_in_eval_mode(network, images(size=size)))


TIMM = {
    # name: (BatchNorms folded, whether tracing succeeds)
    "resnet26d": (31, True),
    "test_efficientnet": (0, True),  # BatchNorm and activation are one layer of timm's own
    "test_vit": (0, False),
    "vit_tiny_patch16_224": (0, True),  # class token and position embedding belong to the root
    "test_maxvit": (0, True),  # relative positions are computed from buffers
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_after_their_weights_have_moved(name, precision, shaken):
    if not timm.is_model(name):
        pytest.skip(f"waits for a timm that has {name}; {timm.__version__} has not")
    folded, traceable = TIMM[name]
    network = build("timm", size=32, timm_name=name)
    twin, runtime = crafted(network, precision)
    assert len(runtime.fallbacks) == (0 if traceable else 1)
    assert len(twin._pairs) == folded
    shaken(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    twin.refresh()
    right = logits_in_eval_mode(network, images(2, 32))
    with torch.no_grad():
        found = twin(images(2, 32))
    bound = 1e-5 if precision == torch.float32 else 0.05
    assert (found - right).norm() < bound * right.norm()


@pytest.mark.slow
def test_compiled_it_is_the_same_and_refreshes(shaken):
    network = shaken(build("resnet_small", width=8))
    twin, runtime = crafted(network, compile=True)
    for _ in range(2):
        right = logits_in_eval_mode(network, images())
        with torch.no_grad():
            torch.testing.assert_close(twin(images()), right, rtol=1e-4, atol=1e-4)
        train_a_step(network, images())
        twin.refresh()
    assert runtime.fallbacks == []
