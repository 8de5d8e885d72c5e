"""Every command, every option and every file that README and documentation name exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tiny_jobs import config_of

from rift.explain import option_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
# `(at, finetune, …)` behind a command are other values of its last option.
FOUND = set(re.findall(r"`(?:python -m )?rift ([^`]*=[^`]*)`", TEXT))
# Those with a launcher need its extra; the others are patterns, not commands.
COMMANDS = sorted(text for text in FOUND if not re.search(r"hydra/launcher|…|[a-z]+=[A-Z]{5,} |group=", text))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_composes(command):
    words = [word for word in shlex.split(command) if word not in ("-m", "--check")]
    if "-m" in command.split():
        words = [word if word.count("=") != 1 else word.split(",")[0] for word in words]
    if "dataset=image_folder" not in words:
        words = [word for word in words if not word.startswith("dataset.root")]
    config_of(*words)


def test_there_are_commands():
    assert len(COMMANDS) > 12


def test_options_that_are_named_exist():
    known = set(option_names()) | {"stage.*.selection_split", "hydra/launcher"}
    named = set(
        re.findall(r"`((?:model|dataset|attack|evaluation_attack|stage|logger|runtime)\.[\w.*]+)", TEXT)
    )
    named = {name.rstrip(".") for name in named if not name.endswith("*")}
    assert named and named <= known


def test_targets_and_files_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make (\w[\w-]*)", TEXT, re.MULTILINE)):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"\]\((docs/[^)]+)\)", TEXT):
        assert (ROOT / path).is_file()
    for path in set(re.findall(r"`((?:rift|scripts|tests|conf)/[\w/.]*)", TEXT)):
        assert (ROOT / path).exists(), path
