"""Every file of conf/ composes into the schema, and says what its name promises."""

from __future__ import annotations

import re
import shlex
from math import prod
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf.errors import OmegaConfBaseException
from tiny_jobs import composed, config_of

from rift.assembly import make_attack
from rift.attacks import Attack
from rift.conf_files import CONF
from rift.config import number, to_config
from rift.data import DATASETS
from rift.explain import explain, option_names
from rift.method_options import OPTIONS as METHOD_OPTIONS
from rift.models import MODELS
from rift.stage_options import CHAIN, STAGES

HYDRA_S_OWN = CONF / "hydra"  # launchers, whose options are no options of ours
FILES = sorted(path.relative_to(CONF) for path in CONF.glob("*/**/*.yaml") if HYDRA_S_OWN not in path.parents)
GROUPS = sorted({str(path.parent) for path in FILES})
# Choices that leave something for the user to name.
NEEDED = {
    "model/timm": ["model.name=resnet26d"],
    "dataset/image_folder": ["dataset.root=images"],
}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SAME = Path("attack/same.yaml")  # for the roles of attack@ROLE alone


def choice(path) -> list[str]:
    name = f"{path.parent}/{path.stem}"
    return [f"{path.parent}={path.stem}", *NEEDED.get(name, [])]


def alternatives(overrides: list[str]) -> list[list[str]]:
    """For each part of a sweep's command line, what it stands for."""
    parts = []
    for text in overrides:
        override = OverridesParser.create().parse_override(text)
        key = override.get_key_element()
        parts.append(
            [f"{key}={value}" for value in override.sweep_string_iterator()]
            if override.is_sweep_override()
            else [text]
        )
    return parts


def sample_jobs(overrides: list[str]) -> list[list[str]]:
    """Jobs of a sweep in which every value of every part occurs: options of a sweep are independent."""
    parts = alternatives(overrides)
    rounds = max(len(part) for part in parts)
    return [[part[index % len(part)] for part in parts] for index in range(rounds)]


def swept(experiment: str) -> list[str]:
    """The sweep that an experiment file holds, as overrides."""
    parameters = composed(f"experiment={experiment}", hydra=True).hydra.sweeper.params or {}
    return [f"{name}={values}" for name, values in parameters.items()]


@pytest.mark.parametrize("path", [path for path in FILES if path != SAME], ids=str)
def test_every_file_composes_into_the_schema(path):
    config = config_of(*choice(path))
    assert set(config.stage.run) <= set(STAGES) and config.stage.run
    assert config.dataset.name in DATASETS
    assert config.model.family in MODELS
    assert config.method.name in METHOD_OPTIONS
    assert isinstance(make_attack(config.attack), Attack)
    assert isinstance(make_attack(config.evaluation_attack), Attack)


@pytest.mark.parametrize("path", [path for path in FILES if str(path.parent) == "attack"], ids=str)
def test_every_attack_can_evaluate_as_well(path):
    config = config_of(f"attack@evaluation_attack={path.stem}")
    expected = {"same": "pgd10", "pgd10_official": "pgd10"}.get(path.stem, path.stem)
    assert make_attack(config.attack).name == "pgd10"
    assert make_attack(config.evaluation_attack).name == expected


def test_the_training_attack_cannot_be_the_same_as_itself():
    with pytest.raises(OmegaConfBaseException) as error:
        config_of("attack=same")
    assert explain(error.value).startswith("attack.norm refers to itself")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_keys_are_options_or_hydra_s(path):
    """A key that is no option would be refused only in combination; here it is found alone."""
    text = yaml.safe_load((CONF / path).read_text())
    prefix = "" if "_global_" in (CONF / path).read_text().splitlines()[0] else f"{path.parent}."
    names = set(option_names())

    def leaves(value, name):
        if isinstance(value, dict) and name not in names:
            for key, part in value.items():
                yield from leaves(part, f"{name}.{key}" if name else key)
        else:
            yield name

    text.pop("defaults", None), text.pop("hydra", None)
    unknown = {prefix + name for name in leaves(text, "")} - names
    assert not unknown


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("smoke", ["false", "true"])
def test_every_experiment_composes_with_every_value_of_its_sweep(experiment, smoke):
    configs = [
        config_of(*job)
        for job in sample_jobs([f"experiment={experiment}", f"smoke={smoke}", *swept(experiment)])
    ]
    assert len({str(config) for config in configs}) == len(configs), "two jobs of a sweep are the same"
    assert {config.study for config in configs} == {experiment}
    assert {config.smoke for config in configs} == {smoke == "true"}


