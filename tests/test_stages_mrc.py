"""The scan as a stage: which modules, which images, the ranking, and going on after a crash."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from tiny_jobs import Killed, same_bits, stage_folder, tiny_config, tiny_session

from rift.attacks import Attack
from rift.data import load_dataset
from rift.errors import UserError
from rift.models import scannable_modules
from rift.stages import mrc_scan
from rift.store import StageFolder

stage = import_module("rift.stages.mrc_scan")

ATTACK = Attack(
    norm="linf", epsilon=0.1, step_size=0.05, steps=2, random_start=True, keep="last", batchnorm="eval"
)


@pytest.fixture(scope="module")
def session():
    data = load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=120, test_limit=60)
    return tiny_session(data)


@pytest.fixture(scope="module")
def theta_at(session):
    return {name: value.clone() for name, value in session.new_network().state_dict().items()}


def options_of(*overrides):
    return tiny_config(*overrides).stage.mrc


def scan(session, folder, theta_at, *overrides):
    return mrc_scan(session, folder, options_of(*overrides), theta_at, ATTACK)


@pytest.fixture(scope="module")
def scanned(session, theta_at, tmp_path_factory):
    folder = stage_folder(tmp_path_factory.mktemp("scan"))
    return folder, scan(session, folder, theta_at)


def test_every_convolution_and_linear_layer_is_scanned_in_network_order(session, scanned):
    folder, result = scanned
    names = [row["module"] for row in result["modules"]]
    assert names == list(scannable_modules(session.new_network()))
    assert "layer2.0.downsample.0" in names and names[-1] == "fc"
    assert [row["module"] for row in folder.rows()] == names
    assert [row["index"] for row in folder.rows()] == list(range(len(names)))


def test_other_batches_in_every_epoch_give_another_scan_and_the_same_again(
    session, theta_at, tmp_path, scanned
):
    first, second = (
        scan(session, stage_folder(tmp_path / name), theta_at, "stage.mrc.shuffle=true", "stage.mrc.epochs=2")
        for name in ("a", "b")
    )
    assert first == second
    fixed = scan(
        session, stage_folder(tmp_path / "c"), theta_at, "stage.mrc.shuffle=false", "stage.mrc.epochs=2"
    )
    assert [row["mrc"] for row in fixed["modules"]] != [row["mrc"] for row in first["modules"]]


def test_the_ranking_is_by_mrc_and_ranks_count_from_one(scanned):
    _, result = scanned
    by_mrc = sorted(result["modules"], key=lambda row: row["mrc"])
    assert result["ranking"] == [row["module"] for row in by_mrc]
    assert [row["rank"] for row in by_mrc] == list(range(1, len(by_mrc) + 1))
    assert len({row["mrc"] for row in by_mrc}) > 5, "all modules alike: the ranking shows nothing"


def test_every_perturbation_lies_in_its_ball(scanned):
    _, result = scanned
    assert all(0 < row["relative_norm"] <= 0.1 * (1 + 1e-5) for row in result["modules"])
    assert all(row["farthest"] >= row["relative_norm"] * (1 - 1e-5) for row in result["modules"])


def test_the_robust_loss_is_that_of_the_untouched_network(session, theta_at, scanned):
    _, result = scanned
    network = session.network(theta_at)
    images, labels = stage.adversarial_examples(session, network, options_of(), ATTACK)
    with torch.no_grad():
        logits = network(images)
    assert result["num_images"] == len(labels) == 60
    assert result["robust_accuracy"] == (logits.argmax(1) == labels).double().mean().item()
    assert result["robust_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6
    )


@pytest.mark.parametrize(("patterns", "left_out"), [(["*.downsample.*"], 3), (["conv1", "fc"], 2)])
def test_excluded_modules_are_not_scanned(session, theta_at, scanned, tmp_path, patterns, left_out):
    result = scan(session, stage_folder(tmp_path), theta_at, f"stage.mrc.exclude={patterns}")
    names = [row["module"] for row in result["modules"]]
    everything = [row["module"] for row in scanned[1]["modules"]]
    assert len(everything) - len(names) == left_out
    assert names == [name for name in everything if name in names]
    assert sorted(result["ranking"]) == sorted(names)


def test_nothing_left_to_scan_is_one_sentence(session, theta_at, tmp_path):
    with pytest.raises(UserError, match=r"stage\.mrc\.exclude leaves no module"):
        scan(session, stage_folder(tmp_path), theta_at, "stage.mrc.exclude=['*']")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_limit_takes_every_class_alike_and_an_order_of_its_own(session, split):
    options = options_of(f"stage.mrc.split={split}", "stage.mrc.max_images=45")
    chosen = stage.scanned_split(session, options)
    counts = chosen.labels.bincount(minlength=10)
    assert len(chosen) == 45 and counts.min() == 4 and counts.max() == 5
    assert len(chosen.indices.unique()) == 45
    assert chosen.labels[:10].unique().numel() > 3, "batches should mix the classes"
    everything = session.dataset.split(split)
    positions = {int(i): k for k, i in enumerate(everything.indices)}
    for image, label, index in zip(chosen.images, chosen.labels, chosen.indices, strict=True):
        assert torch.equal(image, everything.images[positions[int(index)]])
        assert label == everything.labels[positions[int(index)]]
    again = stage.scanned_split(session, options)
    assert torch.equal(chosen.indices, again.indices)


@pytest.mark.parametrize("limit", [None, 60, 1000])
def test_without_a_binding_limit_the_whole_split_is_scanned(session, limit):
    text = "null" if limit is None else limit
    chosen = stage.scanned_split(session, options_of("stage.mrc.split=test", f"stage.mrc.max_images={text}"))
    assert chosen.indices.sort().values.tolist() == session.dataset.test.indices.tolist()


def test_a_smaller_limit_is_part_of_a_larger_one(session):
    few, many = (
        set(stage.scanned_split(session, options_of(f"stage.mrc.max_images={n}")).indices.tolist())
        for n in (20, 50)
    )
    assert few < many


def test_the_scan_leaves_the_weights_alone(session, theta_at, tmp_path):
    before = {name: value.clone() for name, value in theta_at.items()}
    scan(session, stage_folder(tmp_path), theta_at, "stage.mrc.exclude=['layer*']")
    assert same_bits(before, theta_at)


@pytest.mark.parametrize("after", [1, 5])
def test_interrupted_and_continued_it_scans_only_what_is_missing(
    session, theta_at, scanned, tmp_path, monkeypatch, after
):
    undisturbed, expected = scanned
    real = StageFolder.save_resume_point

    def dying(self, tensors, note):
        real(self, tensors, note)
        self.settle()  # it is written in the background
        if len(self.rows()) == after:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StageFolder, "save_resume_point", dying)
        scan(session, stage_folder(tmp_path), theta_at)
    calls = []
    search = stage.module_robust_criticality
    monkeypatch.setattr(
        stage, "module_robust_criticality", lambda *args: calls.append(1) or search(*args), raising=True
    )
    continued = stage_folder(tmp_path)
    assert scan(session, continued, theta_at) == expected
    assert len(calls) == len(expected["modules"]) - after
    assert continued.rows() == undisturbed.rows()


def test_a_diverged_scan_is_one_sentence(session, theta_at, tmp_path):
    overrides = "stage.mrc.lr=1e30", "stage.mrc.epochs=3"
    with pytest.raises(UserError, match=r"scan of conv1 diverged: lower stage\.mrc\.lr"):
        scan(session, stage_folder(tmp_path), theta_at, *overrides)
