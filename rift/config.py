"""The typed schema of `conf/`. YAML holds the values; here are the types, the units and what cannot be.

Hydra checks names and types while composing; `__post_init__` checks ranges, before any work is done.
Nothing is ever written back: what is stored and logged is what was typed.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field, is_dataclass
from fractions import Fraction
from typing import get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from rift.errors import UserError, choose_from

STAGES = ("at", "mrc", "finetune", "interpolate", "evaluate")
TARGETS = ("least_critical", "most_critical", "last_layer", "all", "top_k", "none")


def require(condition: bool, sentence: str) -> None:
    """Raises `UserError(sentence)` unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def one_of(option: str, value: str, valid: tuple[str, ...]) -> None:
    """Raises `UserError` unless `value` is among `valid`."""
    require(value in valid, f"{option}={value} is not known: {choose_from(value, valid)}.")


def at_least(option: str, value: float, low: float) -> None:
    """Raises `UserError` if `value` is below `low`."""
    require(value >= low, f"{option}={value} is too small: give {low} or more.")


def number(option: str, text: str) -> float:
    """A budget such as `8/255` or `0.03` as a number; never evaluated as code."""
    try:
        value = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"{option}={text} is no number: write a fraction such as 8/255 or a decimal."
        ) from error
    at_least(option, value, 0)
    return value


@dataclass
class ModelConfig:
    family: str = MISSING  # a name in rift.models.MODELS
    name: str = MISSING  # how tables call it; with family timm, timm's name
    width: int | None = None  # channels of the first ResNet stage; widening factor of a WRN
    pretrained: bool = False  # timm only: start from timm's published weights
    checkpoint: str | None = None  # weights to start from; without the stage `at` they are θ_AT

    def __post_init__(self) -> None:
        if self.width is not None:
            at_least("model.width", self.width, 1)


@dataclass
class DatasetConfig:
    name: str = MISSING  # a name in rift.data.DATASETS
    root: str = MISSING  # folder that holds, or gets, the files
    download: bool = False
    mean: list[float] = MISSING  # per channel, of images in [0, 1]
    std: list[float] = MISSING
    padding: int = MISSING  # pixels added on each side before the random crop
    flip: bool = MISSING  # mirror at random
    image_size: int | None = None  # pixels; image_folder only
    train_limit: int | None = None  # images, class-balanced; null is all
    test_limit: int | None = None
    holdout_fraction: float = 0.0  # share of the training images set aside for selection
    split_seed: int = 0  # decides the holdout, whatever the run's seed
    cache: str | None = None  # folder for decoded images

    def __post_init__(self) -> None:
        require(
            0 <= self.holdout_fraction < 1,
            f"dataset.holdout_fraction={self.holdout_fraction} is no share: give a number in [0, 1).",
        )


@dataclass
class AttackConfig:
    name: str = MISSING
    norm: str = MISSING  # linf or l2
    epsilon: str = MISSING  # radius in units of the [0, 1] image, as a fraction: 8/255
    step_size: str = MISSING  # same units
    steps: int = MISSING  # gradient evaluations per image
    random_start: bool = MISSING
    keep: str = MISSING  # last iterate, or the best per image
    batchnorm: str = MISSING  # BatchNorm mode while crafting in training: eval or train

    def __post_init__(self) -> None:
        one_of("attack.norm", self.norm, ("linf", "l2"))
        one_of("attack.keep", self.keep, ("last", "best"))
        one_of("attack.batchnorm", self.batchnorm, ("eval", "train"))
        at_least("attack.steps", self.steps, 1)
        number("attack.epsilon", self.epsilon)
        number("attack.step_size", self.step_size)


@dataclass
class MethodConfig:
    name: str = MISSING  # a name in rift.methods.METHODS


