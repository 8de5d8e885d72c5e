"""`import rift`: the four steps on anybody's network."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import textbook
import torch
import torch.nn.functional as F
from tiny_jobs import config_of, same_bits, stage_folder, tiny_session
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rift
from rift.attacks import random_start
from rift.config import AttackConfig, RuntimeConfig
from rift.method_options import MethodConfig
from rift.randomness import permutation
from rift.stage_options import StageConfig
from rift.stages import mrc_scan

ROOT = Path(__file__).resolve().parent.parent
SCAN = rift.MRCConfig(epochs=2, batch_size=20, lr=0.1)


class Plain(nn.Module):
    """A network of no library, with its normalisation inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2))
        self.head = nn.Linear(54, 10)

    def forward(self, images):
        return self.head(F.relu(self.block(self.norm(self.first((images - 0.3) / 0.4)))).flatten(1))


class Branching(Plain):
    """The same layers; which way an image goes depends on the image."""

    def forward(self, images):
        bright = [float(image.detach().mean()) > 0.5 for image in images]
        turned = torch.stack([1 - i if b else i for i, b in zip(images, bright, strict=True)])
        return super().forward(turned)


def seeded(kind, seed=0):
    torch.manual_seed(seed)
    network = kind()
    network.norm.running_mean.normal_(0, 0.3)
    network.norm.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture
def images():
    return torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.randint(10, (40,), generator=torch.Generator().manual_seed(2))


def test_importing_costs_nothing():
    code = "import rift, sys; assert not {'torch', 'pandas', 'hydra'} & set(sys.modules); print(*dir(rift))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(rift.__all__) <= set(done.stdout.split())
    with pytest.raises(AttributeError, match="no attribute 'atack'"):
        rift.atack  # noqa: B018


def test_every_name_is_there():
    assert all(getattr(rift, name).__doc__ for name in rift.__all__)


def test_what_is_installed_has_all_packages_and_the_mark_of_types():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "rift").rglob("__init__.py")
        if "conf" not in path.parts
    }
    assert found == set(setup["packages"]) - {"rift.conf"}
    assert setup["package-data"]["rift"] == ["py.typed"] and (ROOT / "rift/py.typed").is_file()


def test_options_made_by_hand_are_the_papers():
    config = config_of("protocol=paper", "stage=rift")
    for group, kind in {
        "stage": StageConfig,
        "attack": AttackConfig,
        "method": MethodConfig,
        "runtime": RuntimeConfig,
    }.items():
        assert asdict(getattr(config, group)) == asdict(kind())
    attack = asdict(rift.Attack())
    assert (attack["epsilon"], attack["step_size"], attack["steps"]) == (8 / 255, 2 / 255, 10)


# -- attack ----------------------------------------------------------------------------------------


