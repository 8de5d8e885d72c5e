"""Adversarial training: resumption to the bit, what is reported, which epoch goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module

import pytest
import torch
from tiny_jobs import Killed, changed, same_bits, stage_folder, tiny_config, tiny_session

from rift.attacks import Attack
from rift.checkpoint import load_tensors
from rift.data import load_dataset
from rift.errors import UserError
from rift.methods import make_method
from rift.resume_point import RESUME, write_resume_point
from rift.stages import adversarial_training
from rift.store import StageFolder

training_stage = import_module("rift.stages.adversarial_training")  # the package has a function of that name
robust_accuracy_is_due = training_stage.robust_accuracy_is_due

ATTACK = Attack(
    norm="linf", epsilon=0.15, step_size=0.1, steps=2, random_start=True, keep="last", batchnorm="eval"
)
AUGMENTATION = {"padding": 1, "padding_mode": "zeros", "flip": True}
METHODS = {
    "pgd_at": {},
    "awp": {"base": "trades", "gamma": 0.01, "warmup": 1, "beta": 6.0, "start_std": 0.001},
    "n_fgsm": {"start_radius": 2.0, "step": 1.0},
}
TIMES = ("seconds", "images_per_s", "tflops", "of_matmul_rate")


@pytest.fixture(scope="module")
def digits():
    return load_dataset(
        "digits", root=".", mean=[0.3], std=[0.38], train_limit=150, test_limit=80, holdout_fraction=0.1
    )


@pytest.fixture
def session(digits):
    return tiny_session(digits)


def options_of(*overrides):
    return tiny_config("stage.at.epochs=4", "stage.at.milestones=[2]", *overrides).stage.at


def train(session, folder, options, attack=ATTACK, method="pgd_at", **others):
    return adversarial_training(
        session, folder, options, make_method(method, METHODS[method]), attack, attack, AUGMENTATION, **others
    )


def outcome(folder):
    """(weights, what the optimiser would go on with, metrics without times)."""
    folder.settle()  # it is written in the background
    tensors, note = load_tensors(folder.path / RESUME)
    weights = {name: folder.load(name) for name in ("best", "last")}
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in note["rows"]]
    return weights, tensors, rows


def interrupt(monkeypatch, epoch, *, before_it_is_durable):
    """The process dies in the moment in which this epoch is, or is about to be, made durable."""
    real = StageFolder.save_resume_point

    def dying(self, tensors, note):
        if note["next_epoch"] == epoch and before_it_is_durable:
            raise Killed
        real(self, tensors, note)
        self.settle()  # it is written in the background
        if note["next_epoch"] == epoch:
            raise Killed

    monkeypatch.setattr(StageFolder, "save_resume_point", dying)


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    """(options, folder, result) of four epochs in one go, by optimiser, method and average."""

    @cache
    def trained(optimizer, method="pgd_at", average="null"):
        options = options_of(
            f"stage.at.optimizer={optimizer}",
            "stage.at.lr=0.01",
            "stage.at.evaluate_every=1",
            f"stage.at.average={average}",
        )
        folder = stage_folder(tmp_path_factory.mktemp(optimizer))
        return options, folder, train(tiny_session(digits), folder, options, method=method)

    return trained


@pytest.mark.parametrize(
    ("optimizer", "epoch", "before", "others"),
    [
        ("momentum", 1, False, ()),
        ("momentum", 3, False, ()),
        ("momentum", 1, True, ()),
        ("momentum", 3, True, ()),
        ("adamw", 2, False, ()),
        ("momentum", 2, False, ("awp",)),
        ("momentum", 2, False, ("pgd_at", "0.9")),
        ("momentum", 3, True, ("n_fgsm", "0.9")),
    ],
)
def test_interrupted_and_continued_it_is_as_if_undisturbed(
    session, tmp_path, monkeypatch, undisturbed, optimizer, epoch, before, others
):
    options, whole, expected = undisturbed(optimizer, *others)
    method = others[0] if others else "pgd_at"

    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, epoch, before_it_is_durable=before)
        train(session, stage_folder(tmp_path / "killed"), options, method=method)
    torch.manual_seed(12345)  # another process starts with other generators
    continued = stage_folder(tmp_path / "killed")
    found = train(session, continued, options, method=method)

    first, second = outcome(whole), outcome(continued)
    for name in ("best", "last"):
        assert same_bits(first[0][name], second[0][name])
    assert any("momentum" in name or "exp_avg" in name for name in first[1])
    assert same_bits(first[1], second[1])  # momentum too: the next step would be the same
    assert first[2] == second[2] and len(first[2]) == 4
    assert continued.resumed is (epoch > 1 or not before)
    for row in ("best", "last"):
        assert {k: v for k, v in expected[row].items() if k not in TIMES} == {
            k: v for k, v in found[row].items() if k not in TIMES
        }


def test_the_resumption_test_would_notice_a_lost_momentum(session, tmp_path, monkeypatch, undisturbed):
    """The equality above must not hold for a resume point without the optimiser's state."""
    options, whole, _ = undisturbed("momentum")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 2, before_it_is_durable=False)
        train(session, stage_folder(tmp_path / "killed"), options)
    folder = stage_folder(tmp_path / "killed")
    tensors, note = load_tensors(folder.path / RESUME)
    kept = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
    rows, less = note["rows"], {**note["note"], "optimizer": {}}
    write_resume_point(folder.path / RESUME, kept, {"note": less, "rows": rows})
    train(session, folder, options)
    assert not same_bits(whole.load("last"), folder.load("last"))


