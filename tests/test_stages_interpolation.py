"""Interpolation: end points to the bit, integer buffers, statistics, and the rule for α*."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from tiny_jobs import Killed, changed, same_bits, stage_folder, tiny_config, tiny_session
from torch import nn

from rift.attacks import Attack
from rift.data import batches, load_dataset
from rift.randomness import derive_seed
from rift.runtime import batchnorm_layers
from rift.stages import best_alpha, interpolate, interpolation
from rift.store import StageFolder

stage = import_module("rift.stages.interpolation")

ATTACK = Attack(
    norm="linf", epsilon=0.1, step_size=0.05, steps=2, random_start=True, keep="last", batchnorm="eval"
)


@pytest.fixture(scope="module")
def session():
    data = load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=100, test_limit=60)
    return tiny_session(data)


def perturbed(session, seed: int) -> dict:
    """A network's state with every tensor moved, batch counts too."""
    torch.manual_seed(seed)
    network = session.new_network().train()
    for _ in range(seed):
        network(torch.rand(32, 1, 8, 8))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for name, value in network.named_parameters():
        state[name] = value.detach() + 0.05 * torch.randn_like(value)
    return state


@pytest.fixture(scope="module")
def ends(session):
    return perturbed(session, 3), perturbed(session, 8)


# -- θ_α ----------------------------------------------------------------------------------------------


def test_the_ends_are_reproduced_bit_for_bit(ends):
    assert same_bits(interpolate(0.0, *ends), ends[0])
    assert same_bits(interpolate(1.0, *ends), ends[1])


def test_awkward_numbers_survive_at_the_ends():
    """(1 − α)a + αb would turn −0.0 into 0.0, and infinity into NaN."""
    first = {"w": torch.tensor([-0.0, float("inf"), 1e-45, 3.4e38]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([1.0, -1.0, -0.0, -3.4e38]), "n": torch.tensor(9)}
    assert same_bits(interpolate(0.0, first, second), first)
    assert same_bits(interpolate(1.0, first, second), second)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.7, 0.999])
def test_between_them_lies_the_line(alpha):
    first = {"w": torch.tensor([0.0, 2.0, -4.0], dtype=torch.float64)}
    second = {"w": torch.tensor([1.0, 4.0, 4.0], dtype=torch.float64)}
    found = interpolate(alpha, first, second)["w"]
    assert torch.allclose(found, torch.tensor([alpha, 2 + 2 * alpha, -4 + 8 * alpha]).double(), atol=1e-15)


def test_what_is_equal_at_both_ends_stays_so_in_between(ends):
    """After fine-tuning one module all other tensors agree; interpolation may not round them."""
    first = ends[0]
    second = first | {"fc.weight": ends[1]["fc.weight"]}
    assert changed(first, interpolate(0.3, first, second)) == {"fc.weight"}


@pytest.mark.parametrize(("alpha", "count"), [(0.0, 3), (0.3, 3), (0.5, 8), (0.7, 8), (1.0, 8)])
def test_integers_are_copied_from_the_nearer_end(ends, alpha, count):
    value = interpolate(alpha, *ends)["bn1.num_batches_tracked"]
    assert value.dtype == torch.int64 and value.item() == count


def test_nothing_is_shared_with_the_ends(ends):
    before = {name: value.clone() for name, value in ends[0].items()}
    for value in interpolate(0.0, *ends).values():
        value.zero_()
    assert same_bits(before, ends[0])


def test_different_networks_are_refused(ends):
    with pytest.raises(AssertionError, match="different tensors"):
        interpolate(0.5, ends[0], {"w": torch.ones(1)})


# -- the rule -----------------------------------------------------------------------------------------


def points(*rows):
    return [{"alpha": a, "clean_accuracy": c, "robust_accuracy": r} for a, c, r in rows]


