"""In which options jobs differ that share a row of the study table's other columns."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from typing import Any

# Options that a column of its own tells.
_TOLD = {
    "model.family", "model.name", "model.width", "model.pretrained", "dataset.name", "method.name",
    "method.base", "method.form", "protocol.name", "smoke", "stage.finetune.target", "stage.finetune.top_k",
    "stage.evaluate.ood", "stage.evaluate.severities",
}  # fmt: skip
_FOLLOWING = ("selection_attack.", "evaluation_attack.")


def settings_texts(settings: Sequence[Hashable], options: Sequence[dict[str, Any]]) -> list[str]:
    """For each job, the resolved options in which it differs from others of the same setting.

    Args:
        settings: what the other columns say of each job.
        options: every option of each job by its dotted name, seed and machine left out.

    Returns:
        `stage.finetune.lr=0.01`, several in a fixed order, or nothing.
    """
    groups: dict[Hashable, list[dict[str, Any]]] = {}
    for setting, own in zip(settings, options, strict=True):
        groups.setdefault(setting, []).append(own)
    names = {setting: sorted(differing(group).keys() - _TOLD) for setting, group in groups.items()}
    return [
        " ".join(f"{name}={shown_value(own.get(name))}" for name in names[setting] if not _follows(name, own))
        for setting, own in zip(settings, options, strict=True)
    ]


def differing(options: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The options of which these jobs have several values, and the values as text.

    Options that a job does not know, being older or not using them, tell nothing.
    """
    values: dict[str, dict[str, None]] = {}
    for own in options:
        for name, value in own.items():
            values.setdefault(name, {})[shown_value(value)] = None
    return {name: list(found) for name, found in values.items() if len(found) > 1}


def _follows(name: str, options: dict[str, Any]) -> bool:
    """An attack's role that has the training attack's value says nothing of its own."""
    option = name.partition(".")[2]
    return name.startswith(_FOLLOWING) and options.get(name) == options.get(f"attack.{option}")


def shown_value(value: Any) -> str:
    """An option's value as a command line has it."""
    return value if isinstance(value, str) else json.dumps(value)