def test_attack_on_a_linear_network_goes_to_the_corner(images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    labels = torch.zeros(40, dtype=torch.long)
    weight = network[1].weight.detach()
    corner = (weight[1] - weight[0]).sign().view(1, 1, 8, 8)
    found = rift.attack(network, images, labels, epsilon=0.1)
    assert torch.allclose(found, (images + 0.1 * corner).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("kind", [Plain, Branching])
def test_attack_is_the_textbooks(kind, images, labels, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rift"), "propagate", True)
    network = seeded(kind)
    attack = rift.Attack(epsilon=0.1, step_size=0.05, steps=3)
    start = random_start(images, torch.arange(40), ("attack start", 5), attack)
    expected = textbook.pgd(copy.deepcopy(network), images, labels, start, 0.1, 0.05, 3)
    found = rift.attack(network, images, labels, attack=attack, seed=5)
    # A gradient of almost nothing may have either sign.
    assert torch.isclose(found, expected, atol=1e-5).double().mean() > 0.99
    assert ("cannot be traced" in caplog.text) == (kind is Branching)


def test_attack_of_a_loader_is_that_of_its_tensors(images, labels):
    network = seeded(Plain)
    whole = rift.attack(network, images, labels, epsilon=0.1)
    loaded = rift.attack(
        network, DataLoader(TensorDataset(images, labels.int()), 7), batch_size=16, epsilon=0.1
    )
    assert torch.allclose(loaded.tensors[0], whole, atol=1e-5)
    assert torch.equal(loaded.tensors[1], labels)


# -- the scan --------------------------------------------------------------------------------------


def test_the_scan_is_the_stages(digits, tmp_path):
    split = digits.train
    options = rift.MRCConfig(epochs=2, batch_size=32, lr=0.1, max_images=60)
    attack = rift.Attack(epsilon=0.1, step_size=0.025)
    session = tiny_session(digits, seed=3, batch_size=50)
    network = session.new_network()
    stage = mrc_scan(session, stage_folder(tmp_path), options, network.state_dict(), attack)
    found = rift.mrc_scan(
        network.train(), split.images / 255, split.labels, epsilon=0.1, options=options, seed=3, batch_size=50
    )
    assert found["mrc"].tolist() == [row["mrc"] for row in stage["modules"]]  # to the last bit
    assert found["module"].tolist() == [row["module"] for row in stage["modules"]]
    assert found["rank"].tolist() == [row["rank"] for row in stage["modules"]]
    assert found.least_critical == stage["ranking"][0] and found.most_critical == stage["ranking"][-1]
    assert found.attrs["robust_loss"] == stage["robust_loss"] and found.attrs["fallbacks"] == []


@pytest.mark.parametrize("kind", [Plain, Branching])
def test_the_scan_is_the_textbooks(kind, images, labels):
    network, attack = seeded(kind), rift.Attack(epsilon=0.1, steps=1, step_size=0.1)
    found = rift.mrc_scan(network, images, labels, attack=attack, options=SCAN)
    order = permutation(("scan order", 0), 40)
    start = random_start(images, torch.arange(40), ("scan start", 0), attack)
    made = textbook.pgd(copy.deepcopy(network), images, labels, start, 0.1, 0.1, 1)[order]
    batches = list(textbook.fixed_batches(made, labels[order], 20))
    for row in found.itertuples():
        mrc, drop = textbook.mrc(
            copy.deepcopy(network),
            row.module,
            batches,
            lr=0.1,
            epsilon_w=0.1,
            epochs=2,
            stop=True,
            worst=False,
        )
        assert row.mrc == pytest.approx(mrc, abs=1e-4) and row.drop == pytest.approx(drop, abs=0.026)
    assert found["module"].tolist() == ["first", "block.1", "head"]
    whole = any("cannot be traced" in note for note in found.attrs["fallbacks"])
    assert whole == (kind is Branching)


def test_a_ranking_stays_one():
    ranking = rift.Ranking(
        {"module": ["a", "b", "c"], "mrc": [2.0, 1.0, 3.0], "drop": 0.0, "rank": [2, 1, 3]}
    )
    assert ranking.least_critical == "b" and ranking.most_critical == "c"
    assert ranking.sort_values("mrc")[1:].least_critical == "a"
    assert ranking[ranking["module"] != "b"].copy().least_critical == "a"
    assert pickle.loads(pickle.dumps(ranking)).least_critical == "b"
    twice = ranking.set_axis([0, 0, 0])
    assert twice.least_critical == "b"
    with pytest.raises(ValueError, match="without the columns mrc"):
        _ = ranking[["module"]].least_critical
    with pytest.raises(ValueError, match="without any row"):
        _ = ranking[:0].least_critical


# -- fine-tuning -----------------------------------------------------------------------------------


def plain_sgd(network, module, epochs, lr, options):
    network.eval()
    parameters = list(network.get_submodule(module).parameters())
    optimizer = torch.optim.SGD(parameters, lr, momentum=options.momentum, weight_decay=options.weight_decay)
    for batch, targets in [pair for _ in range(epochs) for pair in BATCHES]:
        optimizer.zero_grad()
        F.cross_entropy(network(batch), targets).backward()
        optimizer.step()
    return network


BATCHES = [
    (torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(n)), torch.arange(n, n + 8) % 10)
    for n in range(3)
]


def test_fine_tuning_moves_one_module_as_plain_sgd_does():
    network, options = seeded(Plain), rift.FinetuneConfig(epochs=2, lr=0.05)
    expected = plain_sgd(copy.deepcopy(network), "block.1", 2, 0.05, options)
    tuned = rift.fine_tune(network, BATCHES, module="block.1", options=options)
    for name, value in tuned.state_dict().items():
        if name.startswith("block.1."):
            assert torch.allclose(value, expected.state_dict()[name], atol=1e-6)
            assert not torch.equal(value, network.state_dict()[name])
        else:
            assert torch.equal(value, network.state_dict()[name])


def test_the_only_layer_moves_alone():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    tuned = rift.fine_tune(network, BATCHES, module="2", options=rift.FinetuneConfig(epochs=1, lr=0.5))
    moved = {n for n, v in tuned.state_dict().items() if not torch.equal(v, network.state_dict()[n])}
    assert moved == {"2.weight", "2.bias"}


def test_fine_tuning_in_place_and_the_best_epoch(images, labels):
    network = seeded(Plain)
    options = rift.FinetuneConfig(epochs=3, lr=0.1)
    # The images of the selection are classified rightly before training alone.
    right = network(images).argmax(dim=1)
    wrong = (right + labels % 9 + 1) % 10
    kept = rift.fine_tune(network, images, wrong, module="head", options=options, selection=(images, right))
    last = rift.fine_tune(network, images, wrong, module="head", options=options)
    agreeing = [float((n(images).argmax(dim=1) == right).double().mean()) for n in (kept, last)]
    assert agreeing[0] >= agreeing[1]
    assert rift.fine_tune(network, images, wrong, module="head", options=options, inplace=True) is network
    assert same_bits(network.state_dict(), last.state_dict())


# -- interpolation ---------------------------------------------------------------------------------


def test_interpolation_between_its_ends(images):
    network = seeded(Plain)
    tuned = copy.deepcopy(network)
    tuned.head.bias.data += torch.arange(10) / 2.0
    labels = tuned(images).argmax(dim=1)
    best, curve = rift.interpolate(network, tuned, images, labels, tolerance=1.0, epsilon=0.05)
    assert list(curve.columns) == ["alpha", "clean", "robust"] and len(curve) == 11
    assert curve["clean"].iloc[-1] == 1.0 and curve.attrs["alpha"] < 1.0 + 1e-9
    at_zero = (network(images).argmax(dim=1) == labels).double().mean().item()
    assert curve["clean"].iloc[0] == pytest.approx(at_zero)
    chosen = (best(images).argmax(dim=1) == labels).double().mean().item()
    assert chosen == curve["clean"].max()
    alpha = curve.attrs["alpha"]
    assert torch.allclose(best.head.bias, torch.lerp(network.head.bias, tuned.head.bias, alpha))
    # Nothing may be lost: of a network that only gets worse, the first is the best.
    first, _ = rift.interpolate(network, tuned, images, network(images).argmax(dim=1), tolerance=0.0)
    assert same_bits(first.state_dict(), network.state_dict())


# -- what is left as it was ------------------------------------------------------------------------


def test_networks_and_generators_are_left_as_they_were(images, labels):
    network = seeded(Branching).train()
    network.norm.eval()
    network.first.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    modes = {name: module.training for name, module in network.named_modules()}
    strides = {name: value.stride() for name, value in network.named_parameters()}
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    rift.attack(network, images, labels)
    rift.mrc_scan(network, images, labels, options=SCAN)
    tuned = rift.fine_tune(network, BATCHES, module="head", options=rift.FinetuneConfig(epochs=1))
    best, _ = rift.interpolate(network, tuned, images, labels, options=rift.InterpolateConfig(points=2))
    assert same_bits(network.state_dict(), before)
    for made in (network, tuned, best):
        assert {name: module.training for name, module in made.named_modules()} == modes
        assert {n for n, p in made.named_parameters() if not p.requires_grad} == {"first.weight"}
        assert {name: value.stride() for name, value in made.named_parameters()} == strides
        assert all(parameter.grad is None for parameter in made.parameters())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == generators[1:]


# -- mistakes --------------------------------------------------------------------------------------

IMAGES, LABELS = torch.full((4, 1, 8, 8), 0.5), torch.arange(4)
MISTAKES = {
    "outside [0, 1] (from -1 to -1)": lambda n: rift.attack(n, IMAGES - 1.5, LABELS),
    "outside [0, 1] (from nan": lambda n: rift.attack(n, IMAGES * float("nan"), LABELS),
    "images.float() / 255": lambda n: rift.attack(n, IMAGES.byte(), LABELS),
    "shape (1, 8, 8): give (N, C, H, W)": lambda n: rift.attack(n, IMAGES[0], LABELS),
    "images are a ndarray": lambda n: rift.attack(n, [(IMAGES.numpy(), LABELS)]),
    "labels have the shape (3,) beside 4": lambda n: rift.attack(n, IMAGES, LABELS[:3]),
    "labels.long()": lambda n: rift.attack(n, IMAGES, LABELS.float()),
    "labels go from 9 to 12, but the model has 10": lambda n: rift.mrc_scan(n, IMAGES, LABELS + 9),
    "labels are missing": lambda n: rift.mrc_scan(n, IMAGES),
    "batches have to be pairs": lambda n: rift.attack(n, DataLoader(IMAGES)),
    "gives no batch": lambda n: rift.attack(n, []),
    "does not take images of (3, 8, 8)": lambda n: rift.attack(n, IMAGES.expand(-1, 3, -1, -1), LABELS),
    "give model.float()": lambda n: rift.attack(n.double(), IMAGES, LABELS),
    "give a torch.nn.Module": lambda n: rift.attack(n.forward, IMAGES, LABELS),
    "epsilon=8 is more than a pixel's range": lambda n: rift.attack(n, IMAGES, LABELS, epsilon=8),
    "both given": lambda n: rift.attack(n, IMAGES, LABELS, epsilon=0.1, attack=rift.Attack()),
    "no module of this network: did you mean 'block.1'?": lambda n: rift.fine_tune(
        n, BATCHES, module="blok.1"
    ),
    "module=block is a Sequential": lambda n: rift.fine_tune(n, BATCHES, module="block"),
    "module=norm is a BatchNorm2d": lambda n: rift.fine_tune(n, BATCHES, module="norm"),
    "not an iterator": lambda n: rift.fine_tune(n, iter(BATCHES), module="head"),
    "options.target=random is of the command line": lambda n: rift.fine_tune(
        n, BATCHES, module="head", options=rift.FinetuneConfig(target="random")
    ),
    "options.lr=-1": lambda n: rift.fine_tune(
        n, BATCHES, module="head", options=rift.FinetuneConfig(lr=-1.0)
    ),
    "options are a MRCConfig": lambda n: rift.fine_tune(n, BATCHES, module="head", options=SCAN),
    "lower options.lr": lambda n: rift.fine_tune(
        n, BATCHES, module="head", options=rift.FinetuneConfig(lr=1e30)
    ),
    "options.tolerance=-1": lambda n: rift.interpolate(n, n, IMAGES, LABELS, tolerance=-1.0),
    "another network": lambda n: rift.interpolate(n, nn.Linear(1, 1), IMAGES, LABELS),
    "no convolution or linear layer to scan": lambda n: rift.mrc_scan(nn.Flatten(), IMAGES, LABELS),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_are_one_sentence(sentence):
    with pytest.raises(ValueError) as raised:
        MISTAKES[sentence](seeded(Plain))
    assert type(raised.value) is rift.UserError
    assert sentence in str(raised.value) and "\n" not in str(raised.value)
    assert "stage." not in str(raised.value)
