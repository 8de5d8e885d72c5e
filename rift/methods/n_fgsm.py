"""N-FGSM (de Jorge et al. 2022): one long step from a start with much noise, not brought back into the ball.

Adversarial training at about a quarter of PGD-7's cost. The form is the one that
github.com/tmllab/2023_NeurIPS_AAER trains in its N-AAER: start uniform in ±2ε, step ε, both only clipped to
[0, 1]. That code crafts in train mode (`attack.batchnorm=train` here).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rift.attacks import Attack
from rift.methods.pgd_at import pgd_at
from rift.methods.types import Method


def n_fgsm(*, start_radius: float, step: float, label_smoothing: float = 0.0) -> Method:
    """Cross-entropy on images of a single step.

    Args:
        start_radius: of the uniform noise that crafting starts from, in units of epsilon; 2 as published.
        step: length of the step, in units of epsilon; 1 as published.
        label_smoothing: of the cross-entropy.
    """
    attack = partial(single_step, start_radius=start_radius, step=step)
    return replace(pgd_at(label_smoothing=label_smoothing), attack=attack)


def single_step(attack: Attack, *, start_radius: float, step: float) -> Attack:
    """The threat model of an attack, crafted for in one unprojected step."""
    return replace(
        attack,
        steps=1,
        step_size=step * attack.epsilon,
        random_start=True,
        start_radius=start_radius * attack.epsilon,
        keep="last",
        project=False,
    )
