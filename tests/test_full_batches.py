"""Batches of one size give the results of the odd ones: verdicts, losses, means, MRC."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_jobs import stage_folder, tiny_config, tiny_session

from rift.attacks import Attack
from rift.data import load_dataset
from rift.runtime.full_batches import filled, in_full_batches
from rift.stages import evaluation, fine_tuning, mrc_scan, natural_shift

ATTACK = Attack("linf", epsilon=0.1, step_size=0.04, steps=3)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=150, test_limit=150)


@pytest.fixture
def sizes(monkeypatch):
    """The batch sizes that networks see, collected."""
    seen, real = [], torch.nn.Linear.forward

    def forward(self, x):
        seen.append(len(x))
        return real(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    return seen


def sessions(digits, **runtime):
    """The same job with odd batches and with full ones."""
    return [tiny_session(digits, full_batches=full, **runtime) for full in (False, True)]


@pytest.mark.parametrize("rows", [1, 3, 5, 7])
def test_filling_repeats_the_rows_and_changes_none(rows):
    x = torch.arange(rows * 2.0).view(rows, 2)
    longer = filled(x, 7)
    assert len(longer) == 7 and torch.equal(longer[:rows], x)
    assert all(torch.equal(row, x[i % rows]) for i, row in enumerate(longer))
    assert filled(x, rows) is x


def test_the_memory_format_is_kept():
    images = torch.rand(3, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    assert filled(images, 8).is_contiguous(memory_format=torch.channels_last)


def test_a_function_sees_full_batches_only():
    seen = []

    def function(x, y):
        seen.append(len(x))
        return x * y

    call = in_full_batches(function, 4)
    for rows in (4, 3, 1, 6):
        x, y = torch.rand(rows, 2), torch.rand(rows, 2)
        assert torch.equal(call(x, y), x * y)
    assert seen == [4, 4, 4, 6]


def test_verdicts_are_those_of_odd_batches(digits, sizes):
    """150 images in batches of 64: 64, 64, 22; under attack those that are right, whatever their number."""
    found = []
    for session in sessions(digits):
        sizes.clear()
        network = session.new_network()
        verdicts = session.attacked(network, digits.test, ATTACK, runs=2, exact_runs=False)
        found.append((verdicts, set(sizes) - {8}))  # the check on eight images
    (odd, odd_sizes), (full, full_sizes) = found
    assert torch.equal(odd.clean, full.clean) and torch.equal(odd.robust, full.robust)
    assert full_sizes == {64} and len(odd_sizes) > 1


@pytest.mark.parametrize("overrides", [[], ["stage.mrc.shuffle=true"], ["stage.mrc.solver=projected"]])
def test_mrc_is_that_of_odd_batches(digits, tmp_path, sizes, overrides):
    options = replace(
        tiny_config(*overrides, "stage.mrc.epochs=2", "stage.mrc.lr=0.1").stage.mrc, max_images=100
    )
    results = []
    for name, session in zip(("odd", "full"), sessions(digits), strict=True):
        sizes.clear()
        theta = session.new_network().state_dict()
        result = mrc_scan(session, stage_folder(tmp_path / name), options, theta, ATTACK)
        results.append((result, set(sizes)))
    (odd, odd_sizes), (full, full_sizes) = results
    assert 10 in odd_sizes and 10 not in full_sizes  # 100 images in batches of 30
    assert full["robust_loss"] == pytest.approx(odd["robust_loss"], rel=1e-6)
    assert full["robust_accuracy"] == odd["robust_accuracy"]
    assert full["ranking"] == odd["ranking"]
    for one, other in zip(odd["modules"], full["modules"], strict=True):
        assert other["mrc"] == pytest.approx(one["mrc"], rel=1e-3, abs=1e-5), one["module"]
        assert other["robust_accuracy_drop"] == pytest.approx(one["robust_accuracy_drop"], abs=1e-9)


def test_evaluation_fine_tuning_and_other_photographs_agree(digits, tmp_path):
    options = tiny_config().stage
    outcomes = []
    for name, session in zip(("odd", "full"), sessions(digits), strict=True):
        theta = session.new_network().state_dict()
        folders = [stage_folder(tmp_path / name / part) for part in ("evaluate", "tune", "shift")]
        plain = {"padding": 0, "padding_mode": "zeros", "flip": False}
        tuned = fine_tuning(session, folders[1], options.finetune, theta, ["fc"], plain)
        outcomes.append(
            (
                evaluation(session, folders[0], options.evaluate, theta, ATTACK),
                tuned["last"]["clean_accuracy"],
                natural_shift(session, folders[2], theta, digits.test),
            )
        )
    assert outcomes[0] == outcomes[1]
