"""Values that cannot be are refused before any work is done, each in one sentence."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf, open_dict
from tiny_jobs import composed, config_of

from rift.config import Config, number, to_config
from rift.errors import UserError, choose_from
from rift.explain import option_names, unknown_option


@pytest.mark.parametrize(
    ("typed", "value"),
    [("8/255", 8 / 255), ("0.03", 0.03), (" 8 / 255 ", 8 / 255), ("0", 0.0), ("1", 1.0), ("2/225", 2 / 225)],
)
def test_budgets_are_fractions_or_decimals(typed, value):
    assert number("attack.epsilon", typed) == value


@pytest.mark.parametrize("typed", ["eight", "8/0", "", "8/255/2", "__import__('os')", "1e999999", "nan"])
def test_what_is_no_number_is_never_evaluated(typed):
    with pytest.raises(UserError, match=r"attack\.epsilon="):
        number("attack.epsilon", typed)


def test_a_budget_is_not_negative():
    with pytest.raises(UserError, match=r"attack\.epsilon=-0\.03 is too small: give 0 or more"):
        number("attack.epsilon", "-0.03")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.width=0", r"model\.width=0"),
        ("dataset.holdout_fraction=1.0", r"dataset\.holdout_fraction=1\.0"),
        ("attack.norm=l1", r"attack\.norm=l1 is not known: .*linf, l2"),
        ("attack.keep=first", r"attack\.keep=first"),
        ("attack.batchnorm=evil", r"attack\.batchnorm=evil .*did you mean 'eval'"),
        ("attack.steps=0", r"attack\.steps=0 is too small: give 1"),
        ("attack.epsilon=eight", r"attack\.epsilon=eight is no number: .*8/255"),
        ("attack.step_size=x", r"attack\.step_size=x is no number"),
        ("stage.at.select=middle", r"select=middle"),
        ("stage.at.selection_split=train", r"selection_split=train is not known"),
        ("stage.at.padding_mode=mirror", r"padding_mode=mirror"),
        ("stage.at.batch_size=0", r"batch_size=0"),
        ("stage.at.lr=0", r"lr=0\.0 is not positive"),
        ("stage.at.epochs=-1", r"epochs=-1"),
        ("stage.at.evaluate_every=0", r"stage\.at\.evaluate_every=0"),
        ("stage.mrc.solver=newton", r"stage\.mrc\.solver=newton .*sgd, projected"),
        ("stage.mrc.split=trian", r"stage\.mrc\.split=trian .*did you mean 'train'"),
        ("stage.mrc.norm=l1", r"stage\.mrc\.norm=l1"),
        ("stage.mrc.project=never", r"stage\.mrc\.project=never"),
        ("stage.mrc.on_violation=ignore", r"stage\.mrc\.on_violation=ignore"),
        ("stage.mrc.score=mean", r"stage\.mrc\.score=mean"),
        ("stage.mrc.epsilon_w=0", r"stage\.mrc\.epsilon_w=0"),
        ("stage.mrc.max_images=0", r"stage\.mrc\.max_images=0"),
        ("stage.finetune.batchnorm=half", r"stage\.finetune\.batchnorm=half"),
        ("stage.finetune.top_k=0", r"stage\.finetune\.top_k=0"),
        ("stage.finetune.epochs=0", r"stage\.finetune\.epochs=0"),
        ("stage.finetune.target=none", r"stage\.finetune\.target=none .*batchnorm=train"),
        ("stage.interpolate.points=1", r"stage\.interpolate\.points=1"),
        ("stage.interpolate.restarts=0", r"stage\.interpolate\.restarts=0"),
        ("stage.interpolate.tolerance=-0.1", r"stage\.interpolate\.tolerance=-0\.1"),
        ("stage.interpolate.batchnorm=drop", r"stage\.interpolate\.batchnorm=drop"),
        ("stage.evaluate.restarts=0", r"stage\.evaluate\.restarts=0"),
        ("stage.run=[at,mcr]", r"stage\.run=mcr is not known: did you mean 'mrc'"),
        ("runtime.precision=float16", r"runtime\.precision=float16"),
        ("runtime.batch_size=0", r"runtime\.batch_size=0"),
        ("runtime.cache_mib=-1", r"runtime\.cache_mib=-1"),
        ("logger.name=tensorboard", r"logger\.name=tensorboard"),
        ("logger.mode=maybe", r"logger\.mode=maybe"),
        ("stage.at.selection_split=holdout", r"stage\.at\.selection_split=holdout needs held-out images"),
        ("stage.mrc.split=holdout", r"stage\.mrc\.split=holdout needs held-out images: .*protocol=holdout"),
    ],
)
def test_impossible_values_are_refused(override, words):
    tree = OmegaConf.merge(composed(), OmegaConf.from_dotlist([override]))
    with pytest.raises(UserError, match=words) as error:
        to_config(tree)
    assert "\n" not in str(error.value)


def test_a_holdout_makes_its_split_choosable():
    config = config_of("dataset.holdout_fraction=0.1", "stage.mrc.split=holdout")
    assert config.stage.mrc.split == "holdout"


def test_nothing_is_written_back():
    """What is stored is what was typed: fractions as text, derived values nowhere."""
    config = config_of("attack.epsilon=4/255", "stage.at.lr=0.3")
    assert config.attack.epsilon == "4/255"
    assert config.evaluation_attack.epsilon == "4/255"
    assert config.stage.at.lr == 0.3


@pytest.mark.parametrize("place", [None, "stage", "stage.at"])
def test_an_added_key_is_refused_wherever_it_is(place):
    tree = composed()
    node = tree if place is None else tree.stage if place == "stage" else tree.stage.at
    with open_dict(node):
        node.epoch = 3
    prefix = f"{place}." if place else ""
    with pytest.raises(UserError, match=rf"there is no option '{prefix}epoch'"):
        to_config(tree)


def test_option_names_are_dotted_paths_of_the_schema():
    names = list(option_names(Config))
    assert len(names) == len(set(names))
    for name in ("seed", "attack.epsilon", "stage.at.epochs", "stage.finetune.target", "dataset.download"):
        assert name in names
    for name in ("stage", "stage.at"):
        assert name not in names


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("stage.at.epoch", "epochs"),
        ("stage.finetun.lr", "stage.finetune.lr"),
        ("modle.name", "model.name"),
        ("sed", "seed"),
    ],
)
def test_a_misspelt_option_is_told_its_nearest(typed, nearest):
    sentence = unknown_option(typed)
    assert f"'{typed}'" in sentence and f"did you mean '{nearest}'?" in sentence


def test_choose_from_names_the_nearest_then_all():
    assert choose_from("mrcc", ["at", "mrc"]) == "did you mean 'mrc'? Valid: at, mrc"
    assert choose_from("zzzz", ["at", "mrc"]) == "valid: at, mrc"
