"""The networks: size, names, initial weights, normalisation, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from rift.errors import UserError
from rift.models import MODELS, build_model, network_name, scannable_modules, timm_models
from rift.models.normalisation import normalise_first
from rift.models.registry import own_width
from rift.models.silu_wide_resnet import SiluWideResNet
from rift.models.wide_resnet import WideResNet, wide_resnet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
# Every own network, narrow.
NARROW = {"resnet18": 4, "resnet34": 4, "resnet_small": 4, "preact_resnet18": 4} | dict.fromkeys(
    ["wrn28_10", "wrn34_10", "wrn70_16", "wrn_silu_28_10", "wrn_silu_34_10", "wrn_silu_70_16"], 1
)


def build(name, **options):
    options = {"num_classes": 10, "mean": MEAN, "std": STD, **options}
    return build_model(name, **options)


def build_narrow(name, **options):
    torch.manual_seed(0)
    return build(name, width=NARROW[name], **options)


def images(n=2, channels=3, size=32):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


class PublishedBlock(nn.Module):
    """The block of the ResNet that the published AT code uses; a twin to compare with."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(out + self.shortcut(x))


class PublishedResNet(nn.Module):
    def __init__(self, layers, width, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inside = width
        for i, blocks in enumerate(layers):
            outside = width * 2**i
            strides = [1 if i == 0 else 2] + [1] * (blocks - 1)
            stage = [PublishedBlock(inside if j == 0 else outside, outside, s) for j, s in enumerate(strides)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
            inside = outside
        self.linear = nn.Linear(inside, num_classes)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(functional.avg_pool2d(x, 4).flatten(1))


@pytest.mark.parametrize(
    ("name", "parameters", "modules"),
    [
        ("resnet18", 11_173_962, 21),
        ("resnet34", 21_282_122, 37),
        ("preact_resnet18", 11_172_170, 21),
        ("wrn28_10", 36_479_194, 29),
        ("wrn34_10", 46_160_474, 35),
        ("wrn_silu_28_10", 36_479_194, 29),
    ],
)
def test_size_is_the_published_one(name, parameters, modules):
    model = build(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(scannable_modules(model)) == modules


def test_every_own_network_is_tested_narrow():
    assert set(NARROW) == set(MODELS) - {"timm"}


@pytest.mark.parametrize("network", [WideResNet, SiluWideResNet])
def test_size_of_wrn_70_16_is_the_published_one(network):
    with torch.device("meta"):  # a gigabyte otherwise
        model = network(depth=70, width=16, num_classes=10, in_channels=3)
    assert sum(p.numel() for p in model.parameters()) == 266_796_506
    assert own_width("wrn70_16") == own_width("wrn_silu_70_16") == 16


def test_small_resnet_is_resnet18_with_one_block_per_stage_and_16_channels():
    small, same = build("resnet_small"), build("resnet_small", width=16)
    assert {k: v.shape for k, v in small.state_dict().items()} == {
        k: v.shape for k, v in same.state_dict().items()
    }
    assert small.fc.in_features == 128
    assert [len(getattr(small, f"layer{i}")) for i in (1, 2, 3, 4)] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", NARROW)
def test_every_parameter_is_used(name):
    model = build_narrow(name)
    model(images(4)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_resnet_is_the_published_one_from_the_first_draw_on():
    """Same seed, same initial weights, same logits; so also no zero-initialised residual scale."""
    torch.manual_seed(7)
    ours = build("resnet18", width=8)
    torch.manual_seed(7)
    published = PublishedResNet((2, 2, 2, 2), 8, 10)
    theirs = {
        k.replace("shortcut", "downsample").replace("linear", "fc"): v
        for k, v in published.state_dict().items()
    }
    assert list(ours.state_dict()) == list(theirs)
    assert all(torch.equal(v, theirs[k]) for k, v in ours.state_dict().items())
    assert all(bool((m.weight == 1).all()) for m in ours.modules() if isinstance(m, nn.BatchNorm2d))
    x = images()
    normalised = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(ours(x), published(normalised), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "head"), [("wrn34_10", "fc"), ("wrn_silu_28_10", "logits")])
def test_wide_resnet_initial_weights(name, head):
    model = build(name, width=4)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            std = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            # The relative standard error of a standard deviation from n draws is 1/sqrt(2n).
            assert abs(module.weight.std() / std - 1) < 5 / (2 * module.weight.numel()) ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
            assert bool((module.running_var == 1).all()) and bool((module.running_mean == 0).all())
    assert bool((model.get_submodule(head).bias == 0).all())


def test_wide_resnet_forward_by_hand():
    """Depth 10, width 2: one block per stage, each written out from its parts."""
    torch.manual_seed(0)
    model = wide_resnet(depth=10, width=2, num_classes=5, in_channels=3)
    relu, x = functional.relu, images()
    out = model.conv1(x)
    for stage in (model.block1, model.block2, model.block3):
        (block,) = stage.layer
        active = relu(block.bn1(out))
        out = block.convShortcut(active) + block.conv2(relu(block.bn2(block.conv1(active))))
    pooled = functional.avg_pool2d(relu(model.bn1(out)), 8).flatten(1)
    torch.testing.assert_close(model(x), model.fc(pooled), rtol=1e-5, atol=1e-6)


def test_wide_resnet_identity_shortcut_is_the_raw_input():
    """With the branch's last convolution at zero, a block of equal shapes is the identity."""
    block = build_narrow("wrn34_10").block2.layer[3]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 32, 8, 8)
    assert block.convShortcut is None
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", NARROW)
def test_initial_weights_come_from_the_global_generator(name):
    a, b = build_narrow(name), build_narrow(name)
    after = torch.rand(1)
    build_narrow(name)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(1)
    other = build(name, width=NARROW[name])
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert not any(
        torch.equal(m.weight, scannable_modules(other)[n].weight) for n, m in scannable_modules(a).items()
    )


def test_module_names_are_the_papers():
    small = list(scannable_modules(build_narrow("resnet18")))
    assert small[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert small[5:9] == ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv1"]
    assert small[-1] == "fc"
    wide = list(scannable_modules(build_narrow("wrn34_10", num_classes=7)))
    assert wide[0] == "conv1" and wide[-1] == "fc"
    assert {"block1.layer.3.conv2", "block2.layer.0.convShortcut"} <= set(wide)
    preact = list(scannable_modules(build_narrow("preact_resnet18")))
    assert preact[5:8] == ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0"]
    assert preact[0] == "conv1" and preact[-1] == "linear"
    # At widening factor 1 the first stage keeps its 16 channels and needs no shortcut convolution.
    assert "block1.layer.0.convShortcut" in scannable_modules(build("wrn34_10", width=2))


@pytest.mark.parametrize("name", NARROW)
def test_normalisation_is_exactly_the_textbook_one_and_adds_no_name(name):
    model = build_narrow(name).eval()
    bare = MODELS[name](num_classes=10, in_channels=3, width=NARROW[name]).eval()
    bare.load_state_dict(model.state_dict())  # strict
    x = images()
    by_hand = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    assert torch.equal(model(x), bare(by_hand))
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in bare.named_parameters()]


def test_one_channel_images_of_8_pixels():
    model = build("resnet_small", in_channels=1, image_size=8, mean=(0.3,), std=(0.4,))
    assert model(images(4, channels=1, size=8)).shape == (4, 10)


@pytest.mark.parametrize("name", NARROW)
def test_networks_can_be_traced(name):
    model = build_narrow(name).eval()
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(images()), model(images()))
    assert set(scannable_modules(traced)) == set(scannable_modules(model))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_normalise_and_are_independent(duplicate):
    model = build_narrow("resnet_small").eval()
    twin = duplicate(model)
    assert type(twin) is type(model)
    assert torch.equal(twin(images()), model(images()))
    before = model(images())
    with torch.no_grad():
        twin.fc.weight.zero_()
        twin.normalize.mean.zero_()
    assert torch.equal(model(images()), before)


def test_precision_and_memory_format_follow_the_model():
    model = build_narrow("resnet_small").eval()
    expected = model(images())
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images().to(memory_format=torch.channels_last)), expected)
    double = model.to(torch.float64)
    assert double.normalize.mean.dtype == torch.float64
    assert double(images().double()).dtype == torch.float64


