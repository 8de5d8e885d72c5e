"""docs/configuration.md: every option with type, default and meaning, from the schema itself.

python scripts/configuration_page.py            writes it
python scripts/configuration_page.py --check    exit code 1 if it is not what the schema says
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import rift.sweep  # noqa: F401  registers what conf/config.yaml names
from rift.conf_files import CONF
from rift.config import Config
from rift.report.tables import markdown_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
_HEAD = """# Every option

<!-- Written by `python scripts/configuration_page.py` from the schema; a test compares the two. -->

`rift option=value …` sets an option, `rift group=choice …` a whole group; `rift --cfg job …` prints what \
comes of it. Defaults are those of plain `rift`: ResNet18 on CIFAR-10, `protocol=paper`. `null` is "none", \
or what the last column says. Lengths of an attack are fractions of the pixel range, `8/255`."""


def comments(schema: type) -> dict[str, str]:
    """What the source says behind each field of a dataclass, its bases' included."""
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not is_dataclass(owner):
            continue
        source = inspect.cleandoc("\n" + inspect.getsource(owner))
        lines = source.splitlines()
        remarks: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                number = token.start[0]
                alone = lines[number - 1].lstrip().startswith("#")  # then it is of the field below it
                remarks[number + alone] = token.string.lstrip("# ")
        for node in ast.parse(source).body[0].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                found[node.target.id] = " ".join(remarks[line] for line in own if line in remarks)
    return found


def sections(
    schema: type, values: Any, prefix: str = "", about: str = ""
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Title, remark and table of a group, then of the groups within it."""
    types, remarks = get_type_hints(schema), comments(schema)
    own = [entry.name for entry in fields(schema) if not is_dataclass(types[entry.name])]
    rows = [
        {
            "option": f"`{prefix}{name}`",
            "type": _type(types[name]),
            "default": f"`{_value(values[name])}`",
            "meaning": remarks.get(name, ""),
        }
        for name in own
    ]
    if rows:
        yield prefix.rstrip(".") or "at the top", about, pd.DataFrame(rows)
    for entry in fields(schema):
        if is_dataclass(types[entry.name]):
            yield from sections(
                types[entry.name], values[entry.name], f"{prefix}{entry.name}.", remarks[entry.name]
            )


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    return text.replace("None", "null").replace(" | ", " or ")


def _value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def page() -> str:
    """The whole page."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose("config"), resolve=True)
    parts = [_HEAD]
    for title, about, table in sections(Config, values):
        choices = sorted(path.stem for path in (CONF / title).glob("*.yaml")) if "." not in title else []
        parts.append(f"## {title}")
        if about:
            parts.append(f"{about[0].upper()}{about[1:]}.")
        if choices and title != "experiment":
            parts.append("Choices: " + ", ".join(f"`{choice}`" for choice in choices) + ".")
        parts.append(markdown_table(table, text_columns=4))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Runs the command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--check", action="store_true", help="write nothing")
    text = page()
    if parser.parse_args().check:
        same = PAGE.exists() and PAGE.read_text("utf-8") == text
        print(f"{PAGE} says what the schema says" if same else f"{PAGE} is out of date")
        return 0 if same else 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
