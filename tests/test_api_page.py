"""docs/api.md names every public name and each parameter; docs/notebook.ipynb runs."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import rift

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")
FUNCTIONS = [name for name in rift.__all__ if inspect.isfunction(getattr(rift, name))]
NOTEBOOK = ROOT / "docs/notebook.ipynb"
STEPS = ("attack", "mrc_scan", "fine_tune", "interpolate")


def test_each_public_name_is_there():
    assert set(FUNCTIONS) == {*STEPS, "load_exported"}
    assert all(re.search(rf"\brift\.{name}\b", PAGE) for name in rift.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_signature_is_there(name):
    parameters = inspect.signature(getattr(rift, name)).parameters.values()
    words, keyword_only = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            words, keyword_only = [*words, "*"], True
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        words.append(parameter.name + default.replace("'", '"'))
    assert f"`rift.{name}({', '.join(words)})`" in PAGE
    documented = inspect.getdoc(getattr(rift, name))
    assert all(re.search(rf"^ +{parameter.name}: ", documented, re.M) for parameter in parameters)


@pytest.mark.parametrize("kind", ["FinetuneConfig", "InterpolateConfig", "MRCConfig", "Attack"])
def test_options_that_are_named_exist(kind):
    known = {entry.name for entry in fields(getattr(rift, kind))}
    named = re.search(rf"rift\.{kind}\(\.\.\.\)`[^:]*?: (.*?)(?:\.\s|, …|\n)", PAGE)[1]
    outside = re.sub(r"\([^)]*\)", "", named)
    found = set(re.findall(r"`(\w+)`", outside))
    assert len(found) > 3 and found <= known


def code_of_the_notebook() -> str:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_the_notebook_uses_all_four():
    assert all(f"rift.{name}(" in code_of_the_notebook() for name in STEPS)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """As its cells stand, in a fresh process and a folder of its own."""
    script = tmp_path / "cells.py"
    checks = (
        "assert ranking.least_critical in dict(model.named_modules())\n"
        "start = curve.iloc[0]\n"
        "chosen = curve[curve['alpha'] == curve.attrs['alpha']].iloc[0]\n"
        "assert start['robust'] > 0.3, 'no robust network to begin with'\n"
        "assert chosen['clean'] >= start['clean'] and chosen['robust'] >= start['robust'] - 0.003 - 1e-9\n"
    )
    script.write_text(code_of_the_notebook() + "\n\n" + checks, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
