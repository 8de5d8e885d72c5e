"""Weight averaging, early stopping, and the watch over single-step training."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch
from test_stages_at import ATTACK, options_of, train
from tiny_jobs import same_bits, stage_folder, tiny_session

from rift.data import load_dataset
from rift.runtime import Runtime
from rift.stages.collapse import collapse_notes, collapsed
from rift.stages.training import Training, moving_average


@pytest.fixture(scope="module")
def session():
    data = load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=150, test_limit=80)
    return tiny_session(data)


# -- the average --------------------------------------------------------------------------------------


def test_the_average_is_the_recursion_written_out():
    """a ← d a + (1 − d) w with d = min(decay, t / (t + 10)), t from 0; counters are copied."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = moving_average(network, decay=0.3)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for t in range(12):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += torch.randn_like(parameter)
        network.train()(torch.randn(5, 3))
        average.update(network, step=t + 1)
        decay = min(0.3, t / (t + 10))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not average.module.training
    assert not torch.allclose(average.module[0].weight, network[0].weight, atol=1e-2)


def test_best_and_last_are_the_averages_and_what_is_said_of_them_is_true(session, tmp_path):
    folder = stage_folder(tmp_path)
    result = train(session, folder, options_of("stage.at.average=0.9", "stage.at.evaluate_every=1"))
    plain = stage_folder(tmp_path / "plain")
    train(session, plain, options_of("stage.at.evaluate_every=1"))
    # Averaging follows and never leads: the weights that are trained are the same.
    assert same_bits(folder.load("last_not_averaged"), plain.load("last"))
    assert not same_bits(folder.load("last"), plain.load("last"))
    for name in ("best", "last"):
        network = session.network(folder.load(name))
        verdicts = session.attacked(network, session.dataset.test, ATTACK, runs=1)
        assert verdicts.clean_accuracy == result[name]["clean_accuracy"]
        assert verdicts.robust_accuracy == result[name]["robust_accuracy"]
    assert result["notes"] == ["θ_AT is a moving average of the weights, decay 0.9"]


def test_averaging_of_nothing_is_the_weights(session, tmp_path):
    folder = stage_folder(tmp_path)
    train(session, folder, options_of("stage.at.average=0.0", "stage.at.epochs=1"))
    assert same_bits(folder.load("last"), folder.load("last_not_averaged"))


def test_a_checkpoint_that_is_not_trained_on_is_not_averaged(session, tmp_path):
    given = copy.deepcopy(session.new_network().state_dict())
    folder = stage_folder(tmp_path)
    result = train(session, folder, options_of("stage.at.average=0.9", "stage.at.epochs=0"), initial=given)
    assert same_bits(folder.load("best"), given) and result["notes"] == []


# -- early stopping -----------------------------------------------------------------------------------


def scored(tmp_path, scores, patience, every=1):
    """The epochs that run if they score so."""
    options = options_of(f"stage.at.epochs={len(scores)}", f"stage.at.evaluate_every={every}")
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 2)
    folder = stage_folder(tmp_path)
    runtime = Runtime(torch.device("cpu"))
    training = Training(
        folder, network, network.parameters(), options, "at", "score", runtime, patience=patience
    )
    ran = []
    for epoch in training.remaining():
        ran.append(epoch)
        row = {"epoch": epoch + 1, "train_loss": 1.0}
        if (epoch + 1) % every == 0:
            row["score"] = scores[epoch]
        training.end_epoch(row)
    return ran


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"),
    [
        ([1, 2, 1, 1, 3, 3, 3], None, 7),
        ([1, 2, 1, 1, 3, 3, 3], 2, 4),
        ([1, 2, 1, 1, 3, 3, 3, 3, 3], 3, 8),  # an equal score is no better one
        ([3, 1, 2], 1, 2),
        ([1, 2, 3], 1, 3),
    ],
)
def test_training_ends_so_many_epochs_after_its_best(tmp_path, scores, patience, epochs):
    assert scored(tmp_path, scores, patience) == list(range(epochs))


