"""In which options jobs differ that share a row of the study table's other columns."""

from __future__ import annotations

import json
import re
from collections import Counter
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


def telling_texts(groups: Sequence[Hashable], options: Sequence[dict[str, Any]]) -> list[str]:
    """For each job, the fewest options that tell it from others of its group.

    Of options that tell the same jobs apart, as those that one choice sets together, the first is enough, and
    the value that most of the group have is not told.

    Args:
        groups: what else is said of each job.
        options: of each job by name, in the order in which they are to be told.

    Returns:
        `attack.epsilon=4/255`, several in that order, or nothing. A digest is shortened.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    texts = [""] * len(options)
    for indices in members.values():
        own = [options[index] for index in indices]
        several = differing(own)
        names, alike = [], [()] * len(own)  # what was told of each job so far
        for name in dict.fromkeys(name for one in own for name in one if name in several):
            finer = [(*told, shown_value(one.get(name))) for told, one in zip(alike, own, strict=True)]
            if len(set(finer)) > len(set(alike)):
                names, alike = [*names, name], finer
        usual = {name: _usual([shown_value(one[name]) for one in own if name in one]) for name in names}
        for index, one in zip(indices, own, strict=True):
            values = {name: shown_value(one[name]) for name in names if name in one}
            told = [f"{_bare(name)}={_brief(v)}" for name, v in values.items() if v != usual[name]]
            texts[index] = " ".join(told)
    return texts


def _usual(values: Sequence[str]) -> str | None:
    """The value of more than half of them."""
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > len(values) else None


def _bare(name: str) -> str:
    return name.removeprefix("stage.")


def _brief(value: str) -> str:
    return value[:12] if re.fullmatch(r"[0-9a-f]{64}", value) else value


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
