"""The paper, one file per step."""

from rift.stages.adversarial_training import adversarial_training
from rift.stages.auto_attack_evaluation import auto_attack_evaluation
from rift.stages.corruption_evaluation import corruption_evaluation
from rift.stages.evaluation import evaluation
from rift.stages.fine_tuning import choose_modules, fine_tuning
from rift.stages.interpolation import best_alpha, interpolate, interpolation
from rift.stages.joint_scan import joint_scan
from rift.stages.module_gains import module_gains
from rift.stages.mrc_scan import mrc_scan
from rift.stages.natural_shift import natural_shift
from rift.stages.session import Session

__all__ = [
    "Session",
    "adversarial_training",
    "auto_attack_evaluation",
    "best_alpha",
    "choose_modules",
    "corruption_evaluation",
    "evaluation",
    "fine_tuning",
    "interpolate",
    "interpolation",
    "joint_scan",
    "module_gains",
    "mrc_scan",
    "natural_shift",
]
