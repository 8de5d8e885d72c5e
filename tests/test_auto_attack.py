"""AutoAttack: the library's verdicts, stopped and gone on with or not; nothing is attacked in vain."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch
from test_stages_at import options_of, train
from tiny_jobs import Killed, restored_process, stage_folder, tiny_config, tiny_session

import rift.measurements
from rift.assembly import make_runtime, make_session
from rift.attacks import Attack
from rift.attacks.auto_attack import State, auto_attack, require_library
from rift.data import load_dataset
from rift.errors import UserError
from rift.pipeline import Pipeline
from rift.progress import measured
from rift.randomness import derive_seed
from rift.stages import auto_attack_evaluation
from rift.store import StageFolder, Store
from rift.summary import alarms
from rift.tracking import Tracker

library = pytest.importorskip("pyautoattack", reason="waits for pip install 'rift[autoattack]'")
ATTACK = Attack("linf", epsilon=0.1, step_size=0.03, steps=5)


@pytest.fixture(scope="module")
def session():
    data = load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=400, test_limit=40)
    return tiny_session(data, batch_size=16)


@pytest.fixture(scope="module")
def theta(session, tmp_path_factory):
    """Trained so far that some images are robust and some are not."""
    folder = stage_folder(tmp_path_factory.mktemp("at"))
    train(session, folder, options_of("stage.at.epochs=8", "stage.at.lr=0.05", "stage.at.milestones=[6]"))
    return folder.load("last")


def directly(session, theta, images, labels, attacks):
    """The library by itself on these images: which survive."""
    network = session.network(theta).requires_grad_(False)
    seed = derive_seed("auto_attack", session.seed) % 2**31
    attacker = library.AutoAttack(network, norm="Linf", eps=ATTACK.epsilon, seed=seed)
    attacker.attacks_to_run = list(attacks)
    adversarial, _ = attacker.run_standard_evaluation(images, labels, batch_size=16)
    with torch.no_grad():
        return network(adversarial).argmax(dim=1) == labels


def evaluate(session, theta, folder, version="quick", images=None, survivors=None):
    return auto_attack_evaluation(session, folder, theta, ATTACK, version, images, survivors)


@pytest.fixture(scope="module")
def undisturbed(session, theta, tmp_path_factory):
    folder = stage_folder(tmp_path_factory.mktemp("aa"))
    return folder, evaluate(session, theta, folder)


def test_the_verdicts_are_the_librarys(session, theta, undisturbed):
    folder, result = undisturbed
    test = session.dataset.test
    right = directly(session, theta, test.images.float() / 255, test.labels, ("apgd-ce", "apgd-t"))
    assert torch.equal(folder.load("verdicts")["robust"].bool(), right)
    assert 0 < result["robust_accuracy"] < result["clean_accuracy"]
    assert [(row["run"], row["attack"]) for row in folder.rows()] == [(1, "apgd-ce"), (2, "apgd-t")]
    assert result["robust_accuracy"] == right.double().mean().item() == result["after"]["apgd-t"]
    assert result["after"]["apgd-ce"] >= result["after"]["apgd-t"]


@pytest.mark.parametrize("saves", [1, 2, 4])
def test_killed_and_resumed_it_is_as_if_undisturbed(
    session, theta, tmp_path, monkeypatch, undisturbed, saves
):
    whole, expected = undisturbed
    real, count = StageFolder.save_resume_point, []

    def dying(self, tensors, note):
        real(self, tensors, note)
        self.settle()
        count.append(1)
        if len(count) == saves:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StageFolder, "save_resume_point", dying)
        evaluate(session, theta, stage_folder(tmp_path))
    folder = stage_folder(tmp_path)
    assert evaluate(session, theta, folder) == expected
    assert folder.resumed and folder.rows() == whole.rows()
    for name, value in whole.load("verdicts").items():
        assert torch.equal(folder.load("verdicts")[name], value)


def test_what_pgd_fooled_is_not_attacked_and_stays_fooled(session, theta, tmp_path, monkeypatch):
    test = session.dataset.test
    survivors = torch.arange(len(test)) % 2 == 0
    seen = []
    real = library.AutoAttack.run_standard_evaluation

    def counted(self, x, y, **options):
        seen.append(len(x))
        return real(self, x, y, **options)

    monkeypatch.setattr(library.AutoAttack, "run_standard_evaluation", counted)
    folder = stage_folder(tmp_path)
    result = evaluate(session, theta, folder, survivors=survivors)
    verdicts = folder.load("verdicts")
    assert not verdicts["robust"].bool()[~survivors].any()
    assert seen[0] == round(result["pgd_accuracy"] * len(test)) <= survivors.sum()
    assert result["robust_accuracy"] <= result["pgd_accuracy"] <= 0.5


def test_a_part_of_the_images_is_spread_over_the_split(session, theta, tmp_path):
    assert evaluate(session, theta, stage_folder(tmp_path), images=10)["num_images"] == 10


@pytest.mark.slow
def test_the_standard_version_has_four_attacks(session, theta, tmp_path):
    result = evaluate(session, theta, stage_folder(tmp_path), "standard", images=12)
    assert list(result["after"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert result["robust_accuracy"] == result["after"]["square"] <= result["after"]["apgd-t"]


def test_progress_counts_what_was_fooled_before(session, theta, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def watched(*about):
        with measured(*about) as meter:
            yield meter
            seen.append((meter.done, meter.total))

    module = import_module("rift.stages.auto_attack_evaluation")  # the package has a function of that name
    monkeypatch.setattr(module, "measured", watched)
    result = evaluate(session, theta, stage_folder(tmp_path), images=16)
    assert 0 < result["after"]["apgd-ce"] < result["clean_accuracy"] and seen == [(32, 32)]


def test_with_nothing_left_nothing_is_attacked(session, theta):
    network = session.network(theta)
    state = State(torch.zeros(40, dtype=torch.bool))
    images, labels = session.dataset.test.images.float() / 255, session.dataset.test.labels
    options = {"norm": "linf", "epsilon": 0.1, "version": "standard", "seed": 0, "batch_size": 16}
    assert list(auto_attack(network, images, labels, state, **options)) == []


def test_without_the_library_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r"pip install 'rift\[autoattack\]'"):
        require_library()


def test_at_alpha_zero_nothing_is_attacked_twice(tmp_path, monkeypatch):
    """θ* is θ_AT then, bit for bit: the one measurement serves both."""
    calls = []
    real = rift.measurements.auto_attack_evaluation

    def counted(*arguments):
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(rift.measurements, "auto_attack_evaluation", counted)
    options = ["stage.evaluate.measure=[pgd,auto_attack]", "stage.evaluate.auto_attack=quick"]
    options += [
        "stage.evaluate.auto_attack_images=10",
        "stage.interpolate.points=2",
        "stage.finetune.lr=1e-9",
    ]
    with restored_process():
        config = tiny_config(*options, output=tmp_path)
        session = make_session(config, make_runtime(config))
        folders = Pipeline(config, session, Store(tmp_path / "store")).run(Tracker())
    assert folders["interpolate"].result()["alpha"] == 0.0
    for section in ("evaluate", "auto_attack"):
        assert folders[f"{section}_at"].key == folders[f"{section}_rift"].key
    assert calls == [1]


@pytest.mark.parametrize(
    ("clean", "pgd", "auto", "words"),
    [
        (0.8, 0.5, 0.45, []),
        (0.8, 0.5, 0.35, ["AT: AutoAttack is 15.0 points under PGD"]),
        (0.8, 0.79, 0.78, ["AT: robust accuracy is 99% of clean"]),
        (0.0, 0.0, 0.0, []),
    ],
)
def test_what_makes_a_robust_accuracy_doubtful_is_said(clean, pgd, auto, words):
    results = {
        "evaluate_at": {"clean_accuracy": clean, "robust_accuracy": pgd},
        "auto_attack_at": {"pgd_accuracy": pgd, "robust_accuracy": auto},
    }
    found = alarms(results)
    assert len(found) == len(words) and all(map(str.startswith, found, words))