def test_the_paper_s_tables_are_swept_in_full():
    sizes = {name: prod(map(len, alternatives(swept(name)))) for name in EXPERIMENTS if swept(name)}
    # Table 1: 3 backbones × 3 sets × 3 seeds; table 2: 4 methods × 2 sets × 3 seeds.
    assert {name: sizes[name] for name in sizes if name.startswith("table")} == {
        "table1": 27,
        "table2": 24,
        "table3": 15,
        "table4": 12,
    }
    targets = ("all", "last_layer", "most_critical", "least_critical", "random")
    assert set(alternatives(swept("table3"))[0]) == {f"stage.finetune.target={name}" for name in targets}


def test_the_arms_of_the_batchnorm_ablation_are_four_different_runs():
    arms = ("moving", "frozen", "only_statistics", "kept")
    found = {
        arm: (c.finetune.target, c.finetune.batchnorm, c.interpolate.batchnorm)
        for arm in arms
        for c in [config_of("experiment=bn_ablation", f"arm={arm}").stage]
    }
    assert found == {
        "moving": ("least_critical", "train", "interpolate"),
        "frozen": ("least_critical", "frozen", "interpolate"),
        "only_statistics": ("none", "train", "interpolate"),
        "kept": ("least_critical", "train", "keep"),
    }
    # Whatever else sets these options, the arm has the last word.
    other = config_of("experiment=demo", "protocol=official", "arm=frozen").stage
    assert other.finetune.batchnorm == "frozen"


def test_without_arguments_it_is_the_paper_s_main_row():
    config = config_of()
    assert (config.model.family, config.dataset.name, config.method.name) == ("resnet18", "cifar10", "pgd_at")
    assert config.protocol.name == "paper"
    assert config.stage.run == list(CHAIN)
    assert config.dataset.mean == [0.4914, 0.4822, 0.4465]
    assert config.dataset.std == [0.2471, 0.2435, 0.2616]
    assert (config.dataset.padding, config.dataset.flip) == (4, True)
    for attack in (config.attack, config.evaluation_attack):
        assert (attack.norm, attack.epsilon, attack.step_size, attack.steps) == ("linf", "8/255", "2/255", 10)
        assert attack.random_start is True
        assert attack.batchnorm == "eval"
    at = config.stage.at
    assert (at.epochs, at.batch_size, at.lr, at.momentum, at.weight_decay) == (110, 128, 0.1, 0.9, 5e-4)
    assert (at.schedule, at.milestones, at.decay_rate) == ("multistep", [100, 105], 0.1)
    mrc = config.stage.mrc
    assert (mrc.solver, mrc.epsilon_w, mrc.norm, mrc.epochs) == ("sgd", 0.1, "l2", 10)
    assert (mrc.lr, mrc.momentum, mrc.batch_size, mrc.project) == (1.0, 0.0, 512, "epoch")
    finetune = config.stage.finetune
    assert (finetune.target, finetune.epochs, finetune.lr) == ("least_critical", 10, 0.001)
    assert (finetune.momentum, finetune.milestones, finetune.decay_rate) == (0.9, [5], 0.1)
    assert config.stage.interpolate.tolerance == 0.001  # 0.1 points
    assert config.stage.interpolate.points == 11
    assert config.stage.evaluate.exact_runs is True


def test_tiny_imagenet_is_padded_and_normalised_as_in_the_paper():
    data = config_of("dataset=tiny_imagenet").dataset
    assert data.padding == 8
    assert (data.mean, data.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def switches(config) -> dict:
    """Every point at which the paper and the published code disagree, and where choices are made."""
    stage = config.stage
    return {
        "step": config.attack.step_size,
        "scan split": stage.mrc.split,
        "on violation": stage.mrc.on_violation,
        "score": stage.mrc.score,
        "shuffle": stage.mrc.shuffle,
        "excluded": stage.mrc.exclude,
        "batchnorm": stage.finetune.batchnorm,
        "padding": stage.finetune.padding_mode,
        "interpolate runs": stage.interpolate.restarts,
        "evaluate runs": stage.evaluate.restarts,
        "selection": {
            stage.at.selection_split,
            stage.finetune.selection_split,
            stage.interpolate.selection_split,
        },
        "holdout": config.dataset.holdout_fraction > 0,
    }


PAPER = {
    "step": "2/255",
    "scan split": "train",
    "on violation": "stop",
    "score": "last",
    "shuffle": False,
    "excluded": [],
    "batchnorm": "frozen",
    "padding": "zeros",
    "interpolate runs": 3,
    "evaluate runs": 3,
    "selection": {"test"},
    "holdout": False,
}
OFFICIAL = {
    "step": "2/225",
    "scan split": "test",
    "on violation": "continue",
    "score": "worst",
    "shuffle": True,
    "excluded": [],
    "batchnorm": "train",
    "padding": "reflect",
    "interpolate runs": 1,
    "evaluate runs": 1,
    "selection": {"test"},
    "holdout": False,
}


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("paper", PAPER),
        ("official", OFFICIAL),
        ("holdout", PAPER | {"selection": {"holdout"}, "holdout": True}),
    ],
)
def test_protocols_set_the_points_of_disagreement(protocol, expected):
    config = config_of(f"protocol={protocol}")
    assert config.protocol.name == protocol
    assert switches(config) == expected


