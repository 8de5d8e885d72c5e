"""The one entry point: `python -m rift …`, the same as the console script `rift`."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rift import dry_run, launchers, signals, sweep, torchrun
from rift.command_line import GROUPS, check_arguments, check_working_folder
from rift.conf_files import CONF
from rift.config import register_plugins, to_config
from rift.errors import JobFailed, UserError
from rift.explain import EXPECTED, MISTAKE, SOME_FAILED, exit_code, in_one_line, leave
from rift.places import check_places
from rift.progress import set_up_logging
from rift.streams import prepare_streams

log = logging.getLogger(__name__)

_GROUPS = "|".join(GROUPS)


def task(composed: DictConfig) -> float | None:
    """One job, as Hydra calls it, here or in a process that a launcher has started.

    Args:
        composed: the configuration, unchecked.

    Returns:
        The final clean accuracy, for a sweeper that looks for the best options.
    """
    surroundings = HydraConfig.get()
    if sweep.place() is None:
        set_up_logging()
        if surroundings.sweeper.params:
            log.warning("this experiment is a sweep, and this is one run of it: add -m for all of them")
        try:
            return _run(composed)
        except EXPECTED as error:
            leave(error)  # here, because Hydra would add its own account to an error that it sees
    overrides = list(surroundings.overrides.task)
    one_by_one = surroundings.launcher._target_.endswith("BasicLauncher")
    set_up_logging(" ".join(sweep.differing(overrides)), bars=one_by_one)
    carry_on = surroundings.sweeper._target_.endswith("BasicSweeper")
    with sweep.recorded(surroundings.job.num, overrides, carry_on=carry_on):
        return _run(composed)
    return None


def check(composed: DictConfig) -> None:
    """One job that is only checked, as Hydra calls it; see `rift.dry_run`."""
    set_up_logging()
    if sweep.place() is None:
        try:
            _check(composed, shown=True)
        except EXPECTED as error:
            leave(error)
        return
    surroundings = HydraConfig.get()
    overrides = list(surroundings.overrides.task)
    with sweep.recorded(surroundings.job.num, overrides, carry_on=True, done="fine") as remarks:
        remarks.append(_check(composed, shown=False))


_by_hydra = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")


def _run(composed: DictConfig) -> float | None:
    config = to_config(composed)
    if not torchrun.several():  # of several processes one speaks, which takes torch
        check_places(config)
    from rift.job import run_job  # only now: torch takes seconds to import
    from rift.runtime import distributed

    surroundings = HydraConfig.get()
    overrides = list(surroundings.overrides.task)
    typed = _typed(sweep.of_user(overrides, surroundings.sweeper.params or {}))
    in_sweep = sweep.place() is not None
    with distributed.common_fate(in_one_line):
        summary = run_job(config, _typed(overrides), sweep.varied(overrides), typed, in_sweep)
    return summary.get("rift", summary.get("at", {})).get("clean_accuracy")


def _check(composed: DictConfig, shown: bool) -> str:
    config = to_config(composed)
    if not torchrun.several():
        dry_run.look(config)
    from rift.runtime import distributed  # only now: see _run

    with distributed.common_fate(in_one_line):
        return dry_run.check(config, shown=shown)


def _typed(overrides: list[str]) -> dict[str, Any]:
    """`option=value` of the command line (and of a sweep), as text."""
    pairs = (override.partition("=") for override in overrides)
    return {name.lstrip("+"): value for name, _, value in pairs}


def quoted(argument: str) -> str:
    """The choices of a group are words, though Hydra takes `true`, `1` and `null` for something else.

    Raises:
        UserError: what Hydra would take in silence, or answer with a traceback.
    """
    if argument.startswith("="):
        raise UserError(f"'{argument}' names no option: write option=value; see `rift --help`.")
    if several := re.fullmatch(rf"({_GROUPS})=\[.*\]", argument):
        stages = " (several stages are 'stage.run=[at,mrc]')" if several[1] == "stage" else ""
        raise UserError(f"{argument} names several choices of a group: give one{stages}, or sweep with -m.")
    found = re.fullmatch(rf"((?:{_GROUPS})(?:@\w+)?)=([\w.,+-]*)", argument)
    if found is None:
        return argument
    words = [f'"{word.lower()}"' if _no_word(word) else word for word in found[2].split(",")]
    return f"{found[1]}={','.join(words)}"


def _no_word(text: str) -> bool:
    return re.fullmatch(r"true|false|null|none|[+-]?\d[\d.e+-]*", text.lower()) is not None


def _in_order(arguments: list[str]) -> list[str]:
    """`-m` may stand anywhere; Hydra wants what begins with a dash first."""
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    shown = [
        argument for argument in arguments if argument.startswith(("--cfg", "--info")) or argument == "-c"
    ]
    if flags and shown:
        raise UserError(f"{shown[0]} shows one run and -m is for many: leave out one of them.")
    return flags + [quoted(argument) for argument in arguments if argument not in flags]


def main() -> None:
    """Runs `sys.argv`; a user's mistake is one sentence on standard error and exit code 2."""
    prepare_streams()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own account of an error, and exit
    os.environ.pop(sweep.VARIABLE, None)
    warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
    try:
        if torchrun.several():
            _join_the_others()
        register_plugins()
        checking, arguments = dry_run.taken_out(sys.argv[1:])
        sys.argv[1:] = _in_order(arguments)
        check_arguments(sys.argv[1:], checking=checking)
        check_working_folder()
        launchers.register()
        signals.install(patient=torchrun.several())
        complete = _check_by_hydra() if checking else _run_by_hydra()
    except KeyboardInterrupt as stop:
        if torchrun.is_writer():
            print("\nrift: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(exit_code(stop))
    except JobFailed:
        complete = False
    except EXPECTED as error:
        leave(error)
    if not complete:
        sys.exit(MISTAKE if checking else SOME_FAILED)
    if torchrun.several():
        from rift.runtime import distributed

        distributed.finish()


def _run_by_hydra() -> bool:
    """Whether all jobs came to their end."""
    try:
        _by_hydra(task)()
    finally:
        complete = sweep.finish()
    return complete


def _check_by_hydra() -> bool:
    """Whether all jobs are fine."""
    if "-m" not in sys.argv and "--multirun" not in sys.argv:
        _by_hydra(check)()
        return True
    with dry_run.sweep_here(sys.argv[1:]) as arguments:
        sys.argv[1:] = arguments
        try:
            _by_hydra(check)()
        finally:
            complete = sweep.finish("check")
    return complete


def _join_the_others() -> None:
    """One of several processes that torchrun has started."""
    if not torchrun.is_writer():
        warnings.simplefilter("ignore")  # one speaks
    from rift.runtime import distributed  # only now: see _run

    distributed.start()
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        raise UserError("-m runs many jobs, and torchrun is for one: give it one job at a time.")
