"""The stages' part of the schema: types, units and limits of `stage.*`; see `rift.config`."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from omegaconf import MISSING

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
    label_smoothing: float = MISSING  # share of each label that is spread over all classes
    average: float | None = MISSING  # decay of the moving average of the weights that is θ_AT; null: none
    patience: int | None = MISSING  # epochs without a better one after which training ends; null: never
    start_epoch: int = MISSING  # epochs that model.checkpoint has behind it; momentum starts afresh

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
    solver: str = MISSING  # sgd (the paper's), or projected (normalised ascent)
    split: str = MISSING  # D_std: train, holdout or test
    max_images: int | None = MISSING  # at most, a class-balanced part of the split; null is all
    part: int = MISSING  # which part of max_images, counted from 0; no two share an image
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
    size: int = MISSING  # of the largest set of modules whose joint MRC is sought
    solver: str = MISSING  # as stage.mrc.solver
    epochs: int = MISSING  # as stage.mrc.epochs

    def check(self, where: str) -> None:
        at_least(f"{where}.size", self.size, 2)
        at_least(f"{where}.epochs", self.epochs, 1)
        one_of(f"{where}.solver", self.solver, ("sgd", "projected"))


@dataclass
class FinetuneConfig(TrainingConfig):
    target: str = MISSING  # one of TARGETS, or a module's exact name
    top_k: int = MISSING  # how many modules with target=top_k, joint_k or random_k
    target_seed: int = MISSING  # draws the modules of target=random and random_k
    batchnorm: str = MISSING  # running statistics: train (they move) or frozen

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
    measure: list[str] = MISSING  # what is measured, of MEASUREMENTS
    restarts: int = MISSING  # attack runs; the worst counts
    exact_runs: bool = MISSING  # attack fooled images again, so that the worst *run* is known too
    auto_attack: str = MISSING  # standard, or quick: a screen of two of its four attacks
    auto_attack_images: int | None = MISSING  # at most, evenly spread over the test split; null is all
    corruptions: str = MISSING  # which images: published, generated, auto (published where there are any)
    corruption_set: list[str] = MISSING  # names of corruptions, or of SELECTIONS of them
    severities: list[int] = MISSING  # of 1 to 5
    ood: str = MISSING  # whose mean is reported as OOD: one of SELECTIONS, or evaluated (all of them)

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
    run: list[str] = MISSING  # which stages run, of STAGES
    at: ATConfig = MISSING
    mrc: MRCConfig = MISSING
    joint: JointConfig = MISSING
    finetune: FinetuneConfig = MISSING
    interpolate: InterpolateConfig = MISSING
    evaluate: EvaluateConfig = MISSING

    def check(self, where: str) -> None:
        for stage in self.run:
            one_of(f"{where}.run", stage, STAGES)
        require(
            self.finetune.target != "joint_k" or self.finetune.top_k <= self.joint.size,
            f"{where}.finetune.top_k={self.finetune.top_k} modules by joint MRC need sets of that size: "
            f"raise {where}.joint.size={self.joint.size}.",
        )
        require(bool(self.run), f"{where}.run=[] runs nothing: name some of {', '.join(STAGES)}.")
