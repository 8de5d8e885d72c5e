"""Evaluation: both readings of the worst of several runs, and the paired test."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from math import comb

import pytest
import torch
from tiny_jobs import Killed, same_bits, stage_folder, tiny_config, tiny_session

from rift.assembly import make_attack
from rift.comparison import mcnemar
from rift.data import load_dataset
from rift.stages import evaluation
from rift.store import StageFolder

evaluation_module = import_module("rift.attacks.evaluation")


@pytest.fixture(scope="module")
def session(trained_state):
    data = load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=100, test_limit=90)
    return tiny_session(data, width=8)


@pytest.fixture(scope="module")
def trained_state(_trained):
    return {name: value.clone() for name, value in _trained.state_dict().items()}


@pytest.fixture(scope="module")
def evaluated(session, trained_state, tmp_path_factory):
    config = tiny_config("stage.evaluate.restarts=3", "attack.epsilon=0.12", "attack.step_size=0.05")
    folder = stage_folder(tmp_path_factory.mktemp("evaluate"))
    attack = make_attack(config.evaluation_attack)
    return folder, evaluation(session, folder, config.stage.evaluate, trained_state, attack)


def test_the_result_is_read_off_the_verdicts(evaluated):
    folder, result = evaluated
    verdicts = folder.load("verdicts")
    clean, robust = verdicts["clean"].bool(), verdicts["robust"].bool()
    assert clean.shape == (90,) and robust.shape == (3, 90)
    assert result["num_images"] == 90
    assert result["clean_accuracy"] == clean.double().mean().item()
    assert result["robust_accuracy"] == min(run.double().mean().item() for run in robust)
    assert result["robust_accuracy_per_image"] == (robust.sum(0) == 3).double().mean().item()
    assert 0 < result["robust_accuracy_per_image"] <= result["robust_accuracy"] < result["clean_accuracy"]
    assert not (robust & ~clean).any(), "an image that is wrong without an attack is not robust"


@pytest.mark.parametrize("exact", [True, False])
def test_interrupted_at_any_batch_it_goes_on_there(session, trained_state, tmp_path, monkeypatch, exact):
    config = tiny_config(
        "stage.evaluate.restarts=2", f"stage.evaluate.exact_runs={exact}", "attack.epsilon=0.12"
    )
    options, attack = config.stage.evaluate, make_attack(config.evaluation_attack)
    eager = replace(session, runtime=replace(session.runtime, save_seconds=1e-9, batch_size=16))
    undisturbed = stage_folder(tmp_path / "undisturbed")
    expected = evaluation(eager, undisturbed, options, trained_state, attack)
    real, crafted, points = StageFolder.save_resume_point, [], []
    attacked = evaluation_module.pgd
    monkeypatch.setattr(evaluation_module, "pgd", lambda *args: crafted.append(1) or attacked(*args))

    def dying(self, tensors, note):
        real(self, tensors, note)
        self.settle()  # it is written in the background
        points.append(1)
        raise Killed

    monkeypatch.setattr(StageFolder, "save_resume_point", dying)
    for _ in range(50):
        folder = stage_folder(tmp_path / "killed")
        try:
            found = evaluation(eager, folder, options, trained_state, attack)
            break
        except Killed:
            continue
    assert found == expected and len(points) >= 6
    assert len(crafted) == len(points), "no batch is attacked twice"
    assert same_bits(folder.load("verdicts"), undisturbed.load("verdicts"))
    assert folder.rows() == undisturbed.rows()


def test_every_run_is_a_row(evaluated):
    folder, result = evaluated
    rows = folder.rows()
    assert [row["run"] for row in rows] == [1, 2, 3]
    assert min(row["robust_accuracy"] for row in rows) == result["robust_accuracy"]
    assert {row["clean_accuracy"] for row in rows} == {result["clean_accuracy"]}


def test_clean_accuracy_is_that_of_the_plain_network(session, trained_state, evaluated):
    test = session.dataset.test
    with torch.no_grad():
        right = session.network(trained_state)(test.images / 255).argmax(1) == test.labels
    assert evaluated[1]["clean_accuracy"] == right.double().mean().item()


def test_evaluated_twice_the_verdicts_are_the_same(session, trained_state, evaluated, tmp_path):
    """Random starts depend on seed, run and image alone, so two networks are compared on equal terms."""
    config = tiny_config("stage.evaluate.restarts=3", "attack.epsilon=0.12", "attack.step_size=0.05")
    torch.manual_seed(99)
    folder = stage_folder(tmp_path)
    again = evaluation(
        session, folder, config.stage.evaluate, trained_state, make_attack(config.evaluation_attack)
    )
    assert again == evaluated[1]
    assert torch.equal(folder.load("verdicts")["robust"], evaluated[0].load("verdicts")["robust"])


def two_sided(only_first: int, only_second: int) -> float:
    """The binomial test at 1/2, written out."""
    n, low = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(comb(n, k) for k in range(low + 1)) / 2**n)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (1, 5, 14 / 64),
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (3, 3, 1.0),
        (0, 0, 1.0),
        (2, 10, None),
        (12, 40, None),
    ],
)
def test_mcnemar_against_the_binomial_written_out(only_first, only_second, p_value):
    both, neither = 7, 4
    first = torch.tensor([1] * only_first + [0] * only_second + [1] * both + [0] * neither)
    second = torch.tensor([0] * only_first + [1] * only_second + [1] * both + [0] * neither)
    found = mcnemar(first.to(torch.uint8), second.to(torch.uint8))
    assert (found["only_at"], found["only_rift"]) == (only_first, only_second)
    expected = two_sided(only_first, only_second)
    assert found["p_value"] == pytest.approx(expected, rel=1e-12)
    if p_value is not None:
        assert expected == p_value
