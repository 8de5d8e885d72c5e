"""The stages' part of the schema: types, units and limits of `stage.*`; see `rift.config`.

The defaults are the paper's, as `conf/stage/rift.yaml` and `protocol=paper` have them, so that options can be
made by hand: `FinetuneConfig(epochs=3)`.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field

from rift.corruption_names import ALL, SELECTIONS, SEVERITIES
from rift.limits import LARGEST_SEED, at_least, one_of, positive, require, share

CHAIN = ("at", "mrc", "finetune", "interpolate", "evaluate")  # the paper's
STAGES = ("at", "mrc", "joint", "gains", "finetune", "interpolate", "evaluate")  # and what it leaves open
TARGETS = (
    "least_critical", "most_critical", "top_k", "joint_k", "random", "random_k", "last_layer", "all", "none"
)  # fmt: skip
MEASUREMENTS = ("pgd", "auto_attack", "corruptions", "cifar10_1")
BY_CRITICALITY = ("least_critical", "most_critical", "top_k", "joint_k")
SETS = ("top_k", "joint_k", "random_k")  # of stage.finetune.top_k modules
BY_CHANCE = ("random", "random_k")


@dataclass
class TrainingConfig:
    epochs: int = 110  # passes over the training images
    batch_size: int = 128  # images per update
    optimizer: str = "momentum"  # any name of timm.optim; `momentum` is SGD with plain momentum
    lr: float = 0.1  # learning rate at the start
    momentum: float = 0.9  # of the optimizer
    weight_decay: float = 5.0e-4  # on every parameter, biases and BatchNorm included
    schedule: str = "multistep"  # constant, or a name of timm.scheduler: multistep, cosine, …
    # epochs after which the rate is multiplied by decay_rate
    milestones: list[int] = field(default_factory=lambda: [100, 105])
    decay_rate: float = 0.1  # factor of the learning rate at a milestone
    padding_mode: str = "zeros"  # of the random crop: zeros or reflect
    selection_split: str = "test"  # where the best epoch is chosen: test or holdout
    select: str = "best"  # which epoch goes on to the next stage: best or last

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
    evaluate_every: int = 1  # epochs between robust evaluations; always in the last tenth
    label_smoothing: float = 0.0  # share of each label that is spread over all classes
    average: float | None = None  # decay of the moving average of the weights that is θ_AT; null: none
    patience: int | None = None  # epochs without a better one after which training ends; null: never
    start_epoch: int = 0  # epochs that model.checkpoint has behind it; momentum starts afresh

    def check(self, where: str) -> None:
        super().check(where)
        at_least(f"{where}.evaluate_every", self.evaluate_every, 1)
        share(f"{where}.label_smoothing", self.label_smoothing)
        at_least(f"{where}.patience", self.patience, 1)
        at_least(f"{where}.start_epoch", self.start_epoch, 0)
        require(
            self.start_epoch == 0 or self.start_epoch < self.epochs,
            f"{where}.start_epoch={self.start_epoch} leaves nothing of {where}.epochs={self.epochs}: give "
            "the number of epochs that the checkpoint was trained for.",
        )
        if self.average is not None:
            share(f"{where}.average", self.average)


@dataclass
class MRCConfig:
    solver: str = "sgd"  # sgd (the paper's), or projected (normalised ascent)
    split: str = "train"  # D_std: train, holdout or test
    max_images: int | None = None  # at most, a class-balanced part of the split; null is all
    part: int = 0  # which part of max_images, counted from 0; no two share an image
    epsilon_w: float = 0.1  # radius of the weight ball, as a share of the weight's norm
    norm: str = "l2"  # of the weight ball: l2 or linf
    epochs: int = 10  # T
    batch_size: int = 512  # images per step of the ascent
    shuffle: bool = False  # other batches in every epoch (published code), or the same ones, which is faster
    optimizer: str = "momentum"  # solver=sgd: any name of timm.optim
    lr: float = 1.0  # γ
    momentum: float = 0.0  # of the optimizer
    project: str = "epoch"  # after every epoch or step
    on_violation: str = "stop"  # stop (Alg. 1) or continue (published code)
    score: str = "last"  # the last epoch's loss, or the worst of all epochs
    precision: str = "float32"  # of the search, float32 or bfloat16; what is reported comes from float32
    exclude: list[str] = field(default_factory=list)  # name patterns of modules that are not scanned

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
        at_least(f"{where}.part", self.part, 0)
        require(
            self.part == 0 or self.max_images is not None,
            f"{where}.part={self.part} needs the size of a part: give {where}.max_images.",
        )
        positive(f"{where}.epsilon_w", self.epsilon_w)
        positive(f"{where}.lr", self.lr)
        share(f"{where}.momentum", self.momentum)

    def scans(self, name: str) -> bool:
        """Whether a module of this name is scanned."""
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude)


@dataclass
class JointConfig:
    size: int = 3  # of the largest set of modules whose joint MRC is sought
    solver: str = "projected"  # as stage.mrc.solver
    epochs: int = 10  # as stage.mrc.epochs

    def check(self, where: str) -> None:
        at_least(f"{where}.size", self.size, 2)
        at_least(f"{where}.epochs", self.epochs, 1)
        one_of(f"{where}.solver", self.solver, ("sgd", "projected"))


@dataclass
class FinetuneConfig(TrainingConfig):
    target: str = "least_critical"  # one of TARGETS, or a module's exact name
    top_k: int = 2  # how many modules with target=top_k, joint_k or random_k
    target_seed: int = 0  # draws the modules of target=random and random_k
    batchnorm: str = "frozen"  # running statistics: train (they move) or frozen
    epochs: int = 10  # passes over the training images
    lr: float = 0.001  # learning rate at the start
    # epochs after which the rate is multiplied by decay_rate
    milestones: list[int] = field(default_factory=lambda: [5])

    def check(self, where: str) -> None:
        super().check(where)
        one_of(f"{where}.batchnorm", self.batchnorm, ("train", "frozen"))
        at_least(f"{where}.top_k", self.top_k, 1)
        at_least(f"{where}.target_seed", self.target_seed, 0, LARGEST_SEED)
        at_least(f"{where}.epochs", self.epochs, 1)
        require(
            not (self.target == "none" and self.batchnorm == "frozen"),
            f"{where}.target=none with batchnorm=frozen changes nothing: use {where}.batchnorm=train.",
        )


@dataclass
class InterpolateConfig:
    points: int = 11  # α = 0 … 1 in this many even steps, both ends included
    selection_split: str = "test"  # where α* is chosen: test or holdout
    restarts: int = 3  # attack runs per α
    exact_runs: bool = True  # attack fooled images again: needed for the worst run, not per image
    tolerance: float = 0.001  # robust accuracy that may be lost, as a fraction: 0.001 is 0.1 points
    batchnorm: str = "interpolate"  # statistics: interpolate, keep (θ_AT's), reestimate (on training images)

    def check(self, where: str) -> None:
        one_of(f"{where}.batchnorm", self.batchnorm, ("interpolate", "keep", "reestimate"))
        one_of(f"{where}.selection_split", self.selection_split, ("test", "holdout"))
        at_least(f"{where}.points", self.points, 2)
        at_least(f"{where}.restarts", self.restarts, 1)
        at_least(f"{where}.tolerance", self.tolerance, 0)


@dataclass
class EvaluateConfig:
    # what is measured, of MEASUREMENTS
    measure: list[str] = field(default_factory=lambda: ["pgd", "corruptions"])
    restarts: int = 3  # attack runs; the worst counts
    exact_runs: bool = True  # attack fooled images again, so that the worst *run* is known too
    auto_attack: str = "standard"  # standard, or quick: a screen of two of its four attacks
    auto_attack_images: int | None = None  # at most, evenly spread over the test split; null is all
    corruptions: str = "auto"  # which images: published, generated, auto (published where there are any)
    # names of corruptions, or of SELECTIONS of them
    corruption_set: list[str] = field(default_factory=lambda: ["all19"])
    severities: list[int] = field(default_factory=lambda: list(SEVERITIES))  # of 1 to 5
    ood: str = "paper15"  # whose mean is reported as OOD: one of SELECTIONS, or evaluated (all of them)

    def check(self, where: str) -> None:
        require(
            bool(self.measure),
            f"{where}.measure=[] measures nothing: name some of {', '.join(MEASUREMENTS)}.",
        )
        for name in self.measure:
            one_of(f"{where}.measure", name, MEASUREMENTS)
        at_least(f"{where}.restarts", self.restarts, 1)
        one_of(f"{where}.auto_attack", self.auto_attack, ("standard", "quick"))
        at_least(f"{where}.auto_attack_images", self.auto_attack_images, 1)
        one_of(f"{where}.corruptions", self.corruptions, ("auto", "published", "generated"))
        for name in self.corruption_set:
            one_of(f"{where}.corruption_set", name, (*SELECTIONS, *ALL))
        for severity in self.severities:
            require(severity in SEVERITIES, f"{where}.severities={severity} is not one of 1 to 5.")
        require(
            bool(self.corruption_set and self.severities),
            f"{where}.corruption_set and severities must not be empty: leave corruptions out of measure.",
        )
        twice = len(set(self.severities)) < len(self.severities)
        require(not twice, f"{where}.severities={self.severities} names one twice: name each once.")
        one_of(f"{where}.ood", self.ood, (*SELECTIONS, "evaluated"))
        missing = set(self.ood_names()) - set(self.corruption_names())
        require(
            not missing,
            f"{where}.ood={self.ood} needs {', '.join(sorted(missing))} too: set {where}.ood=evaluated, or "
            f"name more in {where}.corruption_set.",
        )

    def corruption_names(self) -> tuple[str, ...]:
        """The corruptions that are evaluated, in the paper's order."""
        chosen = {part for name in self.corruption_set for part in SELECTIONS.get(name, (name,))}
        return tuple(name for name in ALL if name in chosen)

    def ood_names(self) -> tuple[str, ...]:
        """Those whose mean is reported as OOD."""
        return self.corruption_names() if self.ood == "evaluated" else SELECTIONS[self.ood]


@dataclass
class StageConfig:
    run: list[str] = field(default_factory=lambda: list(CHAIN))  # which stages run, of STAGES
    at: ATConfig = field(default_factory=ATConfig)
    mrc: MRCConfig = field(default_factory=MRCConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    interpolate: InterpolateConfig = field(default_factory=InterpolateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def check(self, where: str) -> None:
        for stage in self.run:
            one_of(f"{where}.run", stage, STAGES)
        require(
            self.finetune.target != "joint_k" or self.finetune.top_k <= self.joint.size,
            f"{where}.finetune.top_k={self.finetune.top_k} modules by joint MRC need sets of that size: "
            f"raise {where}.joint.size={self.joint.size}.",
        )
        require(bool(self.run), f"{where}.run=[] runs nothing: name some of {', '.join(STAGES)}.")
