"""protocol=holdout: nothing is chosen on the test set, which is read once, at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_jobs import config_of, restored_process, same_bits, tiny_config

from rift.assembly import make_runtime, make_session
from rift.data import Split
from rift.explain import option_names
from rift.pipeline import Pipeline
from rift.protocol import PAPER, departing, departures, differences, named_by, selection_notes
from rift.store import Store
from rift.tracking import Tracker

HOLDOUT = ("protocol=holdout", "dataset.holdout_fraction=0.2", "stage.at.epochs=3")


class Untouchable:
    """In the place of a split: any use of it is an error."""

    def __getattr__(self, name):
        raise AssertionError(f"the test split was used: {name}")

    def __len__(self):
        raise AssertionError("the test split was used: len")


def run(output, *overrides, change=lambda session: session):
    with restored_process():
        config = tiny_config(*HOLDOUT, *overrides, output=output)
        session = change(make_session(config, make_runtime(config)))
        return Pipeline(config, session, Store(output / "store")).run(Tracker())


def with_test(test):
    return lambda session: replace(session, dataset=replace(session.dataset, test=test(session.dataset.test)))


def test_no_stage_before_the_evaluation_touches_the_test_split(tmp_path):
    stages = "stage.run=[at,mrc,finetune,interpolate]"
    folders = run(tmp_path, stages, change=with_test(lambda _: Untouchable()))
    assert folders["interpolate"].finished


def test_other_test_labels_change_no_choice_and_no_weight(tmp_path):
    def scrambled(test):
        return Split(test.images.flip(0), (test.labels + 1) % 10, test.indices)

    honest = run(tmp_path / "honest")
    blind = run(tmp_path / "blind", change=with_test(scrambled))
    for stage, name in (("at", "best"), ("at", "last"), ("finetune", "best"), ("interpolate", "weights")):
        assert same_bits(honest[stage].load(name), blind[stage].load(name))
    assert honest["at"].result()["best"]["epoch"] == blind["at"].result()["best"]["epoch"]
    assert honest["mrc"].result()["ranking"] == blind["mrc"].result()["ranking"]
    for name in ("alpha", "sweep"):
        assert honest["interpolate"].result()[name] == blind["interpolate"].result()[name]
    # The evaluation, and it alone, does see the labels.
    verdicts = [folders["evaluate_at"].load("verdicts")["clean"] for folders in (honest, blind)]
    assert not torch.equal(*verdicts)


def test_under_the_paper_s_protocol_the_test_split_is_used(tmp_path):
    """So the tests above can fail."""
    with pytest.raises(AssertionError, match="the test split was used"):
        run(tmp_path, "stage=at", "stage.at.selection_split=test", change=with_test(lambda _: Untouchable()))


def test_held_out_images_are_never_trained_on(tmp_path):
    folders = run(tmp_path, "stage=at")
    held = folders["at"].load("holdout")["indices"]
    config = tiny_config(*HOLDOUT, output=tmp_path)
    with restored_process():
        data = make_session(config, make_runtime(config)).dataset
    assert torch.equal(held, data.holdout.indices)
    assert not set(held.tolist()) & set(data.train.indices.tolist())
    assert len(held) + len(data.train) == 200
    assert data.holdout.labels.bincount().tolist() == [4] * 10
    assert folders["at"].result()["data"]["holdout"]["fraction"] == 0.2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "selected on the test set: the AT epoch, the fine-tuning epoch and α*"),
        (["stage.at.select=last"], "selected on the test set: the fine-tuning epoch and α*"),
        (["stage.mrc.split=test"], "α* and the module"),
        (
            ["stage.at.select=last", "stage.finetune.select=last"],
            "selected on the test set: α*; protocol=holdout selects nothing there",
        ),
        (["protocol=holdout"], "no choice is made on the test set"),
    ],
)
def test_what_is_chosen_on_the_test_set_is_said(overrides, words):
    (note,) = selection_notes(tiny_config(*overrides))
    assert words in note


def test_a_smoke_run_works_under_every_protocol(tmp_path):
    for protocol in ("paper", "official", "holdout"):
        with restored_process():
            config = tiny_config(f"protocol={protocol}", "smoke=true", "stage=at", output=tmp_path)
            session = make_session(config, make_runtime(config))
            Pipeline(config, session, Store(tmp_path)).run(Tracker())


def test_the_paper_s_own_set_up_differs_in_nothing():
    assert differences(config_of()) == []
    assert departures(config_of()) == []


def test_what_replaces_a_protocol_s_own_value_is_said():
    (demo,) = departures(config_of("experiment=demo"))
    assert demo.startswith("protocol=official is departed from: ")
    assert "attack.step_size = 0.04 (2/225)" in demo and "stage.finetune.padding_mode = zeros" in demo
    (typed,) = departures(config_of("protocol=holdout", "stage.interpolate.selection_split=test"))
    assert typed == ("protocol=holdout is departed from: stage.interpolate.selection_split = test (holdout)")
    for protocol in ("paper", "official", "holdout"):
        for dataset in ("cifar10", "tiny_imagenet"):
            config = config_of(f"protocol={protocol}", f"dataset={dataset}", "stage.finetune.epochs=4")
            assert departures(config) == []


@pytest.mark.parametrize(
    ("typed", "surprising"),
    [
        (["experiment", "seed", "stage", "dataset", "stage.mrc.epochs"], []),
        (["attack.step_size"], ["attack.step_size"]),
        (["attack", "stage.mrc.split"], ["attack.step_size", "stage.mrc.split"]),
        (["attack@evaluation_attack"], []),
        (["protocol", "experiment"], None),  # whose values are not all there
    ],
)
def test_a_departure_is_the_user_s_own_where_its_option_was_named(typed, surprising):
    found = departing(config_of("experiment=demo"))
    assert len(found) == 5
    assert [option for option in found if named_by(option, typed)] == (
        list(found) if surprising is None else surprising
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("attack.epsilon=4/255", ["attack.epsilon = 4/255 (paper: 8/255)"]),
        ("attack@evaluation_attack=pgd20", ["evaluation_attack.steps = 20 (paper: 10)"]),
        ("stage.at.epochs=10", ["stage.at.epochs = 10 (paper: 110)"]),
        ("stage.mrc.split=test", ["stage.mrc.split = test (paper: train)"]),
        ("stage.finetune.batchnorm=train", ["stage.finetune.batchnorm = train (paper: frozen)"]),
        ("stage.interpolate.tolerance=0.05", ["stage.interpolate.tolerance = 0.05 (paper: 0.001)"]),
        ("dataset.train_limit=100", ["dataset.train_limit = 100 (paper: all)"]),
        ("model.width=16", ["model.width = 16 (paper: None)"]),
        (
            "protocol=holdout",
            ["dataset.holdout_fraction = 0.02 (paper: 0.0)"]
            + [
                f"stage.{s}.selection_split = holdout (paper: test)"
                for s in ("at", "finetune", "interpolate")
            ],
        ),
    ],
)
def test_each_departure_from_the_paper_is_said(override, expected):
    assert differences(config_of(override)) == expected


def test_every_option_of_the_stages_is_compared():
    compared = {f"stage.{s}.{name}" for s, options in PAPER["stage"].items() for name in options}
    # Which stages run; what counts only with its target; what the paper does not have.
    derived = {"stage.run", "stage.finetune.top_k", "stage.finetune.target_seed"}
    derived |= {name for name in option_names() if name.startswith("stage.joint.")}
    assert {name for name in option_names() if name.startswith("stage.")} - derived == compared