@pytest.mark.parametrize(
    ("rows", "tolerance", "alpha"),
    [
        # The best clean accuracy, where robustness allows it.
        ([(0.0, 0.80, 0.50), (0.5, 0.82, 0.51), (1.0, 0.85, 0.40)], 0.001, 0.5),
        ([(0.0, 0.80, 0.50), (0.5, 0.82, 0.51), (1.0, 0.85, 0.50)], 0.001, 1.0),
        # Nothing qualifies but θ_AT itself.
        ([(0.0, 0.80, 0.50), (0.5, 0.82, 0.49), (1.0, 0.85, 0.40)], 0.001, 0.0),
        # Exactly at the tolerance counts: 0.1 points of 10 000 images are 10 images.
        ([(0.0, 0.80, 0.5123), (0.5, 0.82, 0.5113), (1.0, 0.85, 0.5112)], 0.001, 0.5),
        # No tolerance at all: equal robustness is enough, one image less is not.
        ([(0.0, 0.80, 0.50), (0.5, 0.82, 0.50), (1.0, 0.85, 0.4999)], 0.0, 0.5),
        # A generous tolerance.
        ([(0.0, 0.80, 0.50), (0.5, 0.82, 0.45), (1.0, 0.85, 0.40)], 0.1, 1.0),
        # Of equal clean accuracies the one nearest to θ_AT, whatever its robustness.
        ([(0.0, 0.80, 0.50), (0.5, 0.82, 0.50), (0.7, 0.82, 0.53), (1.0, 0.81, 0.5)], 0.001, 0.5),
        # Fine-tuning that only harms: θ_AT.
        ([(0.0, 0.80, 0.50), (0.5, 0.79, 0.60), (1.0, 0.78, 0.70)], 0.001, 0.0),
    ],
)
def test_the_paper_s_rule(rows, tolerance, alpha):
    assert best_alpha(points(*rows), tolerance)["alpha"] == alpha


