"""What a command line may say to Hydra: choices and values of ours, and nothing that Hydra would run.

Hydra makes objects of whatever its own options name (callbacks, log handlers, launchers), reads configuration
from any folder, and unpickles a rerun, all before our first line. So the arguments are checked before Hydra
sees them; the files of `conf/` are ours.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rift.conf_files import CONF
from rift.errors import UserError
from rift.launchers import has_slurm_extra

GROUPS = tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"))
LAUNCHERS = ("basic", "gpus", "slurm", "joblib", "submitit_local", "submitit_slurm")
# Of a launcher's options those that are numbers and names; its others are commands, folders and classes.
LAUNCHER_OPTIONS = (
    *("n_jobs", "backend", "prefer", "require", "verbose", "timeout", "pre_dispatch", "batch_size"),
    *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"),
    *("partition", "qos", "comment", "constraint", "exclude", "gres", "cpus_per_gpu", "gpus_per_task"),
    *("mem_per_gpu", "mem_per_cpu", "account", "signal_delay_s", "max_num_timeout", "array_parallelism"),
    *("stderr_to_stdout", "devices", "jobs_per_device"),
)
LONGEST = 10_000  # characters of one argument
DEEPEST = 20  # brackets in brackets; the parser descends for each, and options have none but one
_PACKAGES = ("selection_attack", "evaluation_attack")
_REFUSED_FLAGS = ("config_path", "config_name", "config_dir", "experimental_rerun")
_SHOWN = {"cfg": "--cfg", "info": "--info", "multirun": "-m", "run": "--run", "shell_completion": "-sc"}
_REFERENCE = r"\$\{(?:half:)?(?!\.*hydra\b)[\w.]+\}"  # to another option of ours
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # how they are read is not what they say


def check_arguments(arguments: Sequence[str], *, checking: bool = False) -> None:
    """Refuses what Hydra would execute, read from elsewhere, or answer with a traceback.

    Args:
        arguments: the command line, without the program's name, and without `--check`.
        checking: whether that was there.

    Raises:
        UserError: an argument that is not taken.
        HydraException: an override that Hydra's parser cannot read.
    """
    for argument in arguments:
        _check_text(argument)
    flags = _flags(arguments)
    for name in _REFUSED_FLAGS:
        if getattr(flags, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is not taken: options come from rift's own files and the command line.")
    _check_flags(flags, checking)
    if flags.shell_completion:
        _check_completion(flags.overrides)
        return
    for text in flags.overrides:
        _check_override(text)


def check_working_folder() -> None:
    """Refuses a working folder with plugins of its own.

    `python -m` puts the working folder among those that modules are imported from, and Hydra imports whatever
    is called `hydra_plugins` there.

    Raises:
        UserError: there is something of that name.
    """
    here = Path.cwd()
    if any(Path(entry).resolve() == here for entry in sys.path) and PathFinder.find_spec(
        "hydra_plugins", [str(here)]
    ):
        raise UserError(
            f"{here / 'hydra_plugins'} is code that Hydra would run: move it away, or work in another folder."
        )


def _check_text(argument: str) -> None:
    if len(argument) > LONGEST:
        raise UserError(f"{argument} is longer than {LONGEST} characters: that is no option.")
    if any(unicodedata.category(letter) == "Cs" for letter in argument):
        raise UserError(
            f"{argument} has letters that this terminal's encoding cannot say: use UTF-8 (LC_ALL=C.UTF-8, or "
            "PYTHONUTF8=1)."
        )
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") or letter in _TURNING for letter in argument):
        raise UserError(f"{argument} has control characters: write it without.")


def _flags(arguments: Sequence[str]) -> Namespace:
    """What Hydra's own parser understands, abbreviations included."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}: what begins with a dash comes first; see `rift --help`.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(list(arguments))


def _check_flags(flags: Namespace, checking: bool) -> None:
    given = [shown for name, shown in _SHOWN.items() if getattr(flags, name)]
    if checking and set(given) - {"-m"}:
        raise UserError(f"--check and {given[0]} cannot go together: leave out one of them.")
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} cannot go together: leave out one of them.")
    if flags.resolve and not (flags.cfg or flags.help):
        raise UserError("--resolve goes with --cfg: say `rift --cfg job --resolve`.")


def _check_completion(asked: Sequence[str]) -> None:
    if len(asked) != 1 or not re.fullmatch(r"(install|uninstall|query)=(bash|zsh|fish)", asked[0]):
        raise UserError("-sc wants install=SHELL or uninstall=SHELL: bash, zsh or fish.")


def _check_override(text: str) -> None:
    if _depth(text) > DEEPEST:
        raise UserError(f"{text} has more than {DEEPEST} brackets in brackets: that is no option.")
    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
    except HydraException:
        raise  # it has its own sentence
    except Exception as error:  # a number of thousands of digits, say
        raise UserError(f"{text} cannot be read: write option=value; see `rift --help`.") from error
    name, value = parsed.key_or_group, text.partition("=")[2]
    if parsed.package is not None and parsed.package not in _PACKAGES:
        raise UserError(
            f"{text}: a group can be put elsewhere only as {' and '.join(f'attack@{p}' for p in _PACKAGES)}."
        )
    if re.match(r"hydra\b", name):
        _check_hydra(text, name, value)
    if name in GROUPS and re.search(r"[/\\:$~]|\.\.", value):
        raise UserError(f"{text} is no choice of the group {name}: a choice is a plain name, not a file.")
    if re.search(r"\$\W*\{", re.sub(_REFERENCE, "", value)):
        raise UserError(
            f"{text}: ${{...}} may name another option, as ${{seed}}, and nothing else, since values are "
            "stored and sent; let the shell fill in what is not secret."
        )


def _check_hydra(text: str, name: str, value: str) -> None:
    """Of Hydra's own options: which launcher, and its numbers."""
    chosen = value.strip("\"'")
    if name == "hydra/sweeper" and chosen == "basic":
        return
    if name == "hydra/launcher" and chosen in LAUNCHERS:
        if chosen == "slurm" and not has_slurm_extra():
            raise UserError(f"{text} needs its extra: install it, pip install -e '.[slurm]'.")
        return
    parts = name.split(".")
    plain = not re.search(r"[{\[]", value) or re.fullmatch(r"\[[\w, -]*\]", value)
    if parts[:2] == ["hydra", "launcher"] and len(parts) == 3 and parts[2] in LAUNCHER_OPTIONS and plain:
        return
    raise UserError(
        f"{text} is not taken: of Hydra's own options there are hydra/launcher={', '.join(LAUNCHERS)} and "
        "that launcher's numbers and names, such as hydra.launcher.n_jobs=2."
    )


def _depth(text: str) -> int:
    return max(_depths(text), default=0)


def _depths(text: str) -> Iterator[int]:
    depth = 0
    for letter in text:
        depth += (letter in "[{(") - (letter in ")}]")
        yield depth
