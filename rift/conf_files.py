"""Where the configuration's files are, and their options by dotted names. Imports neither Hydra nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INSIDE = Path(__file__).parent / "conf"
# In a checkout the folder lies beside the package, installed it lies inside.
CONF = _INSIDE if _INSIDE.is_dir() else Path(__file__).parent.parent / "conf"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names: `stage.at.epochs`, …"""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
