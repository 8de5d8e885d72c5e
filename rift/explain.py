"""Hydra's and OmegaConf's accounts of a wrong command line, each as one sentence with the remedy."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from rift import torchrun
from rift.config import Config
from rift.errors import UserError, choose_from, printable, shown

# What a user or the machine's surroundings can bring about; anything else is a bug.
EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError)
# Exit codes besides 0: a bug, or some job of a sweep failed; a mistake; Ctrl-C, as shells have it (and 128 +
# its number for another signal: 143 SIGTERM, 138 SIGUSR1).
SOME_FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
HELP = "see `rift --help`"
_EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}  # launchers of Hydra's


def exit_code(error: BaseException) -> int:
    """What a process that ends with this error exits with."""
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "code", INTERRUPTED)
    return MISTAKE if isinstance(error, EXPECTED) else SOME_FAILED


def option_names(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every option of the schema, dotted: `stage.at.epochs`, …"""
    types = get_type_hints(schema)
    for field in fields(schema):
        if is_dataclass(types[field.name]):
            yield from option_names(types[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def unknown_option(name: str) -> str:
    """The sentence for an option that does not exist, with the nearest ones that do.

    Without its group it may be several: `lr` is one of training, of the scan and of fine-tuning.
    """
    names = list(option_names())
    parent, dot, leaf = name.rpartition(".")
    within = [known for known in names if known.startswith(parent + dot)]
    siblings = sorted({known[len(parent + dot) :].partition(".")[0] for known in within})
    shortened = _ending(name, names) or _ending(leaf, within)
    if not shortened and not parent and not get_close_matches(leaf, siblings, n=1, cutoff=0.5):
        near = get_close_matches(leaf, {known.rpartition(".")[2] for known in names}, n=1, cutoff=0.75)
        shortened = _ending(near[0], names) if near else []
    if shortened:
        *others, last = [f"'{known}'" for known in shortened]
        meant = f"{', '.join(others)} or {last}" if others else last
        return f"there is no option '{name}': did you mean {meant}?"
    if siblings:
        return f"there is no option '{name}': {choose_from(leaf, siblings)}."
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"there is no option '{name}': " + (f"did you mean '{near[0]}'?" if near else f"{HELP}.")


def _ending(name: str, options: list[str]) -> list[str]:
    return [known for known in options if known.endswith(f".{name}")]


def explain(error: Exception) -> str:
    """One sentence: what is wrong, where, what to do.

    Args:
        error: one of `EXPECTED`.
    """
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # one of Hydra's is both
        return shown(_about_files(error))
    if found := re.search(r"Could not find '([\w@/]+)/([^'/]*)'", text):
        group, choice = found.groups()
        indented = [line.strip() for line in text.splitlines() if line.startswith("\t")]
        choices = [line for line in indented if "=" not in line]
        return _no_choice(group, choice, choices)
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_option(found.group(1))
    if found := re.search(r"Error merging override (.+)", text):
        return _wrong_type(found.group(1), error.__cause__)
    if found := re.search(r"full_key: (\S+)", text):
        return _about_key(found.group(1), text)
    if text.startswith("Ambiguous value"):
        return f"{text.split(chr(39))[1]} names several values: add -m to sweep over them."
    if type(error).__name__ == "OverrideParseException":
        return _unparsed(getattr(error, "override", None) or "")
    return f"{' '.join(text.split())}; {HELP}."


def leave(error: Exception) -> NoReturn:
    """Ends the process for a user's mistake, which is said in one sentence on standard error.

    Of several processes that of the first to fail.
    """
    if torchrun.several():
        from rift.runtime import distributed  # only now: torch takes seconds to import

        if not distributed.first_to_fail(explain(error)):
            sys.exit(MISTAKE)
    print(f"rift: error: {printable(explain(error))}", file=sys.stderr)
    sys.exit(MISTAKE)


def in_one_line(error: Exception) -> str:
    """What a job failed of: the sentence for a mistake, the first line for a bug."""
    if isinstance(error, EXPECTED):
        return explain(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _no_choice(group: str, choice: str, choices: list[str]) -> str:
    known = choose_from(choice, choices)
    sentence = f"{group}={choice} is no choice of the group {group}"
    if group == "hydra/launcher" and choice in _EXTRAS:
        return f"{sentence} yet: install its extra, pip install -e '.[{_EXTRAS[choice]}]'."
    if choice == "null":
        return f"{sentence}: leave it out; {known}."
    if group == "model":
        return f"{sentence}: {known}; for any network of timm model=timm model.name={choice}."
    return f"{sentence}: {known}."


def _unparsed(override: str) -> str:
    name, equals, value = override.partition("=")
    if not equals:
        return f"the command line cannot be parsed at '{override}': write option=value; {HELP}."
    if not value or value[0] in "[{":
        return f"the command line cannot be parsed at '{override}': close what is opened; {HELP}."
    return (
        f"the value in {override} has characters that Hydra reads as its own: quote it twice, once for the "
        f"shell, as in '{name}=\"{value}\"'."
    )


def _about_files(error: OSError) -> str:
    """For what the file system refuses: full, read-only, not there, something else in the way."""
    place = Path(str(error.filename)) if error.filename else None
    if place is not None and place.name.endswith(".partial"):  # a file on its way is nobody's business
        place = place.parent
    reason = error.strerror or str(error) or type(error).__name__
    room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return (
        f"{place or 'a file'} cannot be written or read ({reason[0].lower()}{reason[1:]}): {room}"
        "give another output=FOLDER; what is finished stays, and the same command goes on from there."
    )


def _wrong_type(override: str, cause: Any) -> str:
    reason = str(cause).splitlines()[0] if cause is not None else "it does not fit"
    name, _, value = override.partition("=")
    if "subclass of AttackConfig" in reason:
        return f"{override} names a choice where an attack's options are: say attack@{name}={value}."
    if "is not a subclass of" in reason:
        return f"{override}: {name} is a group of options, so give one of them, {name}.OPTION=VALUE; {HELP}."
    if "ListConfig" in reason:
        return f"{override} must be a list: say '{name}=[{value}]'."
    return f"{override}: {reason[0].lower()}{reason[1:].rstrip('.')}; give a value of that type."


def _about_key(key: str, text: str) -> str:
    if "missing mandatory value" in text.lower():
        return f"{key} has no value: add {key}=VALUE to the command."
    if "recursive" in text.lower():  # attack=same, which is meant for the evaluation
        return f"{key} refers to itself: choose another value, for the group or for {key}."
    return f"{key}: {text.splitlines()[0]}; {HELP}."