def test_a_finished_schedule_that_was_not_closed_only_closes(session, tmp_path, monkeypatch):
    options = options_of()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 4, before_it_is_durable=False)
        train(session, stage_folder(tmp_path), options)
    folder = stage_folder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training_stage, "_epoch", None)  # nothing may be trained again
        result = train(session, folder, options)
    assert result["last"]["epoch"] == 4


def test_reported_accuracies_are_those_of_the_weights_on_disk(session, undisturbed):
    _, folder, result = undisturbed("momentum")
    for name in ("best", "last"):
        verdicts = session.attacked(
            session.network(folder.load(name)), session.dataset.test, ATTACK, runs=1, label="again"
        )
        assert verdicts.clean_accuracy == result[name]["clean_accuracy"]
        assert verdicts.robust_accuracy == result[name]["robust_accuracy"]


def test_the_best_epoch_is_the_first_of_the_most_robust(session, tmp_path):
    folder = stage_folder(tmp_path)
    result = train(session, folder, options_of("stage.at.evaluate_every=1", "stage.at.epochs=5"))
    rows = folder.rows()
    best = max(rows, key=lambda row: (row["robust_accuracy"], -row["epoch"]))
    assert result["best"] == best
    assert result["last"] == rows[-1]
    assert len({row["robust_accuracy"] for row in rows}) > 1, "nothing to choose from"


@pytest.mark.parametrize("select", ["best", "last"])
def test_both_epochs_are_kept(session, tmp_path, select):
    folder = stage_folder(tmp_path)
    train(session, folder, options_of("stage.at.epochs=1"))
    assert (folder.path / f"{select}.safetensors").is_file()


def test_metrics_are_complete(session, tmp_path):
    folder = stage_folder(tmp_path)
    train(session, folder, options_of("stage.at.evaluate_every=3", "stage.at.lr=0.02"))
    rows = folder.rows()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in rows] == pytest.approx([0.02, 0.02, 0.002, 0.002])
    assert [("robust_accuracy" in row) for row in rows] == [False, False, True, True]
    for row in rows:
        assert 0 < row["train_loss"] < 10
        assert 0 <= row["train_robust_accuracy"] <= 1
        assert row["seconds"] > 0 and row["images_per_s"] > 0


