"""AutoAttack on a robust network and real images of others: killed and resumed, and the library itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_jobs import Killed, stage_folder
from torch import nn

from rift.attacks import Attack
from rift.data import load_dataset
from rift.models.normalisation import Normalize
from rift.randomness import derive_seed
from rift.runtime import Runtime
from rift.stage_options import EvaluateConfig
from rift.stages import Session, auto_attack_evaluation, evaluation
from rift.store import StageFolder

library = pytest.importorskip("pyautoattack", reason="waits for pip install 'rift[autoattack]'")
DATA = Path(os.environ.get("RIFT_TEST_DATA", "/nonexistent"))
WEIGHTS = DATA / "small-robust-cnns" / "cifar_cnn_a_adv4.model"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEIGHTS.is_file(), reason="no robust CNN under the folder in RIFT_TEST_DATA"),
]
MEAN, STD = [0.485, 0.456, 0.406], [0.225, 0.225, 0.225]
ATTACK = Attack("linf", epsilon=2 / 255, step_size=0.5 / 255, steps=10)
IMAGES, BATCH = 200, 50


def cnn() -> nn.Module:
    """Two convolutions and two linear layers, trained for robustness within 2/255 by others."""
    layers = [nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(Normalize(MEAN, STD), nn.Sequential(*layers))


@pytest.fixture(scope="module")
def theta():
    found = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    network = cnn()
    network[1].load_state_dict(found)
    return network.state_dict()


@pytest.fixture(scope="module")
def session():
    data = load_dataset("cifar10", root=str(DATA), mean=MEAN, std=STD, train_limit=20, test_limit=IMAGES)
    return Session(data, Runtime(torch.device("cpu"), batch_size=BATCH), 0, cnn)


@pytest.fixture(scope="module")
def pgd(session, theta, tmp_path_factory):
    options = EvaluateConfig(measure=["pgd"], restarts=3, exact_runs=True)
    folder = stage_folder(tmp_path_factory.mktemp("pgd"))
    return folder, evaluation(session, folder, options, theta, ATTACK)


@pytest.fixture(scope="module")
def resumed(session, theta, pgd, tmp_path_factory):
    """Killed after six of its batches, each of the four attacks having up to four, and gone on with."""
    place = tmp_path_factory.mktemp("aa")
    survivors = pgd[0].load("verdicts")["robust"].amin(dim=0)
    real, saves = StageFolder.save_resume_point, []

    def dying(self, tensors, note):
        real(self, tensors, note)
        self.settle()
        saves.append(1)
        if len(saves) == 6:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StageFolder, "save_resume_point", dying)
        auto_attack_evaluation(session, stage_folder(place), theta, ATTACK, "standard", None, survivors)
    folder = stage_folder(place)
    result = auto_attack_evaluation(session, folder, theta, ATTACK, "standard", None, survivors)
    assert folder.resumed
    return folder, result


def test_the_full_figure_is_no_higher_than_pgds(pgd, resumed):
    _, result = resumed
    assert result["num_images"] == IMAGES
    assert 0.2 < result["robust_accuracy"] <= pgd[1]["robust_accuracy_per_image"]
    assert pgd[1]["robust_accuracy_per_image"] <= pgd[1]["robust_accuracy"] < pgd[1]["clean_accuracy"]


def test_killed_and_resumed_it_gives_the_verdicts_of_one_call_of_the_library(session, theta, pgd, resumed):
    """On the images that are left after PGD."""
    test = session.dataset.test
    left = pgd[0].load("verdicts")["robust"].amin(dim=0).bool()
    network = session.network(theta).requires_grad_(False)
    seed = derive_seed("auto_attack", session.seed) % 2**31
    attacker = library.AutoAttack(network, norm="Linf", eps=ATTACK.epsilon, seed=seed)
    images, labels = test.images[left].float() / 255, test.labels[left]
    adversarial, _ = attacker.run_standard_evaluation(images, labels, batch_size=BATCH)
    with torch.no_grad():
        survived = network(adversarial).argmax(dim=1) == labels
    assert torch.equal(resumed[0].load("verdicts")["robust"].bool()[left], survived)
