"""Weights of other programs' networks, written here from their descriptions: same logits, or a refusal."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rift.errors import UserError
from rift.models import Images, build_model, load_foreign_checkpoint

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def conv(inside, outside, size=3, stride=1, padding=None):
    padding = size // 2 if padding is None else padding
    return nn.Conv2d(inside, outside, size, stride, padding, bias=False)


class RicePreAct(nn.Module):
    """PreActResNet18 of Rice et al., Bag-of-Tricks and RobustBench; `first_form` is Wong et al.'s."""

    def __init__(self, width=4, first_form=False):
        super().__init__()
        self.first_form, self.strides = first_form, {}
        self.conv1, inside = conv(3, width), width
        for stage in range(4):
            blocks, outside = [], width * 2**stage
            for number in range(2):
                stride = 2 if stage and not number else 1
                block = nn.ModuleDict(
                    {
                        "bn1": nn.BatchNorm2d(inside),
                        "conv1": conv(inside, outside, stride=stride),
                        "bn2": nn.BatchNorm2d(outside),
                        "conv2": conv(outside, outside),
                    }
                )
                if stride == 2:
                    block["shortcut"] = nn.Sequential(conv(inside, outside, 1, stride))
                blocks.append(block)
                inside = outside
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        if not first_form:
            self.bn = nn.BatchNorm2d(inside)
        self.linear = nn.Linear(inside, 10)

    def forward(self, x):
        x = self.conv1(x)
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            active = F.relu(block["bn1"](x))
            branch = block["conv2"](F.relu(block["bn2"](block["conv1"](active))))
            if "shortcut" in block:
                x = block["shortcut"](x if self.first_form else active)
            x = x + branch
        x = x if self.first_form else F.relu(self.bn(x))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