def test_subclassing_leaves_the_backbones_class_alone():
    build_narrow("resnet_small")
    bare = MODELS["resnet_small"](num_classes=10, in_channels=3)
    assert type(bare) is timm.models.resnet.ResNet
    assert not hasattr(bare, "normalize")


@pytest.mark.parametrize("timm_name", ["resnet10t", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_any_timm_network_for_small_images(timm_name):
    model = build("timm", timm_name=timm_name, num_classes=7, in_channels=1, mean=(0.5,), std=(0.25,))
    assert model.training
    model.eval()
    x = images(channels=1)
    bare = timm.create_model(
        timm_name, num_classes=7, in_chans=1, **({"img_size": 32} if "vit" in timm_name else {})
    )
    bare.load_state_dict(model.state_dict())
    assert torch.equal(model(x), bare.eval()((x - 0.5) / 0.25))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "resnet81"}, "did you mean 'resnet18'?"),
        ({"name": "resnet50"}, "model=timm model.name=resnet50"),
        ({"name": "timm"}, "set model.name"),
        ({"name": "timm", "timm_name": "resnet5O"}, "resnet50"),
        ({"name": "timm", "timm_name": "resnet18.a1_in2k"}, "resnet18.a1_in1k"),
        ({"name": "timm", "timm_name": "hf-hub:timm/resnet18"}, "no model 'hf-hub:timm/resnet18'"),
        ({"name": "timm", "timm_name": "inception_v3"}, "3x32x32 images"),
        ({"name": "timm", "timm_name": "resnet10t", "width": 0}, "model.width"),
        ({"name": "resnet18", "timm_name": "resnet50"}, "model.name"),
        ({"name": "resnet18", "pretrained": True}, "model.pretrained"),
        ({"name": "resnet18", "width": 0}, "width 0"),
        ({"name": "resnet18", "width": 5}, "even"),
        ({"name": "wrn34_10", "width": 0}, "widening factor 0"),
        ({"name": "wrn_silu_28_10", "width": 0}, "widening factor 0"),
        ({"name": "preact_resnet18", "width": 0}, "width 0"),
        ({"name": "resnet18", "num_classes": 1}, "two classes"),
        ({"name": "resnet_small", "in_channels": 1}, "dataset.mean"),
        ({"name": "resnet_small", "std": (0.2, 0.0, 0.2)}, "not positive"),
        ({"name": "resnet_small", "mean": (0.2, float("nan"), 0.2)}, "not finite"),
    ],
)
def test_refusals_are_one_sentence(options, said):
    with pytest.raises(UserError) as refusal:
        build(**options)
    message = str(refusal.value)
    assert said in message
    assert "\n" not in message and message.endswith(".")


