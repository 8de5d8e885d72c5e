"""Values that cannot be are refused before any work is done, each in one sentence."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf, open_dict
from tiny_jobs import composed, config_of

from rift.config import Config, to_config
from rift.errors import UserError, choose_from
from rift.explain import option_names, unknown_option
from rift.limits import number


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
        ("stage.at.lr=0", r"stage\.at\.lr=0\.0 is no positive number: give one above 0"),
        ("stage.at.epochs=-1", r"epochs=-1"),
        ("stage.at.evaluate_every=0", r"stage\.at\.evaluate_every=0"),
        ("stage.at.weight_decay=-1", r"stage\.at\.weight_decay=-1\.0 is too small: give 0 or more"),
        ("stage.finetune.lr=-1", r"stage\.finetune\.lr=-1\.0 is no positive number"),
        ("stage.finetune.lr=inf", r"stage\.finetune\.lr=inf is no positive number"),
        ("stage.finetune.lr=nan", r"stage\.finetune\.lr=nan is no positive number"),
        ("stage.finetune.momentum=1.5", r"stage\.finetune\.momentum=1\.5 is no share"),
        ("stage.at.milestones=[0]", r"stage\.at\.milestones=0 is too small"),
        ("stage.mrc.lr=-1", r"stage\.mrc\.lr=-1\.0 is no positive number"),
        ("attack.epsilon=8", r"attack\.epsilon=8 is more than .* \[0, 1\] here: did you mean 8/255\?"),
        ("attack.step_size=2", r"attack\.step_size=2 is more than .*: did you mean 2/255\?"),
        ("attack.epsilon=1.5", r"attack\.epsilon=1\.5 is more than .*: write 8/255, say"),
        ("seed=-1", r"seed=-1 is too small: give 0"),
        ("runtime.threads=0", r"runtime\.threads=0 is too small: give 1"),
        ("study=../../x", r"study=\.\./\.\./x is no plain folder name: .*output=FOLDER"),
        ("study=a/b", r"study=a/b is no plain folder name"),
        (
            "model.name=resnet50",
            r"model\.name=resnet50 would not change the network.*model=timm model\.name=",
        ),
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


def test_distances_under_l2_may_be_longer_than_a_pixel_s_range():
    assert config_of("attack.norm=l2", "attack.epsilon=8", "attack.step_size=2").attack.epsilon == "8"


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


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("epsilon", "'attack.epsilon', 'selection_attack.epsilon' or 'evaluation_attack.epsilon'"),
        ("epsilom", "'attack.epsilon', 'selection_attack.epsilon' or 'evaluation_attack.epsilon'"),
        ("lr", "'stage.at.lr', 'stage.mrc.lr' or 'stage.finetune.lr'"),
        ("stage.lr", "'stage.at.lr', 'stage.mrc.lr' or 'stage.finetune.lr'"),
        ("mrc.lr", "'stage.mrc.lr'"),
        ("root", "'dataset.root'"),
    ],
)
def test_an_option_without_its_group_is_told_its_full_names(typed, meant):
    assert unknown_option(typed) == f"there is no option '{typed}': did you mean {meant}?"


def test_choose_from_names_the_nearest_then_all():
    assert choose_from("mrcc", ["at", "mrc"]) == "did you mean 'mrc'? Valid: at, mrc"
    assert choose_from("zzzz", ["at", "mrc"]) == "valid: at, mrc"
