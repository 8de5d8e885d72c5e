"""Fine-tuning: what moves, what stays bit for bit, and what each target stands for."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from tiny_jobs import Killed, changed, same_bits, stage_folder, tiny_config, tiny_session

from rift.checkpoint import load_tensors
from rift.data import load_dataset
from rift.errors import UserError
from rift.models import scannable_modules
from rift.resume_point import RESUME
from rift.runtime import batchnorm_layers
from rift.stages import choose_modules, fine_tuning
from rift.store import StageFolder

stage = import_module("rift.stages.fine_tuning")  # the package has a function of that name

AUGMENTATION = {"padding": 1, "padding_mode": "reflect", "flip": True}
MODULE = "layer2.0.conv2"


@pytest.fixture(scope="module")
def session():
    data = load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=150, test_limit=80)
    return tiny_session(data)


@pytest.fixture
def theta_at(session):
    """Weights whose BatchNorm statistics and batch counts are not those of a new network."""
    network = session.new_network()
    torch.manual_seed(1)
    network.train()
    network(torch.rand(64, 1, 8, 8))
    return {name: value.clone() for name, value in network.state_dict().items()}


def options_of(*overrides):
    return tiny_config("stage.finetune.lr=0.05", *overrides).stage.finetune


def tune(session, folder, theta_at, modules, *overrides):
    return fine_tuning(session, folder, options_of(*overrides), theta_at, modules, AUGMENTATION)


def choose(target, top_k, network, ranking=None, **others):
    options = replace(options_of(), target=target, top_k=top_k, target_seed=others.pop("seed", 0))
    return choose_modules(options, network, ranking=ranking, **others)


def buffers_of(session) -> set[str]:
    return {name for name, _ in session.new_network().named_buffers() if not name.startswith("normalize")}


def parameters_of(session) -> set[str]:
    return {name for name, _ in session.new_network().named_parameters()}


# -- what moves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", ["best", "last"])
def test_with_frozen_statistics_nothing_moves_but_the_module(session, tmp_path, theta_at, epoch):
    folder = stage_folder(tmp_path)
    tune(session, folder, theta_at, [MODULE], "stage.finetune.batchnorm=frozen")
    assert changed(theta_at, folder.load(epoch)) == {f"{MODULE}.weight"}


def test_with_training_statistics_every_statistic_moves_too(session, tmp_path, theta_at):
    folder = stage_folder(tmp_path)
    tune(session, folder, theta_at, [MODULE], "stage.finetune.batchnorm=train")
    assert changed(theta_at, folder.load("last")) == {f"{MODULE}.weight"} | buffers_of(session)
    batches = 2 * -(-len(session.dataset.train) // 128)  # two epochs
    before, after = theta_at["bn1.num_batches_tracked"], folder.load("last")["bn1.num_batches_tracked"]
    assert int(after - before) == batches


def test_without_a_module_only_statistics_move(session, tmp_path, theta_at):
    folder = stage_folder(tmp_path)
    result = tune(session, folder, theta_at, [], "stage.finetune.batchnorm=train")
    assert changed(theta_at, folder.load("last")) == buffers_of(session)
    assert result["modules"] == []
    assert [row["lr"] for row in folder.rows()] == [0, 0]


@pytest.mark.parametrize("batchnorm", ["frozen", "train"])
def test_with_all_modules_every_parameter_moves(session, tmp_path, theta_at, batchnorm):
    folder = stage_folder(tmp_path)
    names = list(scannable_modules(session.new_network()))
    tune(session, folder, theta_at, names, f"stage.finetune.batchnorm={batchnorm}")
    expected = parameters_of(session) | (buffers_of(session) if batchnorm == "train" else set())
    assert changed(theta_at, folder.load("last")) == expected


@pytest.mark.parametrize("batchnorm", ["frozen", "train"])
def test_the_result_says_how_far_everything_else_moved(session, tmp_path, theta_at, batchnorm):
    folder = stage_folder(tmp_path)
    result = tune(session, folder, theta_at, [MODULE], f"stage.finetune.batchnorm={batchnorm}")
    tuned = theta_at[f"{MODULE}.weight"].numel()
    for epoch in ("best", "last"):
        leak = result["leak"][epoch]
        assert leak["parameters"] == 0
        assert leak["num_parameters"] == sum(p.numel() for p in session.new_network().parameters()) - tuned
        moved = [
            (folder.load(epoch)[name] - theta_at[name]).double().square().sum()
            for name in buffers_of(session)
            if "running" in name
        ]
        assert leak["statistics"] == pytest.approx(sum(moved).sqrt().item(), rel=1e-6)
        assert (leak["statistics"] > 0) is (batchnorm == "train")


def test_a_leak_would_be_seen(theta_at):
    after = {name: value.clone() for name, value in theta_at.items()}
    after["fc.bias"][0] += 3.0
    after["conv1.weight"][0, 0, 0, 0] += 4.0
    after[f"{MODULE}.weight"] += 1.0
    found = stage.leak(theta_at, after, {f"{MODULE}.weight"})
    assert found["parameters"] == pytest.approx(5.0, rel=1e-6) and found["statistics"] == 0


@pytest.mark.parametrize(
    ("modules", "moving"),
    [
        (["fc"], {"fc.weight", "fc.bias"}),
        (["conv1", "layer3.0.downsample.0"], {"conv1.weight", "layer3.0.downsample.0.weight"}),
    ],
)
def test_several_modules_and_biases(session, tmp_path, theta_at, modules, moving):
    folder = stage_folder(tmp_path)
    result = tune(session, folder, theta_at, modules, "stage.finetune.batchnorm=frozen")
    assert changed(theta_at, folder.load("last")) == moving
    assert result["modules"] == modules


def test_the_weights_given_are_left_alone(session, tmp_path, theta_at):
    before = {name: value.clone() for name, value in theta_at.items()}
    tune(session, stage_folder(tmp_path), theta_at, [MODULE], "stage.finetune.batchnorm=train")
    assert same_bits(before, theta_at)


def test_the_first_step_is_sgd_on_clean_cross_entropy(session, tmp_path, theta_at):
    """One batch of the whole set, no augmentation: the update is −lr (∇L + λθ), computed here by hand."""
    options = options_of(
        "stage.finetune.epochs=1", "stage.finetune.batch_size=500", "stage.finetune.batchnorm=frozen"
    )
    folder = stage_folder(tmp_path)
    plain = {"padding": 0, "padding_mode": "zeros", "flip": False}
    fine_tuning(session, folder, options, theta_at, [MODULE], plain)
    network = session.network(theta_at)
    train = session.dataset.train
    torch.nn.functional.cross_entropy(network(train.images / 255), train.labels).backward()
    weight = network.get_submodule(MODULE).weight
    expected = weight - options.lr * (weight.grad + options.weight_decay * weight)
    found = folder.load("last")[f"{MODULE}.weight"]
    moved = (found - weight.detach()).abs().max()
    assert (found - expected).abs().max() < 1e-4 * moved


# -- which epoch, and going on ------------------------------------------------------------------------


def test_the_best_epoch_is_the_first_of_the_most_accurate_and_stays_so_after_reload(
    session, tmp_path, theta_at
):
    folder = stage_folder(tmp_path)
    everything = list(scannable_modules(session.new_network()))
    overrides = "stage.finetune.epochs=5", "stage.finetune.batchnorm=train", "stage.finetune.lr=0.3"
    result = tune(session, folder, theta_at, everything, *overrides)
    rows = folder.rows()
    assert result["best"] == max(rows, key=lambda row: (row["clean_accuracy"], -row["epoch"]))
    assert result["last"] == rows[-1]
    assert len({row["clean_accuracy"] for row in rows}) > 1, "nothing to choose from"
    test = session.dataset.test
    for name in ("best", "last"):
        with torch.no_grad():
            right = session.network(folder.load(name))(test.images / 255).argmax(1) == test.labels
        assert right.double().mean().item() == result[name]["clean_accuracy"]


@pytest.mark.parametrize("modules", [[MODULE], []], ids=["module", "statistics alone"])
def test_interrupted_and_continued_it_is_as_if_undisturbed(session, tmp_path, monkeypatch, theta_at, modules):
    overrides = "stage.finetune.epochs=3", "stage.finetune.milestones=[2]", "stage.finetune.batchnorm=train"
    undisturbed = stage_folder(tmp_path / "undisturbed")
    tune(session, undisturbed, theta_at, modules, *overrides)
    real = StageFolder.save_resume_point

    def dying(self, tensors, note):
        real(self, tensors, note)
        self.settle()  # it is written in the background
        if note["next_epoch"] == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StageFolder, "save_resume_point", dying)
        tune(session, stage_folder(tmp_path / "killed"), theta_at, modules, *overrides)
    continued = stage_folder(tmp_path / "killed")
    tune(session, continued, theta_at, modules, *overrides)
    assert continued.resumed
    for name in ("best", "last"):
        assert same_bits(undisturbed.load(name), continued.load(name))
    points = []
    for folder in (undisturbed, continued):
        folder.settle()
        points.append(load_tensors(folder.path / RESUME)[0])
    assert same_bits(*points)
    assert len(continued.rows()) == 3


def test_frozen_statistics_are_frozen_in_every_layer(session, tmp_path, theta_at, monkeypatch):
    """The forward passes use the stored statistics, not the batch's."""
    seen = []

    def observed(images, labels):
        seen.append([layer.training for layer in batchnorm_layers(training_network[0])])
        return real(images, labels)

    real = stage.F.cross_entropy
    training_network = []
    original = stage.Training

    def recording(folder, network, *others):
        training_network.append(network)
        return original(folder, network, *others)

    monkeypatch.setattr(stage, "Training", recording)
    monkeypatch.setattr(stage.F, "cross_entropy", observed)
    tune(session, stage_folder(tmp_path), theta_at, [MODULE], "stage.finetune.batchnorm=frozen")
    assert len(seen) == 4 and not any(any(flags) for flags in seen)


