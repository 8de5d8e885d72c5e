"""The options of the training methods: published values, what cannot be, what a run is then called."""

from __future__ import annotations

import inspect

import pytest
from tiny_jobs import config_of

from rift.assembly import make_method
from rift.errors import UserError
from rift.method_options import OPTIONS, MethodConfig, resolved
from rift.methods import METHODS
from rift.methods.awp import awp
from rift.naming import job_name
from rift.protocol import differences, method_notes


def test_the_options_are_those_that_the_methods_take():
    for name, builder in METHODS.items():
        assert set(inspect.signature(builder).parameters) - {"label_smoothing"} == set(OPTIONS[name]), name
    assert set(OPTIONS) == {*METHODS, "awp"}
    own = set(inspect.signature(awp).parameters)
    assert own <= set(OPTIONS["awp"]) and set(OPTIONS["awp"]) - own == {"beta", "start_std"}


@pytest.mark.parametrize(
    ("typed", "published"),
    [
        (["method=pgd_at"], {}),
        (["method=trades"], {"beta": 6.0, "start_std": 0.001}),
        (["method=mart"], {"beta": 5.0, "start_std": 0.001}),
        (["method=mart", "model=wrn34_10"], {"beta": 6.0, "start_std": 0.001}),
        (["method=awp"], {"base": "pgd_at", "gamma": 0.01, "warmup": 0}),
        (
            ["method=awp", "method.base=trades"],
            {"base": "trades", "gamma": 0.005, "warmup": 9, "beta": 6.0, "start_std": 0.001},
        ),
        (
            ["method=awp", "method.base=mart", "method.beta=6"],
            {"base": "mart", "gamma": 0.005, "warmup": 0, "beta": 6.0, "start_std": 0.001},
        ),
        (["method=score"], {"form": "pgd_at", "clip": 0.4, "beta": 0.0, "start_std": 0.0}),
        (
            ["method=score", "method.form=trades"],
            {"form": "trades", "clip": 0.3, "beta": 6.0, "start_std": 0.001},
        ),
        (["method=score", "method.form=ddpm"], {"form": "ddpm", "clip": 0.0, "beta": 4.0, "start_std": 0.0}),
        (["method=n_fgsm"], {"start_radius": 2.0, "step": 1.0}),
        (
            ["method=aaer"],
            {"start_radius": 2.0, "step": 1.0, "lambda1": 1.0, "lambda2": 1.5, "lambda3": 0.15},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_defaults_are_the_official_codes(typed, published):
    config = config_of(*typed)
    assert resolved(config.method, config.model.family) == published
    # What is refused before torch is imported is what the method does.
    assert make_method(config).from_clean is config.method.compares_with_clean
    assert (
        not [line for line in differences(config) if line.startswith("method.")] or "method.beta=6" in typed
    )


def test_what_is_not_the_official_codes_is_said():
    config = config_of("method=awp", "method.gamma=0.005", "stage.at.average=0.99")
    assert "method.gamma = 0.005 (published: 0.01)" in differences(config)
    assert "stage.at.average = 0.99 (paper: None)" in differences(config)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["method=trades", "method.beta=-1"], r"method\.beta=-1\.0 is too small: give 0 or more"),
        (["method=trades", "method.beta=nan"], r"method\.beta=nan is not finite"),
        (["method=mart", "method.beta=inf"], r"method\.beta=inf is not finite"),
        (["method.beta=3"], r"method\.beta=3\.0 is no option of method=pgd_at: it has no options"),
        (["method=trades", "method.gamma=1"], r"method\.gamma=1\.0 is no option .*beta, start_std"),
        (["method=awp", "method.base=awp"], r"method\.base=awp is not known: .*pgd_at, trades, mart"),
        (["method=awp", "method.base=null"], r"method\.base=None is not known"),
        (["method=awp", "method.base=trads"], r"did you mean 'trades'"),
        (["method=awp", "method.beta=3"], r"method\.beta=3\.0 does nothing with method\.base=pgd_at"),
        (["method=awp", "method.gamma=-0.1"], r"method\.gamma=-0\.1 is too small"),
        (["method=score", "method.form=lse"], r"method\.form=lse is not known: .*ddpm"),
        (["method=score", "method.beta=3"], r"method\.beta=3\.0 does nothing with method\.form=pgd_at"),
        (["method=score", "method.clip=1.5"], r"method\.clip=1\.5 is no share"),
        (["method=n_fgsm", "method.step=null"], r"method\.step has no value: give a number"),
        (["method=aaer", "method.lambda1=-1"], r"method\.lambda1=-1\.0 is too small"),
        (["method.name=trade"], r"method\.name=trade is not known: did you mean 'trades'"),
        (
            ["method=score", "method.form=ddpm", "attack.random_start=false"],
            r"cannot start from the clean image.*attack\.random_start=true",
        ),
        (
            ["method=trades", "method.start_std=0", "attack=fgsm"],
            r"cannot start from the clean image.*attack\.random_start=true",
        ),
        (["stage.at.start_epoch=3"], r"stage\.at\.start_epoch=3 needs the weights of that epoch"),
        (["stage.at.start_epoch=110", "model.checkpoint=x"], r"start_epoch=110 leaves nothing of"),
        (["stage.at.start_epoch=3", "model.checkpoint=x", "stage=mrc"], r"needs the stage at"),
        (["stage.at.average=1"], r"stage\.at\.average=1\.0 is no share"),
        (["stage.at.patience=0"], r"stage\.at\.patience=0 is too small"),
        (["stage.at.label_smoothing=1"], r"stage\.at\.label_smoothing=1\.0 is no share"),
        (["stage.finetune.target_seed=-1"], r"target_seed=-1 is too small"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_sentence(typed, words):
    with pytest.raises(UserError, match=words) as error:
        config_of(*typed)
    assert "\n" not in str(error.value)


def test_a_normal_start_needs_no_random_start():
    assert config_of("method=trades", "attack.random_start=false")


def test_a_warmup_that_outlasts_the_run_is_said():
    """Published for hundreds of epochs, nine without perturbation may be all there are."""
    trades = ["method=awp", "method.base=trades"]
    assert method_notes(config_of(*trades, "stage.at.epochs=5")) == [
        "method.warmup=9 outlasts the 5 epochs: no weight was ever perturbed"
    ]
    assert method_notes(config_of(*trades)) == ["weights are perturbed from epoch 10 of 110 on"]
    assert method_notes(config_of("method=awp")) == method_notes(config_of("method=trades")) == []


def test_the_seed_of_a_module_by_chance_is_said():
    by_chance = config_of("stage.finetune.target=random", "stage.finetune.target_seed=3")
    assert "stage.finetune.target_seed = 3 (draws the modules)" in differences(by_chance)
    assert not [line for line in differences(config_of()) if "target_seed" in line]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (["method=trades"], "resnet18-cifar10-trades-s0"),
        (["method=awp"], "resnet18-cifar10-awp-s0"),
        (["method=awp", "method.base=mart"], "resnet18-cifar10-awp_mart-s0"),
        (["method=score"], "resnet18-cifar10-score-s0"),
        (["method=score", "method.form=trades"], "resnet18-cifar10-score_trades-s0"),
        (["method=n_fgsm", "stage.at.average=0.999"], "resnet18-cifar10-n_fgsm_ema-s0"),
    ],
)
def test_a_run_is_called_by_what_ran(typed, name):
    assert job_name(config_of(*typed)) == name


def test_the_schema_has_no_option_that_no_method_has():
    own = set(MethodConfig.__dataclass_fields__) - {"name", "options"}  # of a plugin's, `options`
    assert {name for options in OPTIONS.values() for name in options} == own