@dataclass
class TrainingConfig:
    epochs: int = MISSING
    batch_size: int = MISSING  # images per update
    optimizer: str = MISSING  # any name of timm.optim; `momentum` is SGD with plain momentum
    lr: float = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING  # on every parameter, biases and BatchNorm included
    schedule: str = MISSING  # constant, or a name of timm.scheduler: multistep, cosine, …
    milestones: list[int] = MISSING  # epochs after which the rate is multiplied by decay_rate
    decay_rate: float = MISSING
    padding_mode: str = MISSING  # of the random crop: zeros or reflect
    selection_split: str = MISSING  # where the best epoch is chosen: test or holdout
    select: str = MISSING  # which epoch goes on to the next stage: best or last

    def __post_init__(self) -> None:
        one_of("selection_split", self.selection_split, ("test", "holdout"))
        one_of("select", self.select, ("best", "last"))
        one_of("padding_mode", self.padding_mode, ("zeros", "reflect"))
        at_least("epochs", self.epochs, 0)
        at_least("batch_size", self.batch_size, 1)
        require(self.lr > 0, f"lr={self.lr} is not positive: give the learning rate as a positive number.")


@dataclass
class ATConfig(TrainingConfig):
    evaluate_every: int = MISSING  # epochs between robust evaluations; always in the last tenth

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("stage.at.evaluate_every", self.evaluate_every, 1)


@dataclass
class MRCConfig:
    solver: str = MISSING  # sgd (the paper's), or projected (normalised ascent)
    split: str = MISSING  # D_std: train, holdout or test
    max_images: int | None = MISSING  # class-balanced start of the split; null is all
    epsilon_w: float = MISSING  # radius of the weight ball, as a share of the weight's norm
    norm: str = MISSING  # of the weight ball: l2 or linf
    epochs: int = MISSING  # T
    batch_size: int = MISSING
    optimizer: str = MISSING  # solver=sgd: any name of timm.optim
    lr: float = MISSING  # γ
    momentum: float = MISSING
    project: str = MISSING  # after every epoch or step
    on_violation: str = MISSING  # stop (Alg. 1) or continue (published code)
    score: str = MISSING  # the last epoch's loss, or the worst of all epochs
    precision: str = MISSING  # of the search, float32 or bfloat16; what is reported comes from float32
    exclude: list[str] = MISSING  # name patterns of modules that are not scanned

    def __post_init__(self) -> None:
        one_of("stage.mrc.solver", self.solver, ("sgd", "projected"))
        one_of("stage.mrc.split", self.split, ("train", "holdout", "test"))
        one_of("stage.mrc.norm", self.norm, ("l2", "linf"))
        one_of("stage.mrc.project", self.project, ("epoch", "step"))
        one_of("stage.mrc.on_violation", self.on_violation, ("stop", "continue"))
        one_of("stage.mrc.score", self.score, ("last", "worst"))
        one_of("stage.mrc.precision", self.precision, ("float32", "bfloat16"))
        at_least("stage.mrc.epochs", self.epochs, 1)
        at_least("stage.mrc.batch_size", self.batch_size, 1)
        if self.max_images is not None:
            at_least("stage.mrc.max_images", self.max_images, 1)
        require(
            self.epsilon_w > 0, f"stage.mrc.epsilon_w={self.epsilon_w} is not positive: the paper has 0.1."
        )

    def scans(self, name: str) -> bool:
        """Whether a module of this name is scanned."""
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude)


@dataclass
class FinetuneConfig(TrainingConfig):
    target: str = MISSING  # one of TARGETS, or a module's exact name
    top_k: int = MISSING  # how many modules with target=top_k
    batchnorm: str = MISSING  # running statistics: train (they move) or frozen

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("stage.finetune.batchnorm", self.batchnorm, ("train", "frozen"))
        at_least("stage.finetune.top_k", self.top_k, 1)
        at_least("stage.finetune.epochs", self.epochs, 1)
        require(
            not (self.target == "none" and self.batchnorm == "frozen"),
            "stage.finetune.target=none with batchnorm=frozen changes nothing: use batchnorm=train.",
        )


@dataclass
class InterpolateConfig:
    points: int = MISSING  # α = 0 … 1 in this many even steps, both ends included
    selection_split: str = MISSING  # where α* is chosen: test or holdout
    restarts: int = MISSING  # attack runs per α
    exact_runs: bool = MISSING  # attack fooled images again: needed for the worst run, not per image
    tolerance: float = MISSING  # robust accuracy that may be lost, as a fraction: 0.001 is 0.1 points
    batchnorm: str = MISSING  # statistics: interpolate, keep (θ_AT's), reestimate (on training images)

    def __post_init__(self) -> None:
        one_of("stage.interpolate.batchnorm", self.batchnorm, ("interpolate", "keep", "reestimate"))
        one_of("stage.interpolate.selection_split", self.selection_split, ("test", "holdout"))
        at_least("stage.interpolate.points", self.points, 2)
        at_least("stage.interpolate.restarts", self.restarts, 1)
        at_least("stage.interpolate.tolerance", self.tolerance, 0)


