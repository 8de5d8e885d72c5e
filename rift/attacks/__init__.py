"""Adversarial attacks: pure functions on tensors, images in [0, 1], normalisation inside the model."""

from rift.attacks.evaluation import Verdicts, robust_verdicts
from rift.attacks.pgd import Attack, Objective, pgd, random_start, summed_cross_entropy

__all__ = [
    "Attack",
    "Objective",
    "Verdicts",
    "pgd",
    "random_start",
    "robust_verdicts",
    "summed_cross_entropy",
]