# -- targets ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(session):
    return session.new_network()


@pytest.fixture(scope="module")
def names(network):
    return list(scannable_modules(network))


def test_targets_by_rank(network, names):
    ranking = names[::-1]  # the classifier least critical, the stem most
    assert names[0] == "conv1" and names[-1] == "fc"
    assert choose("least_critical", 1, network, ranking) == ["fc"]
    assert choose("most_critical", 1, network, ranking) == ["conv1"]
    # In network order, whatever their rank.
    assert choose("top_k", 3, network, ranking) == names[-3:]
    assert choose("top_k", len(names), network, ranking) == names


def test_targets_by_name_need_no_ranking(network, names):
    assert choose("none", 1, network, None) == []
    assert choose("all", 1, network, None) == names
    assert choose("last_layer", 1, network, None) == ["fc"]
    for name in names:
        assert choose(name, 1, network, None) == [name]


def test_a_ranking_of_some_modules_is_enough(network):
    """Where the scan excluded modules, targets speak of those that were ranked."""
    assert choose("most_critical", 1, network, ["fc", "conv1"]) == ["conv1"]
    with pytest.raises(UserError, match=r"top_k=3, but only 2 modules are scanned"):
        choose("top_k", 3, network, ["fc", "conv1"])


def test_chance_draws_as_many_modules_as_the_comparison_has(network, names):
    drawn = [choose("random", 5, network, seed=seed) for seed in range(40)]
    assert all(len(modules) == 1 for modules in drawn)
    assert len({*map(tuple, drawn)}) > len(names) / 2  # not always the same ones
    assert drawn == [choose("random", 5, network, seed=seed) for seed in range(40)]
    together = choose("random_k", 4, network, seed=3)
    assert len(set(together)) == 4 and together == [name for name in names if name in together]
    assert set(drawn[3]) < set(together)


def test_chance_draws_from_what_is_scanned(network, names):
    def scans(name):
        return name.startswith("layer1")

    drawn = {choose("random", 1, network, scans=scans, seed=seed)[0] for seed in range(40)}
    assert drawn == {name for name in names if scans(name)}
    with pytest.raises(UserError, match=r"top_k=9, but only 2 modules are scanned"):
        choose("random_k", 9, network, scans=scans)


def test_an_unknown_module_is_told_its_nearest(network):
    near = r"layer2\.0\.conv3 is no module .*did you mean 'layer2\.0\.conv"
    with pytest.raises(UserError, match=near) as error:
        choose("layer2.0.conv3", 1, network, None)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="did you mean 'least_critical'"):
        choose("least_crital", 1, network, None)


def test_a_batchnorm_layer_is_no_module(network):
    with pytest.raises(UserError, match=r"bn1 is no module"):
        choose("bn1", 1, network, None)
