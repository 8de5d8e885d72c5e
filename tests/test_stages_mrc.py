"""The scan as a stage: which modules, which images, the ranking, and going on after a crash."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from tiny_jobs import Killed, same_bits, stage_folder, tiny_config, tiny_session

from rift.attacks import Attack
from rift.data import load_dataset
from rift.errors import UserError
from rift.models import scannable_modules
from rift.stages import joint_scan, mrc_scan
from rift.store import StageFolder

stage = import_module("rift.stages.mrc_scan")
joint_stage = import_module("rift.stages.joint_scan")

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


@pytest.mark.parametrize(
    "options",
    [
        ("stage.mrc.on_violation=continue", "stage.mrc.momentum=0.9"),
        ("stage.mrc.on_violation=continue", "stage.mrc.score=worst", "stage.mrc.precision=bfloat16"),
        ("stage.mrc.solver=projected",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_interrupted_within_a_module_it_goes_on_there(
    session, theta_at, tmp_path, monkeypatch, options, shuffle
):
    options = (*options, "stage.mrc.epochs=3", "stage.mrc.exclude=['layer*']", f"stage.mrc.shuffle={shuffle}")
    expected = scan(session, stage_folder(tmp_path / "undisturbed"), theta_at, *options)
    eager = replace(session, runtime=replace(session.runtime, save_seconds=1e-9))
    real, points = StageFolder.save_resume_point, []

    def dying(self, tensors, note):
        real(self, tensors, note)
        self.settle()
        points.append(note.get("module"))
        if points[-1] is not None:
            raise Killed

    monkeypatch.setattr(StageFolder, "save_resume_point", dying)
    attempts = 0
    while attempts < 10:
        attempts += 1
        try:
            found = scan(eager, stage_folder(tmp_path / "killed"), theta_at, *options)
            break
        except Killed:
            continue
    assert found == expected
    # Two modules are scanned, each with two places to stop at, and none is stopped at twice.
    assert attempts == 5 and [name for name in points if name] == ["conv1", "conv1", "fc", "fc"]


def test_a_diverged_scan_is_one_sentence(session, theta_at, tmp_path):
    overrides = "stage.mrc.lr=1e30", "stage.mrc.epochs=3"
    with pytest.raises(UserError, match=r"scan of conv1 diverged: lower stage\.mrc\.lr"):
        scan(session, stage_folder(tmp_path), theta_at, *overrides)


def images_of_part(session, part):
    options = options_of("stage.mrc.max_images=20", f"stage.mrc.part={part}")
    return stage.scanned_split(session, options)


def test_parts_are_balanced_and_share_no_image(session):
    parts = [images_of_part(session, part) for part in range(3)]
    indices = torch.cat([part.indices for part in parts])
    assert len(indices.unique()) == len(indices) == 60
    for part in parts:
        assert part.labels.bincount(minlength=10).max() <= 3  # of ten classes in twenty images


def test_a_part_beyond_the_split_is_one_sentence(session, theta_at, tmp_path):
    with pytest.raises(UserError, match=r"stage\.mrc\.part=6 of 20 images, .* 120 of"):
        scan(session, stage_folder(tmp_path), theta_at, "stage.mrc.max_images=20", "stage.mrc.part=6")


# -- sets of modules ---------------------------------------------------------------------------------


def joint(session, folder, theta_at, scanned, size=3):
    options = options_of("stage.mrc.solver=projected")
    return joint_scan(session, folder, options, size, scanned[1]["ranking"], theta_at, ATTACK)


@pytest.fixture(scope="module")
def jointly(session, theta_at, scanned, tmp_path_factory):
    folder = stage_folder(tmp_path_factory.mktemp("joint"))
    return folder, joint(session, folder, theta_at, scanned)


def test_the_greedy_set_grows_by_the_module_of_least_joint_mrc(session, scanned, jointly):
    _, result = jointly
    names = [row["module"] for row in scanned[1]["modules"]]
    sets = {frozenset(row["modules"]): row["mrc"] for row in result["sets"]}
    first, second, third = (row["modules"] for row in result["greedy"])
    assert set(first) < set(second) < set(third)
    for smaller, larger in (([], first), (first, second), (second, third)):
        candidates = [frozenset({*smaller, name}) for name in names if name not in smaller]
        assert min(candidates, key=sets.get) == frozenset(larger)
        assert [name for name in names if name in larger] == larger, "in network order"
    lowest = [row["modules"] for row in result["top_k"]]
    assert [set(modules) for modules in lowest] == [set(scanned[1]["ranking"][:k]) for k in (1, 2, 3)]


def test_a_set_of_one_has_the_scans_mrc_by_the_same_solver(session, theta_at, jointly, tmp_path):
    single = scan(session, stage_folder(tmp_path), theta_at, "stage.mrc.solver=projected")
    sets = {tuple(row["modules"]): row["mrc"] for row in jointly[1]["sets"]}
    for row in single["modules"]:
        assert sets[(row["module"],)] == pytest.approx(row["mrc"], rel=1e-6)


def test_a_killed_joint_scan_goes_on_to_the_same_result(
    session, theta_at, tmp_path, scanned, jointly, monkeypatch
):
    search, calls = joint_stage.criticality_of, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) > 4:
            raise Killed
        return search(*arguments)

    monkeypatch.setattr(joint_stage, "criticality_of", dying)
    killed = stage_folder(tmp_path)
    with pytest.raises(Killed):
        joint(session, killed, theta_at, scanned)
    killed.settle()  # what is saved is written in the background
    monkeypatch.undo()
    folder = stage_folder(tmp_path)
    assert joint(session, folder, theta_at, scanned) == jointly[1]
    assert folder.rows() == jointly[0].rows()
