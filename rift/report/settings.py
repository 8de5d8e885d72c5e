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
    values: dict[Hashable, dict[str, set[str]]] = {}
    for setting, own in zip(settings, options, strict=True):
        for name in own.keys() - _TOLD:
            values.setdefault(setting, {}).setdefault(name, set()).add(_shown(own[name]))
    return [
        " ".join(
            f"{name}={_shown(own.get(name))}"
            for name, found in sorted(values.get(setting, {}).items())
            if len(found) > 1 and not _follows(name, own)
        )
        for setting, own in zip(settings, options, strict=True)
    ]


def _follows(name: str, options: dict[str, Any]) -> bool:
    """An attack's role that has the training attack's value says nothing of its own."""
    option = name.partition(".")[2]
    return name.startswith(_FOLLOWING) and options.get(name) == options.get(f"attack.{option}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
