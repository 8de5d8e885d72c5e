"""Every option and every file that README and documentation name exists; commands: `test_doc_commands.py`."""

from __future__ import annotations

import re
from pathlib import Path

from rift.explain import option_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


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
