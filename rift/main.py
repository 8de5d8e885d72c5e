"""The one entry point: `python -m rift …`, the same as the console script `rift`."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rift.config import to_config
from rift.errors import UserError
from rift.explain import explain
from rift.progress import set_up_logging

# In an installed package the configuration lies inside it, in a checkout beside it.
_INSIDE = Path(__file__).parent / "conf"
CONF = _INSIDE if _INSIDE.is_dir() else Path(__file__).parent.parent / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _task(composed: DictConfig) -> float | None:
    set_up_logging()
    try:
        config = to_config(composed)
        from rift.job import run_job  # only now: torch takes seconds to import

        summary = run_job(config, _typed_overrides())
    except (UserError, OmegaConfBaseException) as error:
        _leave(error)  # here, because Hydra would add its own account to an error that it sees
    return summary.get("rift", summary.get("at", {})).get("clean_accuracy")


def _typed_overrides() -> dict[str, Any]:
    """`option=value` of the command line (and of a sweep), as text."""
    pairs = (override.partition("=") for override in HydraConfig.get().overrides.task)
    return {name.lstrip("+"): value for name, _, value in pairs}


def _quoted(argument: str) -> str:
    """Hydra takes `true` for a boolean, but smoke is a group, whose choices are words."""
    return (
        f'{argument[:6]}"{argument[6:].lower()}"'
        if argument.lower() in ("smoke=true", "smoke=false")
        else argument
    )


def main() -> None:
    """Runs `sys.argv`; a user's mistake is one sentence on standard error and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own account of an error, and exit
    warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
    sys.argv[1:] = [_quoted(argument) for argument in sys.argv[1:]]
    try:
        _task()
    except KeyboardInterrupt:
        sys.exit("\nrift: stopped; the same command goes on from here")
    except (UserError, HydraException, OmegaConfBaseException) as error:
        _leave(error)


def _leave(error: Exception) -> NoReturn:
    sentence = str(error) if isinstance(error, UserError) else explain(error)
    print(f"rift: error: {sentence}", file=sys.stderr)
    sys.exit(2)