def test_epochs_without_a_score_do_not_end_training(tmp_path):
    assert scored(tmp_path, [9, 5, 9, 1, 9, 1, 9, 1], patience=2, every=2) == [0, 1, 2, 3]


def test_a_training_that_ended_early_says_so_and_closes_as_any_other(session, tmp_path):
    options = options_of("stage.at.epochs=30", "stage.at.evaluate_every=1", "stage.at.patience=2")
    folder = stage_folder(tmp_path)
    result = train(session, folder, options)
    ended = result["last"]["epoch"]
    assert ended < 30 and ended - result["best"]["epoch"] == 2
    assert result["notes"] == [f"training ended after {ended} of 30 epochs: 2 without a better one"]
    # Resumed at its end, it ends there again.
    again = stage_folder(tmp_path)
    assert train(session, again, options)["last"]["epoch"] == ended


# -- single-step training -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ([0.4, 0.42, 0.01], True),
        ([0.4, 0.42, 0.22], False),  # more than half
        ([0.12, 0.05], False),  # noise of a poor network
        ([0.4, 0.0, 0.41], False),  # recovered
        ([0.0], False),
    ],
)
def test_a_collapse_is_a_fall_below_half_by_ten_points(accuracies, verdict):
    assert collapsed(accuracies) is verdict


def test_a_note_names_the_epochs():
    rows = [{"epoch": 51 + n, "watched_robust_accuracy": a} for n, a in enumerate((0.4, 0.1, 0.05, 0.4))]
    assert collapse_notes(rows) == ["catastrophic overfitting after epoch 52, 53"]
    assert collapse_notes([{"train_loss": 1.0}]) == []


def test_single_step_training_is_watched_each_epoch(session, tmp_path, monkeypatch, caplog):
    folder = stage_folder(tmp_path)
    train(session, folder, options_of("stage.at.evaluate_every=4"), method="n_fgsm")
    rows = folder.rows()
    assert all(0 <= row["watched_robust_accuracy"] <= 1 for row in rows) and len(rows) == 4
    # All 80 selection images are watched here, so the last one is what selection measures.
    assert rows[-1]["watched_robust_accuracy"] == rows[-1]["robust_accuracy"]
    plain = stage_folder(tmp_path / "pgd")
    train(session, plain, options_of("stage.at.epochs=1"))
    assert "watched_robust_accuracy" not in plain.rows()[0]


def test_a_selection_of_one_step_does_not_watch_itself(session, tmp_path, monkeypatch):
    """With attack=fgsm for all roles, accuracy under that one step rises while the network collapses."""
    attacks = []
    real = type(session).attacked

    def attacked(self, network, split, attack, **others):
        attacks.append((others.get("label"), attack))
        return real(self, network, split, attack, **others)

    monkeypatch.setattr(type(session), "attacked", attacked)
    fgsm = replace(ATTACK, steps=1, step_size=ATTACK.epsilon, random_start=False)
    train(session, stage_folder(tmp_path), options_of("stage.at.epochs=1"), fgsm)
    (watched,) = [attack for label, attack in attacks if label == "at: watch"]
    assert (watched.steps, watched.random_start, watched.epsilon) == (10, True, ATTACK.epsilon)


def test_a_collapse_is_said_at_once_and_in_the_result(session, tmp_path, monkeypatch, caplog):
    """The network is ruined after its fifth epoch, as by catastrophic overfitting."""
    options = options_of("stage.at.epochs=6", "stage.at.lr=0.05", "stage.at.milestones=[]")
    attack = replace(ATTACK, epsilon=0.02, step_size=0.01)
    real = Training.end_epoch

    def ruined(self, row):
        real(self, row)
        if row["epoch"] == 5:
            with torch.no_grad():
                self.network.fc.bias.copy_(torch.tensor([1e3] + [0.0] * 9))

    monkeypatch.setattr(Training, "end_epoch", ruined)
    with caplog.at_level(logging.WARNING, logger="rift"):
        result = train(session, stage_folder(tmp_path), options, attack, method="n_fgsm")
    assert "catastrophic overfitting: robust accuracy on 80 selection images fell to" in caplog.text
    assert any(note.startswith("catastrophic overfitting after epoch 6") for note in result["notes"])
