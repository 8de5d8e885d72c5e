"""How a run's options compare with the paper's: what was chosen on the test set, and what differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from omegaconf import OmegaConf

from rift.conf_files import CONF, flat
from rift.config import Config
from rift.method_options import OPTIONS, resolved
from rift.stage_options import BY_CHANCE, BY_CRITICALITY

_ATTACKS = ("attack", "selection_attack", "evaluation_attack")

# What the paper says (Sec. 3.3, 5.1), option by option. Where it says nothing, the published code's value.
_ATTACK = {
    "norm": "linf",
    "epsilon": "8/255",
    "step_size": "2/255",
    "steps": 10,
    "random_start": True,
    "keep": "last",
}
_SGD = {
    "optimizer": "momentum",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "multistep",
    "decay_rate": 0.1,
}
_TRAINING = {**_SGD, "batch_size": 128, "padding_mode": "zeros", "selection_split": "test", "select": "best"}
PAPER: dict[str, Any] = {
    "model": {"width": None, "pretrained": False, "checkpoint": None, "normalise": True},
    "dataset": {"train_limit": None, "test_limit": None, "holdout_fraction": 0.0, "flip": True},
    "attack": {**_ATTACK, "batchnorm": "eval"},
    "selection_attack": _ATTACK,
    "evaluation_attack": _ATTACK,
    "stage": {
        "at": {
            **_TRAINING,
            "epochs": 110,
            "lr": 0.1,
            "milestones": [100, 105],
            "evaluate_every": 1,
            "label_smoothing": 0.0,
            "average": None,
            "patience": None,
            "start_epoch": 0,
        },
        "mrc": {
            "solver": "sgd",
            "split": "train",
            "max_images": None,
            "part": 0,
            "epsilon_w": 0.1,
            "norm": "l2",
            "epochs": 10,
            "batch_size": 512,
            "shuffle": False,
            "optimizer": "momentum",
            "lr": 1.0,
            "momentum": 0.0,
            "project": "epoch",
            "on_violation": "stop",
            "score": "last",
            "precision": "float32",
            "exclude": [],
        },
        "finetune": {
            **_TRAINING,
            "epochs": 10,
            "lr": 0.001,
            "milestones": [5],
            "target": "least_critical",
            "batchnorm": "frozen",
        },
        "interpolate": {
            "points": 11,
            "selection_split": "test",
            "restarts": 3,
            "exact_runs": True,
            "tolerance": 0.001,
            "batchnorm": "interpolate",
        },
        "evaluate": {
            "measure": ["pgd", "corruptions"],
            "restarts": 3,
            "exact_runs": True,
            "auto_attack": "standard",
            "auto_attack_images": None,
            "corruptions": "auto",
            "corruption_set": ["all19"],
            "severities": [1, 2, 3, 4, 5],
            "ood": "paper15",
        },
    },
}


def differences(config: Config) -> list[str]:
    """Every option whose value is not the paper's, one entry each: `stage.at.epochs = 20 (paper: 110)`.

    The two attacks that only follow the training attack are not listed again.
    """
    found = dict([*_differences(asdict(config), PAPER, ""), *_method_differences(config)])
    if config.stage.finetune.target in BY_CHANCE:
        found["stage.finetune.target_seed"] = f"{config.stage.finetune.target_seed} (draws the modules)"
    return [f"{option} = {text}" for option, text in found.items() if not _only_follows(option, text, found)]


def method_notes(config: Config) -> list[str]:
    """What a method's options come to in a run as short as this one."""
    options, at = resolved(config.method, config.model.family), config.stage.at
    warmup = options.get("warmup", 0)
    if "at" not in config.stage.run or not warmup or not at.epochs:
        return []
    if warmup >= at.epochs:
        return [f"method.warmup={warmup} outlasts the {at.epochs} epochs: no weight was ever perturbed"]
    return [f"weights are perturbed from epoch {warmup + 1} of {at.epochs} on"]


def _method_differences(config: Config) -> list[tuple[str, str]]:
    """The method's options whose values are not the published ones; the variant is in its name."""
    method, family = config.method, config.model.family
    ours = resolved(method, family)
    if method.name not in OPTIONS:  # another package's: what is published of it, nobody knows here
        return [(f"method.options.{name}", str(value)) for name, value in ours.items()]
    defaults = OmegaConf.load(CONF / "method" / f"{method.name}.yaml")
    theirs = resolved(replace(method, **{name: defaults[name] for name in _tunable(ours)}), family)
    return [
        (f"method.{name}", f"{ours[name]} (published: {theirs[name]})")
        for name in _tunable(ours)
        if ours[name] != theirs[name]
    ]


