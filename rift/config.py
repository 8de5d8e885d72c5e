"""The typed schema of `conf/`. YAML holds the values; here are the types, the units and what cannot be.

Hydra checks names and types while composing; `check` knows each group's limits and says them before any work
is done. Nothing is ever written back: what is stored and logged is what was typed.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from rift.errors import UserError, choose_from
from rift.limits import at_least, folder_name, number, one_of, positive, require, share, within_pixels

# In an installed package the configuration lies inside it, in a checkout beside it.
_INSIDE = Path(__file__).parent / "conf"
CONF = _INSIDE if _INSIDE.is_dir() else Path(__file__).parent.parent / "conf"

STAGES = ("at", "mrc", "finetune", "interpolate", "evaluate")
TARGETS = ("least_critical", "most_critical", "last_layer", "all", "top_k", "none")
BY_CRITICALITY = ("least_critical", "most_critical", "top_k")


@dataclass
class ModelConfig:
    family: str = MISSING  # a name in rift.models.MODELS
    name: str | None = None  # family timm only: timm's name
    width: int | None = None  # channels of the first ResNet stage; widening factor of a WRN
    pretrained: bool = False  # timm only: start from timm's published weights
    checkpoint: str | None = None  # weights to start from; without the stage `at` they are θ_AT

    def check(self, where: str) -> None:
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
    download: bool = False
    mean: list[float] = MISSING  # per channel, of images in [0, 1]
    std: list[float] = MISSING
    padding: int = MISSING  # pixels added on each side before the random crop
    flip: bool = MISSING  # mirror at random
    image_size: int | None = None  # pixels; image_folder only
    train_limit: int | None = None  # images at most, class-balanced; null is all
    test_limit: int | None = None
    holdout_fraction: float = 0.0  # share of the training images set aside for selection
    split_seed: int = 0  # decides the holdout, whatever the run's seed
    cache: str | None = None  # folder for decoded images
    official_scan_split: str = "test"  # which split the published code scans

    def check(self, where: str) -> None:
        share(f"{where}.holdout_fraction", self.holdout_fraction)
        at_least(f"{where}.padding", self.padding, 0)
        at_least(f"{where}.split_seed", self.split_seed, 0)
        for option in ("image_size", "train_limit", "test_limit"):
            at_least(f"{where}.{option}", getattr(self, option), 1)


@dataclass
class AttackConfig:
    norm: str = MISSING  # linf or l2
    epsilon: str = MISSING  # radius in units of the [0, 1] image, as a fraction: 8/255
    step_size: str = MISSING  # same units
    steps: int = MISSING  # gradient evaluations per image
    random_start: bool = MISSING
    keep: str = MISSING  # last iterate, or the best per image
    batchnorm: str = MISSING  # BatchNorm mode while crafting in training: eval or train

    def check(self, where: str) -> None:
        one_of(f"{where}.norm", self.norm, ("linf", "l2"))
        one_of(f"{where}.keep", self.keep, ("last", "best"))
        one_of(f"{where}.batchnorm", self.batchnorm, ("eval", "train"))
        at_least(f"{where}.steps", self.steps, 1)
        distance = within_pixels if self.norm == "linf" else number
        distance(f"{where}.epsilon", self.epsilon)
        distance(f"{where}.step_size", self.step_size)


@dataclass
class MethodConfig:
    name: str = MISSING  # a name in rift.methods.METHODS

    def check(self, where: str) -> None:
        """Any name; whether it is registered is known where the methods are."""


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

    def check(self, where: str) -> None:
        one_of(f"{where}.selection_split", self.selection_split, ("test", "holdout"))
        one_of(f"{where}.select", self.select, ("best", "last"))
        one_of(f"{where}.padding_mode", self.padding_mode, ("zeros", "reflect"))
        at_least(f"{where}.epochs", self.epochs, 0)
        at_least(f"{where}.batch_size", self.batch_size, 1)
        positive(f"{where}.lr", self.lr)
        share(f"{where}.momentum", self.momentum)
        at_least(f"{where}.weight_decay", self.weight_decay, 0)
        positive(f"{where}.decay_rate", self.decay_rate)
        for milestone in self.milestones:
            at_least(f"{where}.milestones", milestone, 1)


@dataclass
class ATConfig(TrainingConfig):
    evaluate_every: int = MISSING  # epochs between robust evaluations; always in the last tenth

    def check(self, where: str) -> None:
        super().check(where)
        at_least(f"{where}.evaluate_every", self.evaluate_every, 1)


@dataclass
class MRCConfig:
    solver: str = MISSING  # sgd (the paper's), or projected (normalised ascent)
    split: str = MISSING  # D_std: train, holdout or test
    max_images: int | None = MISSING  # at most, class-balanced start of the split; null is all
    epsilon_w: float = MISSING  # radius of the weight ball, as a share of the weight's norm
    norm: str = MISSING  # of the weight ball: l2 or linf
    epochs: int = MISSING  # T
    batch_size: int = MISSING
    shuffle: bool = (
        MISSING  # other batches in every epoch (published code), or the same ones, which is faster
    )
    optimizer: str = MISSING  # solver=sgd: any name of timm.optim
    lr: float = MISSING  # γ
    momentum: float = MISSING
    project: str = MISSING  # after every epoch or step
    on_violation: str = MISSING  # stop (Alg. 1) or continue (published code)
    score: str = MISSING  # the last epoch's loss, or the worst of all epochs
    precision: str = MISSING  # of the search, float32 or bfloat16; what is reported comes from float32
    exclude: list[str] = MISSING  # name patterns of modules that are not scanned

    def check(self, where: str) -> None:
        one_of(f"{where}.solver", self.solver, ("sgd", "projected"))
        one_of(f"{where}.split", self.split, ("train", "holdout", "test"))
        one_of(f"{where}.norm", self.norm, ("l2", "linf"))
        one_of(f"{where}.project", self.project, ("epoch", "step"))
        one_of(f"{where}.on_violation", self.on_violation, ("stop", "continue"))
        one_of(f"{where}.score", self.score, ("last", "worst"))
        one_of(f"{where}.precision", self.precision, ("float32", "bfloat16"))
        at_least(f"{where}.epochs", self.epochs, 1)
        at_least(f"{where}.batch_size", self.batch_size, 1)
        at_least(f"{where}.max_images", self.max_images, 1)
        positive(f"{where}.epsilon_w", self.epsilon_w)
        positive(f"{where}.lr", self.lr)
        share(f"{where}.momentum", self.momentum)

    def scans(self, name: str) -> bool:
        """Whether a module of this name is scanned."""
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude)


@dataclass
class FinetuneConfig(TrainingConfig):
    target: str = MISSING  # one of TARGETS, or a module's exact name
    top_k: int = MISSING  # how many modules with target=top_k
    batchnorm: str = MISSING  # running statistics: train (they move) or frozen

    def check(self, where: str) -> None:
        super().check(where)
        one_of(f"{where}.batchnorm", self.batchnorm, ("train", "frozen"))
        at_least(f"{where}.top_k", self.top_k, 1)
        at_least(f"{where}.epochs", self.epochs, 1)
        require(
            not (self.target == "none" and self.batchnorm == "frozen"),
            f"{where}.target=none with batchnorm=frozen changes nothing: use {where}.batchnorm=train.",
        )


@dataclass
class InterpolateConfig:
    points: int = MISSING  # α = 0 … 1 in this many even steps, both ends included
    selection_split: str = MISSING  # where α* is chosen: test or holdout
    restarts: int = MISSING  # attack runs per α
    exact_runs: bool = MISSING  # attack fooled images again: needed for the worst run, not per image
    tolerance: float = MISSING  # robust accuracy that may be lost, as a fraction: 0.001 is 0.1 points
    batchnorm: str = MISSING  # statistics: interpolate, keep (θ_AT's), reestimate (on training images)

    def check(self, where: str) -> None:
        one_of(f"{where}.batchnorm", self.batchnorm, ("interpolate", "keep", "reestimate"))
        one_of(f"{where}.selection_split", self.selection_split, ("test", "holdout"))
        at_least(f"{where}.points", self.points, 2)
        at_least(f"{where}.restarts", self.restarts, 1)
        at_least(f"{where}.tolerance", self.tolerance, 0)


@dataclass
class EvaluateConfig:
    restarts: int = MISSING  # attack runs; the worst counts
    exact_runs: bool = MISSING  # attack fooled images again, so that the worst *run* is known too

    def check(self, where: str) -> None:
        at_least(f"{where}.restarts", self.restarts, 1)


@dataclass
class StageConfig:
    run: list[str] = MISSING  # which stages run, of STAGES
    at: ATConfig = MISSING
    mrc: MRCConfig = MISSING
    finetune: FinetuneConfig = MISSING
    interpolate: InterpolateConfig = MISSING
    evaluate: EvaluateConfig = MISSING

    def check(self, where: str) -> None:
        for stage in self.run:
            one_of(f"{where}.run", stage, STAGES)
        require(bool(self.run), f"{where}.run=[] runs nothing: name some of {', '.join(STAGES)}.")


@dataclass
class ProtocolConfig:
    name: str = MISSING  # a file of conf/protocol

    def check(self, where: str) -> None:
        one_of(f"{where}.name", self.name, sorted(path.stem for path in (CONF / "protocol").glob("*.yaml")))


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

    def check(self, where: str) -> None:
        one_of(f"{where}.precision", self.precision, ("auto", "float32", "bfloat16"))
        one_of(f"{where}.evaluation_precision", self.evaluation_precision, ("float32", "bfloat16"))
        at_least(f"{where}.batch_size", self.batch_size, 1)
        at_least(f"{where}.cache_mib", self.cache_mib, 0)
        at_least(f"{where}.threads", self.threads, 1)


@dataclass
class LoggerConfig:
    name: str = MISSING  # wandb or none
    mode: str = "auto"  # auto (online if credentials exist), online, offline
    project: str = "rift"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)

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
    seed: int = MISSING
    smoke: bool = MISSING  # shrink everything to seconds on the same code path
    study: str = MISSING  # folder of the job; also W&B's group
    output: str = MISSING  # folder of all results

    def check(self) -> None:
        """Raises `UserError` at the first value that cannot be, its option named in full."""
        _check_groups(self, "")
        at_least("seed", self.seed, 0)
        folder_name("study", self.study)
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


def _check_groups(group: Any, prefix: str) -> None:
    for entry in fields(group):
        value = getattr(group, entry.name)
        if is_dataclass(value):
            value.check(prefix + entry.name)
            _check_groups(value, f"{prefix}{entry.name}.")


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
