"""What a later stage would refuse is refused before the first epoch, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_jobs import TINY, command, restored_process, tiny_config

import rift.pipeline
from rift.assembly import make_runtime, make_session
from rift.data import Split
from rift.errors import UserError
from rift.preflight import check_data


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Gives a command; returns what it says as it refuses, before any stage has begun."""

    def never(*_, **__):
        raise AssertionError("a stage was begun")

    monkeypatch.setattr(rift.pipeline, "adversarial_training", never)

    def run(*arguments):
        assert command(*TINY, "logger=wandb", f"output={tmp_path}/out", *arguments) == 2
        assert list(tmp_path.iterdir()) == [], "something was left behind"
        (said,) = capsys.readouterr().err.splitlines()
        return said.removeprefix("rift: error: ")

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["stage.finetune.target=layer9"],
            "stage.finetune.target=layer9 is no module of this network: did you",
        ),
        (["stage.finetune.target=top_k", "stage.finetune.top_k=99"], "top_k=99, but only 13 modules"),
        (["stage.finetune.optimizer=sgdd"], "stage.finetune.optimizer=sgdd cannot be used"),
        (["stage.finetune.schedule=stairs"], "stage.finetune.schedule=stairs is not known"),
        (["stage.finetune.schedule=plateau"], "stage.finetune.schedule=plateau needs a metric"),
        (["stage.mrc.optimizer=foo"], "stage.mrc.optimizer=foo cannot be used"),
        (["stage.mrc.exclude=['*']"], "leaves no module to scan"),
        (["stage.mrc.lr=-1"], "stage.mrc.lr=-1.0 is no positive number"),
        (["stage.interpolate.selection_split=holdout"], "needs held-out images"),
        (["stage.run=[at,finetune]"], "There is no finished 'mrc' result"),
        (["stage.run=[at,mrc,interpolate]"], "There is no finished 'finetune' result"),
        (["stage.at.batch_size=199"], "stage.at.batch_size=199 leaves a last batch of one of the 200"),
        (["stage.finetune.padding_mode=reflect", "dataset.padding=8"], "cannot add dataset.padding=8"),
        (["method.name=trade"], "method.name=trade is not known"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_before_the_first_epoch(refused, arguments, words):
    assert words in refused(*arguments)


def session_of(*overrides):
    with restored_process():
        config = tiny_config(*overrides)
        return config, make_session(config, make_runtime(config))


def test_what_does_not_run_is_not_checked():
    session_of("stage=at", "stage.finetune.target=layer9", "stage.mrc.optimizer=foo")


def test_the_batch_size_that_is_proposed_is_accepted():
    with pytest.raises(UserError, match=r"take stage\.at\.batch_size=200, say"):
        session_of("stage.at.batch_size=199")
    session_of("stage.at.batch_size=200")


def test_a_last_batch_of_one_does_where_nothing_is_normalised_over_it():
    """Digits are 8×8: BatchNorm of the last stage sees one pixel. Larger images leave it more."""
    config, session = session_of("stage.at.batch_size=200")
    config.stage.at.batch_size = 199
    large = torch.zeros(200, 1, 32, 32, dtype=torch.uint8)
    train = Split(large, torch.zeros(200, dtype=torch.int64), torch.arange(200))
    data = replace(session.dataset, train=train, test=train)
    network = session.new_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_data(config, data, network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_frozen_statistics_bear_a_single_image():
    session_of("stage.finetune.batch_size=199", "stage.finetune.batchnorm=frozen")
    with pytest.raises(UserError, match=r"stage\.finetune\.batch_size=199 leaves a last batch of one"):
        session_of("stage.finetune.batch_size=199", "stage.finetune.batchnorm=train")
