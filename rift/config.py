"""The typed schema of `conf/`. YAML holds the values; here are the types, the units and what cannot be.

Hydra checks names and types while composing; `check` knows each group's limits and says them before any work
is done. Nothing is ever written back: what is stored and logged is what was typed.

Where the paper or we have a value for everybody, it is the default here too, so that options can be made by
hand; which network and which images has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from rift import plugins
from rift.conf_files import CONF
from rift.corruption_names import SEVERITIES
from rift.errors import UserError, choose_from
from rift.limits import (
    LARGEST_SEED,
    at_least,
    finite,
    folder_name,
    number,
    one_of,
    positive,
    require,
    share,
    within_pixels,
)
from rift.method_options import MethodConfig, resolved
from rift.stage_options import StageConfig

MOST_PADDING = 256  # pixels; the whole set is padded at once
MOST_THREADS = 1024  # of a CPU; a system that is asked for millions ends the process


@dataclass
class ModelConfig:
    family: str = MISSING  # a name in rift.models.MODELS
    name: str | None = None  # family timm only: timm's name
    width: int | None = None  # channels of the first ResNet stage; widening factor of a WRN
    pretrained: bool = False  # timm only: start from timm's published weights
    checkpoint: str | None = None  # weights to start from; without the stage `at` they are θ_AT
    normalise: bool = True  # by dataset.mean and std in its first layer; false: the weights want [0, 1]
    options: dict[str, Any] = field(default_factory=dict)  # a plugin's own: +model.options.NAME=VALUE

    def check(self, where: str) -> None:
        _check_options(where, self.family, self.options)
        at_least(f"{where}.width", self.width, 1)
        require(
            self.name is None or self.family == "timm",
            f"{where}.name={self.name} would not change the network, which is {self.family}: "
            f"leave it out, or say {where}=timm {where}.name={self.name}.",
        )


@dataclass
class DatasetConfig:
    name: str = MISSING  # a name in rift.data.DATASETS
    root: str = MISSING  # folder that holds, or gets, the files
    download: bool = False  # fetch what is missing, checksums compared
    mean: list[float] = MISSING  # per channel, of images in [0, 1]
    std: list[float] = MISSING  # likewise
    padding: int = MISSING  # pixels added on each side before the random crop
    flip: bool = MISSING  # mirror at random
    image_size: int | None = None  # pixels; image_folder only
    train_limit: int | None = None  # images at most, class-balanced; null is all
    test_limit: int | None = None  # likewise, of the test images
    holdout_fraction: float = 0.0  # share of the training images set aside for selection
    split_seed: int = 0  # decides the holdout, whatever the run's seed
    cache: str | None = None  # folder for decoded images
    corrupted_root: str | None = None  # folder that holds, or gets, CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C
    official_scan_split: str = "test"  # which split the published code scans
    official_severities: list[int] = field(default_factory=lambda: list(SEVERITIES))  # that it evaluates
    options: dict[str, Any] = field(default_factory=dict)  # a plugin's own: +dataset.options.NAME=VALUE

    def check(self, where: str) -> None:
        _check_options(where, self.name, self.options)
        share(f"{where}.holdout_fraction", self.holdout_fraction)
        at_least(f"{where}.padding", self.padding, 0, MOST_PADDING)
        at_least(f"{where}.split_seed", self.split_seed, 0, LARGEST_SEED)
        for value in self.mean:
            finite(f"{where}.mean", value)
        for value in self.std:
            positive(f"{where}.std", value)
        for severity in self.official_severities:
            require(severity in SEVERITIES, f"{where}.official_severities={severity} is not one of 1 to 5.")
        for option in ("image_size", "train_limit", "test_limit"):
            at_least(f"{where}.{option}", getattr(self, option), 1)


@dataclass
class AttackConfig:
    norm: str = "linf"  # linf or l2
    epsilon: str = "8/255"  # radius in units of the [0, 1] image, as a fraction: 8/255
    step_size: str = "2/255"  # same units
    steps: int = 10  # gradient evaluations per image
    random_start: bool = True  # uniform in the ball; else from the image itself
    keep: str = "last"  # last iterate, or the best per image
    batchnorm: str = "eval"  # BatchNorm mode while crafting in training: eval or train
    plugin: str | None = None  # another package's attack in place of PGD
    options: dict[str, Any] = field(default_factory=dict)  # a plugin's own: +attack.options.NAME=VALUE

    def check(self, where: str) -> None:
        _check_options(where, self.plugin, self.options)
        require(
            self.plugin is None or self.plugin in plugins.installed("attack"),
            f"{where}.plugin={self.plugin} is no attack of an installed package: install it.",
        )
        one_of(f"{where}.norm", self.norm, ("linf", "l2"))
        one_of(f"{where}.keep", self.keep, ("last", "best"))
        one_of(f"{where}.batchnorm", self.batchnorm, ("eval", "train"))
        at_least(f"{where}.steps", self.steps, 1)
        distance = within_pixels if self.norm == "linf" else number
        distance(f"{where}.epsilon", self.epsilon)
        distance(f"{where}.step_size", self.step_size)
        still = number(f"{where}.step_size", self.step_size) == 0 < number(f"{where}.epsilon", self.epsilon)
        require(
            not still, f"{where}.step_size={self.step_size} attacks nothing: give a length such as 2/255."
        )


@dataclass
class ProtocolConfig:
    name: str = "paper"  # a file of conf/protocol

    def check(self, where: str) -> None:
        one_of(f"{where}.name", self.name, sorted(path.stem for path in (CONF / "protocol").glob("*.yaml")))


@dataclass
class RuntimeConfig:
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    precision: str = "auto"  # of crafting and the training step: auto, float32, bfloat16
    selection_precision: str = "auto"  # of crafting where something is chosen: auto, float32, bfloat16
    evaluation_precision: str = "float32"  # of crafting where a number is reported: float32, bfloat16
    channels_last: bool | None = None  # memory format; null: see conf/runtime/default.yaml
    fold_batchnorm: bool = True  # craft through a twin with BatchNorm folded into convolutions
    cuda_graphs: bool = True  # replay attacks and training steps as CUDA graphs
    compile: bool = False  # torch.compile of the crafting network and the training step
    benchmark_limit: int = 10  # algorithms that cuDNN tries for each new shape; 0 is all
    strict: bool = False  # what cannot be done as asked is an error, not a fallback
    save_seconds: float = 60.0  # between resume points of a training, besides those at a new best
    tf32: bool = False  # float32 products in TF32 on a GPU: faster, three decimal digits
    deterministic: bool = False  # algorithms that give the same bits each time on one machine
    batch_size: int = 512  # images per batch where no weights are updated
    cache_mib: int | None = None  # bound of the MRC scan's activation cache; null: see Runtime
    threads: int | None = None  # CPU threads; null is torch's choice
    estimate: bool = True  # time the first batches, so that the plan says how long each stage will take

    def check(self, where: str) -> None:
        one_of(f"{where}.precision", self.precision, ("auto", "float32", "bfloat16"))
        one_of(f"{where}.selection_precision", self.selection_precision, ("auto", "float32", "bfloat16"))
        one_of(f"{where}.evaluation_precision", self.evaluation_precision, ("float32", "bfloat16"))
        at_least(f"{where}.batch_size", self.batch_size, 1)
        at_least(f"{where}.cache_mib", self.cache_mib, 0)
        at_least(f"{where}.benchmark_limit", self.benchmark_limit, 0)
        at_least(f"{where}.save_seconds", self.save_seconds, 0)
        at_least(f"{where}.threads", self.threads, 1, MOST_THREADS)


@dataclass
class LoggerConfig:
    name: str = MISSING  # wandb or none
    mode: str = "auto"  # auto (online if credentials exist), online, offline
    project: str = "rift"  # of W&B
    entity: str | None = None  # W&B user or team; null is the default of the account
    tags: list[str] = field(default_factory=list)  # of the W&B run, besides ours

    def check(self, where: str) -> None:
        one_of(f"{where}.name", self.name, ("wandb", "none"))
        one_of(f"{where}.mode", self.mode, ("auto", "online", "offline"))


@dataclass
class Config:
    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    attack: AttackConfig = MISSING
    selection_attack: AttackConfig = MISSING  # chooses epochs, modules and α
    evaluation_attack: AttackConfig = MISSING  # of the final numbers
    method: MethodConfig = MISSING
    stage: StageConfig = MISSING
    protocol: ProtocolConfig = MISSING
    runtime: RuntimeConfig = MISSING
    logger: LoggerConfig = MISSING
    seed: int = MISSING  # of everything random but the held-out split
    smoke: bool = MISSING  # shrink everything to seconds on the same code path
    study: str = MISSING  # folder of the job; also W&B's group
    output: str = MISSING  # folder of all results

    def check(self) -> None:
        """Raises `UserError` at the first value that cannot be, its option named in full."""
        _check_groups(self, "")
        at_least("seed", self.seed, 0, LARGEST_SEED)
        folder_name("study", self.study)
        start_std = resolved(self.method, self.model.family).get("start_std")
        require(
            self.attack.random_start or bool(start_std) or not self.method.compares_with_clean,
            f"method={self.method.name} cannot start from the clean image, where a distance from the clean "
            "output has no slope: set attack.random_start=true.",
        )
        require(
            self.stage.at.start_epoch == 0 or self.model.checkpoint is not None,
            f"stage.at.start_epoch={self.stage.at.start_epoch} needs the weights of that epoch: give "
            "model.checkpoint=PATH.",
        )
        require(
            self.stage.at.start_epoch == 0 or "at" in self.stage.run,
            f"stage.at.start_epoch={self.stage.at.start_epoch} needs the stage at, which goes on from there: "
            "add it to stage.run, or leave the option out.",
        )
        splits = {
            "stage.at.selection_split": self.stage.at.selection_split,
            "stage.finetune.selection_split": self.stage.finetune.selection_split,
            "stage.interpolate.selection_split": self.stage.interpolate.selection_split,
            "stage.mrc.split": self.stage.mrc.split,
        }
        for option, split in splits.items():
            require(
                split != "holdout" or self.dataset.holdout_fraction > 0,
                f"{option}=holdout needs held-out images: set dataset.holdout_fraction=0.02 or "
                "protocol=holdout.",
            )

    @property
    def corruptions_kind(self) -> str:
        """Which corrupted images are evaluated: `published` or `generated`."""
        kind = self.stage.evaluate.corruptions
        if kind == "auto":
            return "generated" if self.dataset.corrupted_root is None else "published"
        return kind


def _check_groups(group: Any, prefix: str) -> None:
    for entry in fields(group):
        value = getattr(group, entry.name)
        if is_dataclass(value):
            value.check(prefix + entry.name)
            _check_groups(value, f"{prefix}{entry.name}.")


def _check_options(where: str, name: str | None, options: Mapping[str, Any]) -> None:
    """`options` are a plugin's: what is rift's own has fields instead."""
    group = "attack" if where.endswith("attack") else where
    require(
        not options or name in plugins.installed(group),
        f"{where}.options are for a plugin's {group}, which {name or 'this'} is not: leave them out.",
    )


def register_plugins() -> None:
    """Makes what other packages offer a choice of its group, by its name; nothing is imported.

    Raises:
        UserError: see `plugins.installed`.
    """
    nodes: dict[str, Callable[[str], dict[str, Any]]] = {
        "model": lambda name: {"family": name},
        "method": lambda name: {"name": name},
        "attack": lambda name: {"plugin": name},
        "dataset": lambda name: {"name": name, "root": "data", "padding": 0, "flip": False},
    }
    for group, node in nodes.items():
        for name in plugins.installed(group):
            ConfigStore.instance().store(group=group, name=name, node=node(name))


ConfigStore.instance().store(name="schema", node=Config)
# Where the published code halves: an interpolation in YAML cannot divide.
OmegaConf.register_new_resolver("half", lambda count: max(1, int(count) // 2), replace=True)


def to_config(composed: DictConfig) -> Config:
    """Hydra's composed configuration as dataclasses, every limit checked.

    Raises:
        UserError: a value that cannot be.
    """
    _refuse_additions(Config, composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    config.check()
    return config


def _refuse_additions(schema: type, composed: DictConfig, prefix: str = "") -> None:
    """Hydra's `+option=value` adds an option that nothing would read."""
    types = get_type_hints(schema)
    for name in composed:
        if name not in types:
            raise UserError(f"there is no option '{prefix}{name}': {choose_from(str(name), types)}.")
        if is_dataclass(types[name]):
            _refuse_additions(types[name], composed[name], f"{prefix}{name}.")