class TradesWide(nn.Module):
    """The WRN of TRADES, Bag-of-Tricks and RobustBench, with the copy of the first stage that some have."""

    def __init__(self, depth=28, width=1, copy=False):
        super().__init__()
        self.conv1, inside = conv(3, 16), 16
        for stage in range(3):
            outside = 16 * width * 2**stage
            if copy and stage == 0:
                self.sub_block1 = self.stage(depth, inside, outside, 1)
            self.add_module(f"block{stage + 1}", self.stage(depth, inside, outside, 2 if stage else 1))
            inside = outside
        self.bn1, self.fc = nn.BatchNorm2d(inside), nn.Linear(inside, 10)

    @staticmethod
    def stage(depth, inside, outside, stride):
        blocks = []
        for number in range((depth - 4) // 6):
            first = number == 0
            a = inside if first else outside
            block = nn.ModuleDict({"bn1": nn.BatchNorm2d(a), "bn2": nn.BatchNorm2d(outside)})
            block["conv1"] = conv(a, outside, stride=stride if first else 1)
            block["conv2"] = conv(outside, outside)
            if a != outside:
                block["convShortcut"] = conv(a, outside, 1, stride)
            blocks.append(block)
        return nn.ModuleDict({"layer": nn.Sequential(*blocks)})

    def forward(self, x):
        x = self.conv1(x)
        for stage in (self.block1, self.block2, self.block3):
            for block in stage["layer"]:
                active = F.relu(block["bn1"](x))
                branch = block["conv2"](F.relu(block["bn2"](block["conv1"](active))))
                x = branch + (block["convShortcut"](active) if "convShortcut" in block else x)
        return self.fc(F.avg_pool2d(F.relu(self.bn1(x)), 8).flatten(1))


class GowalWide(nn.Module):
    """RobustBench's WRN of Gowal et al.: SiLU, "same" padding as TensorFlow does it, mean and std inside."""

    def __init__(self, depth=28, width=1, mean=MEAN, std=STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.init_conv, stages, inside = conv(3, 16), [], 16
        for stage in range(3):
            blocks, outside = [], 16 * width * 2**stage
            for number in range((depth - 4) // 6):
                stride = 2 if stage and not number else 1
                block = nn.ModuleDict({"batchnorm_0": nn.BatchNorm2d(inside)})
                block["conv_0"] = conv(inside, outside, stride=stride, padding=0)
                block["batchnorm_1"] = nn.BatchNorm2d(outside)
                block["conv_1"] = conv(outside, outside)
                if inside != outside:
                    block["shortcut"] = conv(inside, outside, 1, stride)
                blocks.append(block)
                inside = outside
            stages.append(nn.ModuleDict({"block": nn.Sequential(*blocks)}))
        self.layer = nn.Sequential(*stages)
        self.batchnorm, self.logits = nn.BatchNorm2d(inside), nn.Linear(inside, 10)

    def forward(self, x):
        x = self.init_conv((x - self.mean) / self.std)
        for stage in self.layer:
            for block in stage["block"]:
                active = F.silu(block["batchnorm_0"](x))
                around = (0, 1, 0, 1) if block["conv_0"].stride == (2, 2) else (1, 1, 1, 1)
                out = block["conv_0"](F.pad(active, around))
                out = block["conv_1"](F.silu(block["batchnorm_1"](out)))
                x = out + (block["shortcut"](active) if "shortcut" in block else x)
        return self.logits(F.avg_pool2d(F.silu(self.batchnorm(x)), 8).flatten(1))


class Normalised(nn.Module):
    """RobustBench's way to normalise: buffers `mu` and `sigma`; the network under a name, if it has one."""

    def __init__(self, model):
        super().__init__()
        self.register_buffer("mu", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor(STD).view(1, 3, 1, 1))
        self.model = model

    def forward(self, x):
        return self.model((x - self.mu) / self.sigma)


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def under_a_key(key, net, **others):
    return {key: prefixed("module.", net.state_dict()), **others}


def bare(state):
    return {name.removeprefix("model."): value for name, value in state.items()}


# As these programs save: the normalisation in the file or not, and where in it the weights are.
LAYOUTS = {
    "robustbench": lambda net: bare(Normalised(net).state_dict()),
    "robustbench, as a wrapper": lambda net: {"state_dict": Normalised(net).state_dict()},
    "robust_overfitting": lambda net: prefixed("module.", net.state_dict()),
    "bag of tricks": lambda net: under_a_key("state_dict", net, test_robust_acc=0.5),
    "RiFT": lambda net: under_a_key("net", net, acc=0.8, epoch=109),
    "sequential": lambda net: {"model_state_dict": prefixed("module.1.", net.state_dict())},
}


def trained(network, shaken):
    torch.manual_seed(1)
    return shaken(network).double().eval()


def loaded(tmp_path, content, model, **options):
    options = {"mean": MEAN, "std": STD, "width": 1} | options
    torch.save(content, tmp_path / "weights.pt")
    network = build_model(model, num_classes=10, **options).double()
    notes = load_foreign_checkpoint(network, tmp_path / "weights.pt")
    return network.eval(), notes


def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def assert_same_logits(ours, theirs):
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("make", "model", "width"),
    [(RicePreAct, "preact_resnet18", 4), (lambda: TradesWide(copy=True), "wrn28_10", 1)],
    ids=["preact", "wrn"],
)
def test_the_same_network_gives_the_same_logits(tmp_path, shaken, layout, make, model, width):
    theirs = trained(make(), shaken)
    ours, notes = loaded(tmp_path, LAYOUTS[layout](theirs), model, width=width)
    assert_same_logits(ours, Normalised(theirs).double())
    agreeing = [note for note in notes if "agrees with the model's own normalisation" in note]
    assert len(agreeing) == (2 if layout.startswith("robustbench") else 0)


@pytest.mark.parametrize(("depth", "model"), [(34, "wrn34_10"), (70, "wrn70_16")])
def test_other_depths(tmp_path, shaken, depth, model):
    theirs = trained(TradesWide(depth, width=2), shaken)
    ours, _ = loaded(tmp_path, theirs.state_dict(), model, width=2)
    assert_same_logits(ours, Normalised(theirs).double())


@pytest.mark.parametrize("depth", [28, 70])
def test_the_silu_network_of_gowal(tmp_path, shaken, depth):
    theirs = trained(GowalWide(depth, width=2), shaken)
    model = "wrn_silu_28_10" if depth == 28 else "wrn_silu_70_16"
    ours, notes = loaded(tmp_path, prefixed("module.", theirs.state_dict()), model, width=2)
    assert_same_logits(ours, theirs)
    assert any("'module.mean'" in note or "'mean'" in note for note in notes)


def test_a_network_that_takes_images_as_they_are(tmp_path, shaken):
    theirs = trained(TradesWide(), shaken)
    ours, _ = loaded(tmp_path, theirs.state_dict(), "wrn28_10", mean=(0.0,) * 3, std=(1.0,) * 3)
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize(
    ("make", "model", "advice"),
    [
        (lambda: RicePreAct(first_form=True), "preact_resnet18", "it is a pre-activation ResNet18 without a"),
        (RicePreAct, "resnet18", "choose model=preact_resnet18 model.width=4, whose form it has."),
        (TradesWide, "wrn34_10", "choose model=wrn28_10 model.width=1, whose form it has."),
        (TradesWide, "wrn_silu_28_10", "choose model=wrn28_10 model.width=1, whose form it has."),
        (GowalWide, "wrn28_10", "choose model=wrn_silu_28_10 model.width=1, whose form it has."),
        (
            lambda: GowalWide(106),
            "wrn28_10",
            "it is a wide ResNet 106-1 with SiLU, which is no choice of model.",
        ),
        (lambda: TradesWide(40), "wrn28_10", "it is a wide ResNet 40-1, which is no choice of model."),
    ],
)
def test_another_form_is_named(tmp_path, make, model, advice):
    with pytest.raises(UserError) as refusal:
        loaded(tmp_path, prefixed("module.", make().state_dict()), model, width=2)
    assert advice in str(refusal.value) and "\n" not in str(refusal.value)


CIFAR = {"cifar10": (3, 10), "cifar100": (3, 100), "digits": (1, 10)}


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (
            {"name": "resnet18", "width": 8},
            "it takes 3 channels and knows 10 classes where digits has 1 and 10; choose model=resnet18 "
            "model.width=8, whose form it has, and the data set that it was trained on (dataset=cifar10?).",
        ),
        (
            {"name": "resnet_small", "width": 4, "num_classes": 100},
            "where digits has 1 and 10; choose the data set that it was trained on (dataset=cifar100?).",
        ),
        (
            {"name": "resnet_small", "width": 8, "num_classes": 7, "in_channels": 1},
            "it takes 1 channel and knows 7 classes where digits has 1 and 10; choose model=resnet_small "
            "model.width=8, whose form it has, and the data set that it was trained on.",
        ),
        (
            {"name": "resnet_small", "width": 4, "num_classes": 7, "in_channels": 1},
            "is for 7 classes but digits has 10: choose the data set that it was trained on, or another",
        ),
        (
            {"name": "wrn_silu_28_10", "width": 1},
            "it takes 3 channels and knows 10 classes where digits has 1 and 10; choose model=wrn_silu_28_10 "
            "model.width=1, whose form it has, and",
        ),
        (
            {"name": "resnet_small", "width": 8, "in_channels": 1},
            "; choose model=resnet_small model.width=8,",
        ),
        ({"name": "timm", "timm_name": "mobilenetv3_small_050"}, "it takes 3 channels and knows 10 classes"),
    ],
)
def test_images_and_classes_that_weights_are_for_are_told(tmp_path, theirs, said):
    channels = theirs.get("in_channels", 3)
    options = {"num_classes": 10, **theirs, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    torch.save(build_model(**options).state_dict(), tmp_path / "weights.pt")
    ours = build_model(
        "resnet_small", num_classes=10, in_channels=1, image_size=8, mean=[0.3], std=[0.4], width=4
    )
    with pytest.raises(UserError) as refusal:
        load_foreign_checkpoint(ours, tmp_path / "weights.pt", Images("digits", CIFAR))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert ("where digits" in str(refusal.value)) == ("where digits" in said or "channels and" in said)


def test_a_copy_with_an_entry_missing_is_not_sent_to_its_own_model(tmp_path):
    state = TradesWide().state_dict()
    del state["fc.bias"]
    with pytest.raises(UserError, match=r"\(first 'fc.bias'\); choose the model and model.width that it was"):
        loaded(tmp_path, state, "wrn28_10")


def test_another_normalisation_is_said_with_its_options(tmp_path):
    state = GowalWide(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)).state_dict()
    with pytest.raises(UserError) as refusal:
        loaded(tmp_path, state, "wrn_silu_28_10")
    options = "'dataset.mean=[0.5071, 0.4865, 0.4409]' 'dataset.std=[0.2673, 0.2564, 0.2762]'"
    assert str(refusal.value).endswith(f"set {options}.")
