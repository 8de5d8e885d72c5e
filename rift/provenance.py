"""The circumstances of a result: command, commit, versions, host."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rift import torchrun

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "wandb", "numpy", "safetensors")
OPTIONAL = ("pyautoattack",)


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of every library that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    for package in OPTIONAL:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def command_line() -> str:
    """`python -m rift …` as it was typed: the quotes that make a choice a word for Hydra are ours.

    Of several processes it is torchrun's; its options are those that say how many.
    """
    typed = [re.sub(r'^([\w@/]+=)"(\w+)"$', r"\1\2", argument) for argument in sys.argv[1:]]
    began = torchrun.command() if torchrun.several() else [Path(sys.executable).name]
    return shlex.join([*began, "-m", "rift", *typed])


def made_elsewhere(result: Mapping[str, Any], device: str) -> str | None:
    """In which version of torch and on which device a stored result was made, if those are others than now.

    Args:
        result: of a finished stage.
        device: the present one's name.
    """
    theirs = (result.get("versions") or {}).get("torch"), (result.get("device") or {}).get("name")
    ours = version("torch"), device
    if None in theirs or theirs == ours:
        return None
    return (
        f"results in use were made with torch {theirs[0]} on {theirs[1]}, and this is torch {ours[0]} on "
        f"{ours[1]}: numbers may differ in their last digits"
    )


def provenance() -> dict[str, object]:
    """What a result file says of how it came about; JSON-able, without secrets."""
    # Installed into somebody's environment, the nearest repository is not ours.
    ours = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    status = _git("status", "--porcelain", "--untracked-files=no") if ours else None
    return {
        "command": command_line(),
        "commit": _git("rev-parse", "HEAD") if ours else None,
        "dirty": bool(status) if status is not None else None,
        "versions": versions(),
        "platform": platform.platform(),
        "world_size": torchrun.world_size() if torchrun.several() else 1,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