@dataclass
class EvaluateConfig:
    restarts: int = MISSING  # attack runs; the worst counts
    exact_runs: bool = MISSING  # attack fooled images again, so that the worst *run* is known too

    def __post_init__(self) -> None:
        at_least("stage.evaluate.restarts", self.restarts, 1)


@dataclass
class StageConfig:
    run: list[str] = MISSING  # which stages run, of STAGES
    at: ATConfig = MISSING
    mrc: MRCConfig = MISSING
    finetune: FinetuneConfig = MISSING
    interpolate: InterpolateConfig = MISSING
    evaluate: EvaluateConfig = MISSING

    def __post_init__(self) -> None:
        for stage in self.run:
            one_of("stage.run", stage, STAGES)


@dataclass
class ProtocolConfig:
    name: str = MISSING


@dataclass
class RuntimeConfig:
    device: str = MISSING  # auto, cpu, cuda, cuda:1
    precision: str = MISSING  # of crafting and the training step: auto, float32, bfloat16
    evaluation_precision: str = MISSING  # of crafting where a number is reported: float32, bfloat16
    channels_last: bool = MISSING
    fold_batchnorm: bool = MISSING  # craft through a twin with BatchNorm folded into convolutions
    cuda_graphs: bool = MISSING  # replay attacks and training steps as CUDA graphs
    compile: bool = MISSING  # torch.compile of the crafting network and the training step
    tf32: bool = MISSING
    deterministic: bool = MISSING
    batch_size: int = MISSING  # images per batch where no weights are updated
    cache_mib: int | None = MISSING  # bound of the MRC scan's activation cache; null: see Runtime
    threads: int | None = MISSING  # CPU threads; null is torch's choice

    def __post_init__(self) -> None:
        one_of("runtime.precision", self.precision, ("auto", "float32", "bfloat16"))
        one_of("runtime.evaluation_precision", self.evaluation_precision, ("float32", "bfloat16"))
        at_least("runtime.batch_size", self.batch_size, 1)
        if self.cache_mib is not None:
            at_least("runtime.cache_mib", self.cache_mib, 0)


@dataclass
class LoggerConfig:
    name: str = MISSING  # wandb or none
    mode: str = "auto"  # auto (online if credentials exist), online, offline
    project: str = "rift"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        one_of("logger.name", self.name, ("wandb", "none"))
        one_of("logger.mode", self.mode, ("auto", "online", "offline"))


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
    seed: int = MISSING
    smoke: bool = MISSING  # shrink everything to seconds on the same code path
    study: str = MISSING  # folder of the job; also W&B's group
    output: str = MISSING  # folder of all results


ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: DictConfig) -> Config:
    """Hydra's composed configuration as dataclasses, every range checked.

    Raises:
        UserError: a value that cannot be.
    """
    _refuse_additions(Config, composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    splits = {
        "stage.at.selection_split": config.stage.at.selection_split,
        "stage.finetune.selection_split": config.stage.finetune.selection_split,
        "stage.interpolate.selection_split": config.stage.interpolate.selection_split,
        "stage.mrc.split": config.stage.mrc.split,
    }
    for option, split in splits.items():
        require(
            split != "holdout" or config.dataset.holdout_fraction > 0,
            f"{option}=holdout needs held-out images: set dataset.holdout_fraction=0.02 or protocol=holdout.",
        )
    return config


def _refuse_additions(schema: type, composed: DictConfig, prefix: str = "") -> None:
    """Hydra's `+option=value` adds an option that nothing would read."""
    types = get_type_hints(schema)
    for name in composed:
        if name not in types:
            raise UserError(f"there is no option '{prefix}{name}': {choose_from(str(name), types)}.")
        if is_dataclass(types[name]):
            _refuse_additions(types[name], composed[name], f"{prefix}{name}.")