@pytest.mark.parametrize("images", [10_000, 359, 7, 2000])
def test_rounding_never_decides_about_an_image(images):
    """Losing exactly the tolerated number of images is allowed, one more is not, for every count."""
    lost = max(1, images // 100)
    for right in range(lost + 1, images, max(1, images // 50)):
        at = (0.0, 0.5, right / images)
        edge = points(at, (1.0, 0.6, (right - lost) / images))
        beyond = points(at, (1.0, 0.6, (right - lost - 1) / images))
        assert best_alpha(edge, lost / images)["alpha"] == 1.0
        assert best_alpha(beyond, lost / images)["alpha"] == 0.0


# -- the stage ----------------------------------------------------------------------------------------


def options_of(*overrides):
    return tiny_config("stage.interpolate.points=5", *overrides).stage.interpolate


def sweep(session, folder, ends, *overrides):
    return interpolation(session, folder, options_of(*overrides), *ends, ATTACK)


def test_the_sweep_is_what_each_network_does(session, tmp_path, ends):
    folder = stage_folder(tmp_path)
    result = sweep(session, folder, ends, "stage.interpolate.restarts=2")
    assert [point["alpha"] for point in result["sweep"]] == [0, 0.25, 0.5, 0.75, 1]
    assert result["sweep"] == folder.rows()
    for point in result["sweep"]:
        network = session.network(interpolate(point["alpha"], *ends))
        verdicts = session.attacked(network, session.dataset.test, ATTACK, runs=2)
        assert point["clean_accuracy"] == verdicts.clean_accuracy
        assert point["robust_accuracy"] == verdicts.robust_accuracy
        assert point["robust_accuracy_per_image"] == verdicts.robust_accuracy_per_image


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 1.0])
def test_the_weights_stored_are_those_at_the_chosen_alpha(session, tmp_path, ends, tolerance):
    folder = stage_folder(tmp_path)
    result = sweep(session, folder, ends, f"stage.interpolate.tolerance={tolerance}")
    chosen = best_alpha(result["sweep"], tolerance)
    assert result["alpha"] == chosen["alpha"]
    assert result["clean_accuracy"] == chosen["clean_accuracy"]
    assert same_bits(folder.load("weights"), interpolate(result["alpha"], *ends))


def statistics(session) -> set[str]:
    return {name for name in session.new_network().state_dict() if "running_" in name or "tracked" in name}


def stored_at(session, folder, alpha, ends, batchnorm, monkeypatch):
    """The weights that the stage stores when the rule chooses this α."""
    monkeypatch.setattr(
        stage, "best_alpha", lambda points, _: next(point for point in points if point["alpha"] == alpha)
    )
    sweep(session, folder, ends, f"stage.interpolate.batchnorm={batchnorm}")
    return folder.load("weights")


def test_kept_statistics_are_theta_at_s(session, tmp_path, ends, monkeypatch):
    found = stored_at(session, stage_folder(tmp_path), 0.75, ends, "keep", monkeypatch)
    line = interpolate(0.75, *ends)
    assert changed(found, ends[0]).isdisjoint(statistics(session))
    assert changed(found, line) == {n for n in statistics(session) if changed({n: line[n]}, {n: ends[0][n]})}


def test_reestimated_statistics_are_the_average_over_clean_training_batches(
    session, tmp_path, ends, monkeypatch
):
    monkeypatch.setattr(stage, "REESTIMATION_BATCH", 32)
    found = stored_at(session, stage_folder(tmp_path), 0.75, ends, "reestimate", monkeypatch)
    line = interpolate(0.75, *ends)
    parameters = {name: line[name] for name in line.keys() - statistics(session)}
    assert changed(parameters, found) == set()
    # By hand for the first layer: the mean over batches of each batch's mean and unbiased variance.
    network = session.network(line)
    means, variances = [], []
    with torch.no_grad():
        order = {"seed": derive_seed("reestimate", session.seed), "shuffle": True}
        for images, labels, _ in batches(session.dataset.train, 32, **order):
            if len(labels) < 32:  # the ragged end is left out
                continue
            assert len(labels.unique()) > 5  # mixed, however the set is sorted
            before = network.conv1(network.normalize(images))
            means.append(before.mean(dim=(0, 2, 3)))
            variances.append(before.transpose(0, 1).flatten(1).var(dim=1))
    assert torch.allclose(found["bn1.running_mean"], torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(found["bn1.running_var"], torch.stack(variances).mean(0), rtol=1e-4)
    assert found["bn1.num_batches_tracked"].item() == len(means) == 3


@pytest.mark.parametrize("batchnorm", ["interpolate", "keep", "reestimate"])
def test_alpha_zero_is_theta_at_in_every_mode(session, tmp_path, ends, monkeypatch, batchnorm):
    found = stored_at(session, stage_folder(tmp_path), 0.0, ends, batchnorm, monkeypatch)
    assert same_bits(found, ends[0])


def test_modes_without_batchnorm_are_the_same(session, tmp_path, monkeypatch):
    def linear():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    assert not batchnorm_layers(linear())
    plain = replace(session, new_network=linear)
    first = linear().state_dict()
    second = {name: value + 0.1 for name, value in first.items()}
    for mode in ("keep", "reestimate"):
        found = stored_at(plain, stage_folder(tmp_path / mode), 0.5, (first, second), mode, monkeypatch)
        assert same_bits(found, interpolate(0.5, first, second))


def test_interrupted_and_continued_it_is_as_if_undisturbed(session, tmp_path, monkeypatch, ends):
    undisturbed = stage_folder(tmp_path / "undisturbed")
    expected = sweep(session, undisturbed, ends)
    real = StageFolder.save_resume_point

    def dying(self, tensors, note):
        real(self, tensors, note)
        self.settle()  # it is written in the background
        if len(self.rows()) == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StageFolder, "save_resume_point", dying)
        sweep(session, stage_folder(tmp_path / "killed"), ends)
    attacked = []
    continued = stage_folder(tmp_path / "killed")
    real_attacked = type(session).attacked
    monkeypatch.setattr(
        type(session), "attacked", lambda *a, **k: attacked.append(1) or real_attacked(*a, **k)
    )
    assert sweep(session, continued, ends) == expected
    assert len(attacked) == 2, "a finished α was measured again"
    assert same_bits(undisturbed.load("weights"), continued.load("weights"))
