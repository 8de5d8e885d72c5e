"""The commands and the blocks of code that README and docs/*.md show.

Libraries that run documentation (Sybil, pytest-codeblocks, pytest-markdown-docs, mktestdocs, byexample) run a
fenced block or skip it. Most commands here stand in tables, and ask for hours, GPUs, a cluster or a download:
what cannot be run is to be composed or parsed. So the parser of Markdown that rich brings finds them, and
`test_doc_commands.py` says what is done with each.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from rift.command_line import GROUPS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("bash", "sh", "shell")
PROGRAM = re.compile(r"(rift|python|torchrun|make|pip|docker|eval|scripts/\S+\.(?:sh|py)) ")
# `stage.mrc.solver=projected stage.mrc.epochs=1`: options of rift's without its name in front.
_GROUPS = "|".join((*GROUPS, "selection_attack", "evaluation_attack"))
OPTION = rf"(?:(?:{_GROUPS})(?:@\w+)?|(?:{_GROUPS})(?:\.\w+)+)=[\w./,\[\]-]+"
OPTIONS = re.compile(rf"{OPTION}(?: {OPTION})*")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    where: str
    language: str
    code: str


@dataclass(frozen=True)
class Command:
    """A command as it is typed.

    Attributes:
        where: page and line.
        text: as it stands there, without comment and continued lines.
        words: as the shell splits it.
        whole: whether it stands there as one, and is not a `--flag` alone.
    """

    where: str
    text: str
    words: tuple[str, ...]
    whole: bool = True


def parsed(page: Path) -> list[Token]:
    """A page in the tokens of its Markdown, with GitHub's tables."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))


def blocks() -> list[Block]:
    """Every fenced block of every page."""
    return [
        Block(f"{page.name}:{token.map[0] + 1}", token.info.strip(), token.content)
        for page in PAGES
        for token in parsed(page)
        if token.type == "fence"
    ]


@cache
def commands() -> tuple[Command, ...]:
    """Every command, in a block or between the lines, once however often it is there."""
    found = [command for block in blocks() if block.language in SHELL for command in in_block(block)]
    found += [command for page in PAGES for command in in_prose(page.name, parsed(page))]
    once: dict[tuple[str, ...], Command] = {}
    for command in found:
        once.setdefault(command.words, command)
    return tuple(once.values())


def in_block(block: Block) -> Iterator[Command]:
    """A command a line; a backslash at its end continues it."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield Command(block.where, shlex.join(words), tuple(words))


def in_prose(page: str, tokens: list[Token]) -> Iterator[Command]:
    """Inline code that begins with a program, or is options of rift's; `…` at the end is left out.

    A `--flag` belongs to the command before it in the paragraph or in the row of the table; plain words in
    brackets right behind a command are other values of its first option.
    """
    last: Command | None = None
    before = ""
    for token in tokens:
        if token.type in ("tr_open", "paragraph_open"):
            last, line = None, token.map[0] + 1 if token.map else 0
        for child in token.children or ():
            if child.type != "code_inline":
                before += child.content
                continue
            text = child.content.removesuffix(" …")
            if PROGRAM.match(f"{text} ") and " " in text:
                last = Command(f"{page}:{line}", text, tuple(shlex.split(text)))
                yield last
                before = ""
            elif last is not None and re.match(r" \([^)]*$", before) and re.fullmatch(r"\w+", text):
                if other := with_value(last, text):
                    yield other
            elif OPTIONS.fullmatch(text):
                yield Command(f"{page}:{line}", text, ("rift", *text.split()))
            elif last is not None and text.startswith("--"):
                words = (*last.words, *shlex.split(text))
                yield Command(f"{page}:{line}", shlex.join(words), words, whole=False)


def with_value(command: Command, value: str) -> Command | None:
    """The command with another value of its first option, if it is one of rift's that has any."""
    options = [word for word in command.words if "=" in word]
    if command.words[0] != "rift" or not options:
        return None
    name = options[0].partition("=")[0]
    words = tuple(f"{name}={value}" if word == options[0] else word for word in command.words)
    return Command(command.where, shlex.join(words), words, whole=False)