def test_weights_that_cannot_be_downloaded_are_said_in_one_sentence(monkeypatch):
    def offline(*args, **options):
        raise ConnectionError("No route to host.\nTry again.")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"No route to host\): .*model.pretrained=false\.$"):
        build("timm", timm_name="resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("family", "options", "name"),
    [
        ("resnet18", {}, "resnet18"),
        ("resnet18", {"width": 64}, "resnet18"),
        ("resnet18", {"width": 16}, "resnet18_w16"),
        ("resnet_small", {"width": 16}, "resnet_small"),
        ("wrn34_10", {"width": 10}, "wrn34_10"),
        ("wrn34_10", {"width": 5}, "wrn34_5"),
        ("wrn28_10", {"width": 4}, "wrn28_4"),
        ("wrn70_16", {"width": 16}, "wrn70_16"),
        ("wrn_silu_34_10", {"width": 20}, "wrn_silu_34_20"),
        ("preact_resnet18", {"width": 16}, "preact_resnet18_w16"),
        ("timm", {"timm_name": "resnet18"}, "timm_resnet18"),  # another stem than the paper's
        ("timm", {"timm_name": "resnet18", "pretrained": True}, "timm_resnet18_pretrained"),
    ],
)
def test_networks_that_differ_have_other_names(family, options, name):
    assert network_name(family, **{"timm_name": None, "width": None, "pretrained": False} | options) == name


def test_published_weights_out_of_reach_are_asked_for_once(monkeypatch, tmp_path):
    """The hub's client would try for a minute, and for two kinds of file."""
    asked = []
    timm_models._answers.cache_clear()
    monkeypatch.setattr(timm_models, "is_reachable", lambda url: bool(asked.append(url)))
    monkeypatch.setattr(timm_models.hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"huggingface\.co does not answer: connect once.*pretrained=false"):
        build("timm", timm_name="resnet18", pretrained=True)
    assert asked == [timm_models.hub.ENDPOINT]
    assert timm_models.hub.HF_HUB_OFFLINE is False
    with pytest.raises(UserError, match="does not answer"):  # as the next stage would
        build("timm", timm_name="resnet18", pretrained=True)
    assert len(asked) == 1
    timm_models._answers.cache_clear()


def test_a_plain_sequence_is_normalised_once():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = torch.rand(2, 1, 2, 2)
    expected = layers((images - 0.5) / 0.25)
    assert torch.equal(normalise_first(layers, [0.5], [0.25], 1)(images), expected)
    assert torch.equal(copy.deepcopy(layers)(images), expected)
