"""The method's part of the schema: types, units and limits of `method.*`; see `rift.config`.

One schema for all methods: an option that a method does not have stays null. Where the official code's value
depends on another choice, null stands for it too, and `resolved` says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from rift import plugins
from rift.limits import at_least, one_of, require, share

BASES = ("pgd_at", "trades", "mart")
FORMS = ("pgd_at", "trades", "ddpm")
_DIVERGENCE = ("beta", "start_std")
_SINGLE_STEP = ("start_radius", "step")
OPTIONS: dict[str, tuple[str, ...]] = {
    "pgd_at": (),
    "trades": _DIVERGENCE,
    "mart": _DIVERGENCE,
    "score": ("form", "clip", *_DIVERGENCE),
    "awp": ("base", "gamma", "warmup", *_DIVERGENCE),
    "n_fgsm": _SINGLE_STEP,
    "aaer": (*_SINGLE_STEP, "lambda1", "lambda2", "lambda3"),
}
"""The options of each method."""

# What null stands for, in the official code; sources in `rift/methods/`.
_BETA = {"trades": 6.0, "mart": 5.0}
_BETA_ON_WRN = {"trades": 6.0, "mart": 6.0}
_START_STD = {"trades": 0.001, "mart": 0.001}
_GAMMA = {"pgd_at": 0.01, "trades": 0.005, "mart": 0.005}  # on MART from AWP's paper: there is no code
_WARMUP = {"pgd_at": 0, "trades": 9, "mart": 0}
_SCORE = {
    "pgd_at": {"beta": 0.0, "clip": 0.4, "start_std": 0.0},
    "trades": {"beta": 6.0, "clip": 0.3, "start_std": 0.001},
    "ddpm": {"beta": 4.0, "clip": 0.0, "start_std": 0.0},
}


@dataclass
class MethodConfig:
    name: str = "pgd_at"  # a key of OPTIONS
    base: str | None = None  # awp: whose loss is perturbed, of BASES
    form: str | None = None  # score: of FORMS
    beta: float | None = None  # weight of the divergence between clean and adversarial outputs
    start_std: float | None = None  # of the normal noise that crafting starts from; 0: as the attack says
    clip: float | None = None  # score: probability on wrong classes that costs nothing
    gamma: float | None = None  # awp: length of the perturbation, as a share of each weight's norm
    warmup: int | None = None  # awp: epochs without perturbation
    start_radius: float | None = None  # n_fgsm, aaer: of the uniform start, in units of epsilon
    step: float | None = None  # n_fgsm, aaer: length of the one step, in units of epsilon
    lambda1: float | None = None  # aaer: of the share of abnormal examples
    lambda2: float | None = None  # aaer: of their variation in cross-entropy; changes no gradient
    lambda3: float | None = None  # aaer: of their variation in logits
    options: dict[str, Any] = field(default_factory=dict)  # a plugin's own: +method.options.NAME=VALUE

    def check(self, where: str) -> None:
        others = plugins.installed("method")
        one_of(f"{where}.name", self.name, (*OPTIONS, *others))
        require(
            not self.options or self.name in others,
            f"{where}.options are for a plugin's method, which {self.name} is not: leave them out.",
        )
        own = OPTIONS.get(self.name, ())
        for entry in fields(self):
            value = getattr(self, entry.name)
            known = f"it has {', '.join(own)}" if own else "it has no options"
            require(
                entry.name in ("name", "options", *own) or value is None,
                f"{where}.{entry.name}={value} is no option of {where}={self.name}: {known}.",
            )
            if isinstance(value, int | float):
                at_least(f"{where}.{entry.name}", value, 0)
        if "base" in own:
            one_of(f"{where}.base", str(self.base), BASES)
            require(
                self.base != "pgd_at" or self.beta is None,
                f"{where}.beta={self.beta} does nothing with {where}.base=pgd_at: leave it out, or take "
                f"{where}.base=trades.",
            )
        if "form" in own:
            one_of(f"{where}.form", str(self.form), FORMS)
            share(f"{where}.clip", self.clip or 0.0)
            require(
                self.form != "pgd_at" or self.beta is None,
                f"{where}.beta={self.beta} does nothing with {where}.form=pgd_at: leave it out, or take "
                f"{where}.form=trades.",
            )
        for option in (*_SINGLE_STEP, "lambda1", "lambda2", "lambda3"):
            missing = option in own and getattr(self, option) is None
            require(not missing, f"{where}.{option} has no value: give a number.")

    @property
    def compares_with_clean(self) -> bool:
        """Whether crafting increases a distance from the clean output, which has no slope at the image."""
        return "trades" in (self.name, self.base) or (self.name == "score" and self.form != "pgd_at")

    @property
    def label(self) -> str:
        """What people call it: `trades`, `awp_mart`, `score_trades`; the variant on PGD-AT has no suffix."""
        variant = self.base or self.form
        return self.name if variant in (None, "pgd_at") else f"{self.name}_{variant}"


def resolved(method: MethodConfig, family: str) -> dict[str, Any]:
    """The options that a method has by name, null replaced by the official code's value where it has one.

    Args:
        method: checked.
        family: of the network; MART's published β depends on it.
    """
    if method.name not in OPTIONS:
        return dict(method.options)
    own = {name: getattr(method, name) for name in OPTIONS[method.name]}
    loss = method.base or method.name
    beta = (_BETA_ON_WRN if family.startswith("wrn") else _BETA).get(loss)
    official = {"beta": beta, "start_std": _START_STD.get(loss), "gamma": _GAMMA.get(loss)}
    official["warmup"] = _WARMUP.get(loss)
    if method.name == "score":
        official = _SCORE[str(method.form)]
    found = {name: official.get(name) if value is None else value for name, value in own.items()}
    if method.base == "pgd_at":
        del found["beta"], found["start_std"]  # that loss has none
    return found