@pytest.mark.parametrize(
    ("epochs", "every", "due"),
    [
        (110, 5, [*range(4, 99, 5), *range(99, 110)]),  # the paper's: every fifth, and the last eleven
        (10, 100, [9]),
        (3, 2, [1, 2]),
        (1, 5, [0]),
        (4, 1, [0, 1, 2, 3]),
    ],
)
def test_robust_accuracy_is_due_every_few_epochs_and_in_the_last_tenth(epochs, every, due):
    assert [epoch for epoch in range(epochs) if robust_accuracy_is_due(epoch, epochs, every)] == due


def test_the_held_out_images_are_stored_with_the_result(session, tmp_path):
    folder = stage_folder(tmp_path)
    train(session, folder, options_of("stage.at.epochs=1"))
    held = folder.load("holdout")["indices"]
    assert torch.equal(held, session.dataset.holdout.indices)
    assert len(held) == 20  # of 150 images in ten classes, two of each


def test_selection_on_the_holdout_reads_nothing_of_the_test_set(session, tmp_path):
    options = replace(options_of("stage.at.epochs=1"), selection_split="holdout")
    blind = replace(session.dataset, test=None)
    result = train(replace(session, dataset=blind), stage_folder(tmp_path), options)
    assert 0 <= result["best"]["robust_accuracy"] <= 1


def test_no_epochs_measures_the_given_weights_and_leaves_them(session, tmp_path):
    torch.manual_seed(3)
    given = {
        name: value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value + 5
        for name, value in session.new_network().state_dict().items()
        if "running_var" not in name
    } | {n: v for n, v in session.new_network().state_dict().items() if "running_var" in n}
    folder = stage_folder(tmp_path)
    result = train(session, folder, options_of("stage.at.epochs=0"), initial=given)
    for name in ("best", "last"):
        assert same_bits(folder.load(name), given)
    verdicts = session.attacked(session.network(given), session.dataset.test, ATTACK, runs=1)
    assert result["best"]["clean_accuracy"] == verdicts.clean_accuracy
    assert result["best"]["robust_accuracy"] == verdicts.robust_accuracy
    assert folder.rows() == [result["best"]]


def test_training_starts_from_the_given_weights(session, tmp_path):
    given = {name: value.clone() for name, value in session.new_network().state_dict().items()}
    given["fc.bias"] += 1.0
    folders = [stage_folder(tmp_path / name) for name in "abc"]
    options = options_of("stage.at.epochs=1", "stage.at.lr=1e-9", "stage.at.weight_decay=0")
    train(session, folders[0], options, initial=given)
    assert torch.allclose(folders[0].load("last")["fc.bias"], given["fc.bias"], atol=1e-6)
    train(session, folders[1], options)
    train(session, folders[2], options)
    assert same_bits(folders[1].load("last"), folders[2].load("last"))
    assert changed(folders[0].load("last"), folders[1].load("last"))


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_crafting_never_moves_statistics(session, tmp_path, monkeypatch, batchnorm):
    """A step moves BatchNorm's statistics once, by the training pass, however crafting is done."""
    folder = stage_folder(tmp_path)
    train(session, folder, options_of("stage.at.epochs=1"), replace(ATTACK, batchnorm=batchnorm))
    batches = -(-len(session.dataset.train) // 64)
    counts = {v.item() for n, v in folder.load("last").items() if n.endswith("num_batches_tracked")}
    assert counts == {batches}


def test_a_diverged_training_is_one_sentence(session, tmp_path):
    with pytest.raises(UserError, match=r"diverged in epoch 1, batch .*lower stage\.at\.lr"):
        train(session, stage_folder(tmp_path), options_of("stage.at.lr=1e30", "stage.at.epochs=1"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.at.optimizer=momentun", r"stage\.at\.optimizer=momentun cannot be used"),
        ("stage.at.schedule=multistp", r"stage\.at\.schedule=multistp is not known"),
    ],
)
def test_unknown_optimisers_and_schedules_are_one_sentence(session, tmp_path, override, words):
    with pytest.raises(UserError, match=words) as error:
        train(session, stage_folder(tmp_path), options_of(override))
    assert "\n" not in str(error.value)
