"""Hydra's and OmegaConf's accounts of a wrong command line, each as one sentence with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from rift.config import Config
from rift.errors import choose_from

HELP = "see `python -m rift --help`"


def option_names(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every option of the schema, dotted: `stage.at.epochs`, …"""
    types = get_type_hints(schema)
    for field in fields(schema):
        if is_dataclass(types[field.name]):
            yield from option_names(types[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def unknown_option(name: str) -> str:
    """The sentence for an option that does not exist, with the nearest ones that do."""
    names = list(option_names())
    parent, dot, leaf = name.rpartition(".")
    siblings = sorted(
        {known[len(parent + dot) :].partition(".")[0] for known in names if known.startswith(parent + dot)}
    )
    if siblings:
        return f"there is no option '{name}': {choose_from(leaf, siblings)}."
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"there is no option '{name}': " + (f"did you mean '{near[0]}'?" if near else f"{HELP}.")


def explain(error: Exception) -> str:
    """One sentence: what is wrong, where, what to do.

    Args:
        error: raised by Hydra or OmegaConf while composing.
    """
    text = str(error)
    if found := re.search(r"Could not find '([\w@/]+)/([^'/]*)'", text):
        group, choice = found.groups()
        indented = [line.strip() for line in text.splitlines() if line.startswith("\t")]
        choices = [line for line in indented if "=" not in line]
        return f"{group}={choice} is no choice of the group {group}: {choose_from(choice, choices)}."
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_option(found.group(1))
    if found := re.search(r"Error merging override (.+)", text):
        return _wrong_type(found.group(1), error.__cause__)
    if found := re.search(r"full_key: (\S+)", text):
        return _about_key(found.group(1), text)
    if text.startswith("Ambiguous value"):
        return f"{text.split(chr(39))[1]} names several values: add -m to sweep over them."
    if type(error).__name__ == "OverrideParseException":
        reason = " ".join(line for line in text.splitlines() if not line.startswith("See "))
        return f"the command line cannot be parsed ({reason}): write option=value; {HELP}."
    return f"{' '.join(text.split())}; {HELP}."


def _wrong_type(override: str, cause: Any) -> str:
    reason = str(cause).splitlines()[0] if cause is not None else "it does not fit"
    return f"{override}: {reason[0].lower()}{reason[1:].rstrip('.')}; give a value of that type."


def _about_key(key: str, text: str) -> str:
    if "missing mandatory value" in text.lower():
        return f"{key} has no value: add {key}=VALUE to the command."
    if "recursive" in text.lower():  # attack=same, which is meant for the evaluation
        return f"{key} refers to itself: choose another value, for the group or for {key}."
    return f"{key}: {text.splitlines()[0]}; {HELP}."