def test_the_published_code_scans_tiny_imagenet_s_training_images():
    assert config_of("protocol=official", "dataset=tiny_imagenet").stage.mrc.split == "train"


@pytest.mark.parametrize(("epochs", "drop"), [(10, 5), (5, 2), (40, 20), (1, 1)])
def test_the_published_code_lowers_its_rate_after_half_of_the_epochs(epochs, drop):
    assert config_of("protocol=official", f"stage.finetune.epochs={epochs}").stage.finetune.milestones == [
        drop
    ]
    assert config_of(f"stage.finetune.epochs={epochs}").stage.finetune.milestones == [5]


def test_official_typo_makes_a_slightly_larger_step():
    assert number("step", "2/225") == 2 / 225 > 2 / 255


def test_a_protocol_never_undoes_what_was_typed():
    config = config_of("protocol=official", "stage.finetune.batchnorm=frozen", "attack.step_size=1/255")
    assert config.stage.finetune.batchnorm == "frozen"
    assert config.attack.step_size == config.evaluation_attack.step_size == "1/255"


def test_the_demo_can_be_run_under_another_protocol():
    config = config_of("experiment=demo", "protocol=holdout")
    assert config.protocol.name == "holdout"
    assert switches(config)["selection"] == {"holdout"}


@pytest.mark.parametrize("typed", ["smoke=true", "smoke=True", "smoke=false", 'smoke="true"'])
def test_smoke_is_typed_as_people_type_booleans(typed):
    assert config_of(typed).smoke is ("rue" in typed)


@pytest.mark.parametrize("pair", [("attack.epsilon", "4/255"), ("attack.steps", "3"), ("attack.norm", "l2")])
def test_evaluation_attacks_as_training_does_unless_told_otherwise(pair):
    name, value = pair
    option = name.partition(".")[2]
    same = config_of(f"{name}={value}")
    assert getattr(same.evaluation_attack, option) == getattr(same.attack, option)
    other = config_of(f"{name}={value}", "attack@evaluation_attack=pgd20")
    assert other.evaluation_attack.steps == 20
    assert other.evaluation_attack.epsilon == "8/255"


def test_a_batchnorm_mode_for_crafting_is_one_of_training_alone():
    config = config_of("attack.batchnorm=train")
    assert (config.attack.batchnorm, config.evaluation_attack.batchnorm) == ("train", "eval")


def test_nothing_in_conf_names_code():
    for path in CONF.rglob("*.yaml"):
        assert "_target_" not in path.read_text(), path


def test_there_are_fewer_than_forty_files_besides_experiments_their_arms_and_names_of_networks():
    assert len([path for path in FILES if path.parent.name not in ("experiment", "arm", "model")]) < 40


# -- the help text ------------------------------------------------------------------------------------


def help_text() -> str:
    return composed(hydra=True).hydra.help.template


def test_help_explains_every_group_and_no_other():
    section = help_text().split("$APP_CONFIG_GROUPS")[1].split("Examples:")[0]
    explained = re.findall(r"^  (\w+)  ", section, flags=re.MULTILINE)
    assert sorted(explained) == GROUPS


def test_help_has_five_examples_and_each_composes():
    examples = re.findall(r"^ +rift (.*?)(?:  +.*)?$", help_text().split("Examples:")[1], re.M)
    assert len(examples) == 5
    for line in examples:
        words = [word for word in shlex.split(line) if word != "-m"]
        jobs = sample_jobs(words)
        assert (len(jobs) > 1) == ("-m " in line)
        for job in jobs:
            to_config(composed(*job))


def test_options_that_help_names_exist():
    named = re.findall(r"\b((?:\w+\.)+\w+)=", help_text())
    assert named
    assert set(named) <= set(option_names())
