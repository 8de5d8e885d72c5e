"""What is made of a command that cannot be run: its configuration is composed, its arguments are parsed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from runpy import run_module, run_path

import pytest
import yaml
from doc_commands import ROOT, Command
from omegaconf import OmegaConf
from tiny_jobs import command as run_rift
from tiny_jobs import composed
from torch.distributed.run import get_args_parser as torchrun_parser

from rift.command_line import GROUPS, check_arguments
from rift.conf_files import CONF
from rift.config import to_config
from rift.dry_run import taken_out
from rift.explain import EXPECTED, in_one_line
from rift.main import _in_order

PLACEHOLDERS = {"MINUTES": "1"}  # what is no text
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


def check(command: Command) -> None:
    """Composes or parses it; what is wrong is one sentence."""
    try:
        by_program(command)
    except EXPECTED as error:
        pytest.fail(f"{command.where}: '{command.text}': {in_one_line(error)}", pytrace=False)


def by_program(command: Command) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in command.words]
    match words:
        case ["rift", *rest] | ["python", "-m", "rift", *rest]:
            check_rift(rest)
        case ["torchrun", *rest]:
            given = torchrun_parser().parse_args(rest)
            assert given.module and given.training_script == "rift"
            check_rift(given.training_script_args)
        case ["python", "-m", module, *rest] if module.startswith("rift."):
            parse(lambda: run_module(module, run_name="__main__", alter_sys=True), rest)
        case ["python", script, *rest] if (ROOT / script).is_file():
            parse(lambda: run_path(str(ROOT / script), run_name="__main__"), rest)
        case ["scripts/paper_row.sh", *rest]:  # hands its arguments on
            parse(lambda: run_path(str(ROOT / "scripts/paper_row.py"), run_name="__main__"), rest)
        case ["scripts/two_cores_studies.sh", *rest]:
            for line in what_a_script_runs(ROOT / "scripts/two_cores_studies.sh", rest):
                check(Command(command.where, shlex.join(line), tuple(line)))
        case ["make", *rest]:
            assert what_make_runs(rest)
        case ["pip", "install", *rest]:
            check_pip(rest)
        case ["docker", "build", "-f", file, "-t", _, "."]:
            assert (ROOT / file).is_file()
        case ["eval", text] if found := re.fullmatch(r"\$\((.*)\)", text):
            check(Command(command.where, found[1], tuple(shlex.split(found[1]))))
        case _:
            pytest.fail(
                f"{command.where}: no test knows how to check '{command.text}': teach `check` in "
                "tests/doc_checks.py its program, or give it a reason in EXEMPT of test_doc_commands.py.",
                pytrace=False,
            )


def what_make_runs(arguments: list[str]) -> list[str]:
    """The lines that make would run, also where a make runs the tests: the inner one would say its folder."""
    command = ["make", "--no-print-directory", "-n", *arguments]
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=outside)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_rift(arguments: list[str]) -> None:
    """As the command line does it: refused, composed with every value of a sweep, or answered (`--help`)."""
    checking, arguments = taken_out(arguments)
    arguments = _in_order(arguments)
    check_arguments(arguments, checking=checking)
    overrides = [text for text in arguments if "=" in text and not text.startswith("install=")]
    if not overrides and arguments and arguments != ["-m"] and "-sc" not in arguments:
        assert run_rift(*arguments) == 0
        return
    own = [text for text in overrides if text.startswith("hydra")]
    check_launcher(own)
    overrides = [text for text in overrides if text not in own]
    for variant in variants(overrides) if "-m" in arguments else [overrides]:
        compose(variant)


def variants(overrides: list[str]) -> list[list[str]]:
    """Of a sweep so many of its jobs that each value of each option is in one; of a group the first choice.

    That the other choices are there is seen at once, and each is composed by `test_config_files.py`.
    """
    swept = [text.partition("=") for text in overrides]
    values = [[value] if "[" in value else value.replace('"', "").split(",") for _, _, value in swept]
    for (group, _, _), choices in zip(swept, values, strict=True):
        if group in GROUPS:
            assert {f"{choice}.yaml" for choice in choices} <= {
                file.name for file in (CONF / group).iterdir()
            }
            del choices[1:]
    return [
        [f"{name}={of[number % len(of)]}" for (name, _, _), of in zip(swept, values, strict=True)]
        for number in range(max(map(len, values), default=1))
    ]


def compose(overrides: list[str]) -> None:
    """Hydra composes the groups, a quarter of a second each time; the values are laid over as it does it."""
    groups = tuple(text for text in overrides if re.match(rf"({'|'.join(GROUPS)})(@\w+)?=", text))
    values = [text for text in overrides if text not in groups]
    to_config(OmegaConf.merge(composed(*groups), OmegaConf.from_dotlist(values)))


def check_launcher(options: list[str]) -> None:
    """The launcher's own options are in its file, and every launcher that is named has one."""
    values = dict(text.split("=", 1) for text in options)
    if launcher := values.pop("hydra/launcher", None):
        known = yaml.safe_load((CONF / "hydra" / "launcher" / f"{launcher}.yaml").read_text("utf-8"))
        assert {name.removeprefix("hydra.launcher.") for name in values} <= set(known)


class Parsed(BaseException):
    """The arguments were understood, and that is all that is wanted."""


def parse(run: Callable[[], object], arguments: list[str]) -> None:
    """A program with a parser of argparse's, up to where its arguments are parsed."""
    real = ArgumentParser.parse_args

    def stop(parser, given=None, namespace=None):
        real(parser, given, namespace)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", ["program", *arguments])
        run()


def what_a_script_runs(script: Path, arguments: list[str]) -> list[list[str]]:
    """The commands `python …` of a shell script, each of which is taken to succeed."""
    stand_in = Path.cwd() / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" python "$@" "" >>"$TOLD"\n')
    stand_in.chmod(0o755)
    told = Path.cwd() / "told"
    environment = os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "TOLD": str(told)}
    done = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [lines.split("\n") for lines in told.read_text().strip().split("\n\n")]


def check_pip(arguments: list[str]) -> None:
    for text in arguments:
        if found := re.fullmatch(r"\.\[(\w+)\]", text):
            assert found[1] in EXTRAS
        else:
            assert text in ("-e", "-c") or (ROOT / text).is_file(), text