def _tunable(options: Mapping[str, Any]) -> list[str]:
    return [name for name in options if name not in ("base", "form")]


def _only_follows(option: str, text: str, texts: Mapping[str, str]) -> bool:
    """Whether an option of another attack says the same as the training attack's."""
    group, _, name = option.partition(".")
    return group in ("selection_attack", "evaluation_attack") and texts.get(f"attack.{name}") == text


def departures(config: Config) -> list[str]:
    """What the run does otherwise than its own protocol's file says, one sentence; none if it does nothing.

    An experiment, or the command line, replaces a protocol's values: that must be seen.
    """
    found = departing(config)
    return [departures_text(config, found)] if found else []


def departing(config: Config) -> dict[str, str]:
    """The options whose values are not those of the run's own protocol, with both: `0.04 (2/225)`."""
    own = protocol_settings(config.protocol.name, config)
    ours = flat(asdict(config))
    differing = {name: f"{ours[name]} ({own[name]})" for name in own if ours[name] != own[name]}
    return {name: text for name, text in differing.items() if not _only_follows(name, text, differing)}


def departures_text(config: Config, found: Mapping[str, str]) -> str:
    """The sentence for some of these options."""
    changed = ", ".join(f"{name} = {text}" for name, text in found.items())
    return f"protocol={config.protocol.name} is departed from: {changed}"


def named_by(option: str, typed: Collection[str]) -> bool:
    """Whether a departing option is one of those that the user has spoken of.

    Args:
        option: dotted.
        typed: names of options and of groups: `attack.steps`, `attack`, `attack@evaluation_attack`. Who names
            a protocol has spoken of all that it sets.
    """
    names = {name.rpartition("@")[2] for name in typed}
    # Of the choices of a group those of an attack alone set what a protocol sets: `stage=mrc` sets stage.run.
    return not names.isdisjoint(("protocol", option)) or option.partition(".")[0] in names & set(_ATTACKS)


def protocol_settings(name: str, config: Config) -> dict[str, Any]:
    """The options that a protocol's file sets, resolved for this run, by their dotted names."""
    folder = CONF / "protocol"
    tree = OmegaConf.load(folder / f"{name}.yaml")
    attack: dict[str, Any] = {}
    for entry in tree.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":  # the protocol that this one builds on
            tree = OmegaConf.merge(OmegaConf.load(folder / f"{entry}.yaml"), tree)
        elif not isinstance(entry, str):  # override /attack: CHOICE
            attack = dict(OmegaConf.load(CONF / "attack" / f"{entry['override /attack']}.yaml"))
            attack.pop("defaults", None)
    for role in _ATTACKS if attack else ():
        tree[role] = attack
    # Its interpolations look at the run's own options, so they are resolved among them.
    whole = OmegaConf.merge(asdict(config), tree)
    set_here = flat(OmegaConf.to_container(tree, resolve=False)).keys()
    resolved = flat(OmegaConf.to_container(whole, resolve=True))
    return {option: resolved[option] for option in sorted(set_here - {"protocol.name"})}


def _differences(ours: dict[str, Any], paper: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    found = []
    for name, value in paper.items():
        option = prefix + name
        if isinstance(value, dict):
            found += _differences(ours[name], value, f"{option}.")
        elif ours[name] != value:
            shown = "all" if value is None and name.endswith(("_limit", "_images")) else value
            found.append((option, f"{ours[name]} (paper: {shown})"))
    return found


def selection_notes(config: Config) -> list[str]:
    """Which choices are made on the test set, and so flatter the numbers."""
    stage, checkpoint = config.stage, config.model.checkpoint is not None
    trained = "at" in stage.run or not checkpoint
    chosen = {
        "the AT epoch": stage.at.selection_split if trained and stage.at.select == "best" else "none",
        "the fine-tuning epoch": stage.finetune.selection_split
        if stage.finetune.select == "best"
        else "none",
        "α*": stage.interpolate.selection_split,
        "the module": stage.mrc.split if stage.finetune.target in BY_CRITICALITY else "none",
    }
    notes = []
    if checkpoint and config.dataset.holdout_fraction > 0:
        notes.append("the checkpoint may have been trained on the held-out images")
    on_test = [what for what, split in chosen.items() if split == "test"]
    if not on_test:
        return ["no choice is made on the test set", *notes]
    listing = ", ".join(on_test[:-1]) + (" and " if len(on_test) > 1 else "") + on_test[-1]
    return [f"selected on the test set: {listing}; protocol=holdout selects nothing there", *notes]
