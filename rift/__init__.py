"""RiFT, robust critical fine-tuning, from adversarial training to the paper's tables.

    adversarial = rift.attack(model, images, labels, epsilon=8 / 255)
    ranking = rift.mrc_scan(model, images, labels, epsilon=8 / 255)
    tuned = rift.fine_tune(model, loader, module=ranking.least_critical)
    best, curve = rift.interpolate(model, tuned, images, labels, tolerance=0.001)

Nothing is imported before it is asked for: the command line shows its options without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rift.api import Ranking, attack, fine_tune, interpolate, mrc_scan
    from rift.attacks import Attack
    from rift.errors import UserError
    from rift.export import load_exported
    from rift.stage_options import FinetuneConfig, InterpolateConfig, MRCConfig

__version__ = "0.1.0"

_PLACES = {
    "attack": "rift.api",
    "mrc_scan": "rift.api",
    "fine_tune": "rift.api",
    "interpolate": "rift.api",
    "load_exported": "rift.export",
    "Ranking": "rift.api",
    "Attack": "rift.attacks",
    "MRCConfig": "rift.stage_options",
    "FinetuneConfig": "rift.stage_options",
    "InterpolateConfig": "rift.stage_options",
    "UserError": "rift.errors",
}

__all__ = [
    "Attack",
    "FinetuneConfig",
    "InterpolateConfig",
    "MRCConfig",
    "Ranking",
    "UserError",
    "attack",
    "fine_tune",
    "interpolate",
    "load_exported",
    "mrc_scan",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rift' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
