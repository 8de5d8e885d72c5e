"""`python -m rift.report` from the outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from report_samples import accuracies, write

import rift
from rift.report.__main__ import main
from rift.report.tables import latex_escape


@pytest.fixture
def jobs(tmp_path):
    root = tmp_path / "jobs"
    for seed, clean in enumerate((0.80, 0.82)):
        at = accuracies(clean, 0.5, 0.49)
        write(root / "default", f"r{seed}", seed=seed, at=at, overrides={}, mrc=None, sweep=None)
    write(root / "other", "lr", study="other", options={"stage.finetune.lr": 0.01}, mrc=None)
    write(root / "default", "tried", smoke=True)
    return root


def python(*arguments, cwd):
    root = Path(rift.__file__).parents[1]  # the package need not be installed
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_needs_no_torch_and_ends_with_the_table(jobs):
    code = (
        "import sys; from rift.report.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; assert 'hydra' not in sys.modules; sys.exit(code)"
    )
    done = python("-c", code, str(jobs), cwd=jobs)
    assert done.returncode == 0, done.stderr
    assert "81.00 ± 1.41" in done.stdout
    assert "stage.finetune.lr=0.01" in done.stdout
    assert "smoke" not in done.stdout


def test_module_entry_without_results_is_one_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "empty").mkdir()
    done = python("-m", "rift.report", "empty", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no results in empty;")
    assert done.stderr.count("\n") == 1


def test_output_writes_every_form(jobs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(jobs), "--output", str(out)]) == 0
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(out))]
    assert {path.name for path in out.iterdir()} == {
        "table.txt", "table.md", "table.csv", "table.tex", "jobs.csv", "figures",
    }  # fmt: skip
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["lr-alpha.pdf", "lr-alpha.png"]
    assert len(named) == 7
    table = pd.read_csv(out / "table.csv", keep_default_na=False)
    assert table["n"].tolist() == [2, 1]
    assert float(table["clean_at_mean"][0]) == 81.0
    assert float(table["clean_at_std"][0]) == 1.4142
    assert table["clean_at_std"][1] == ""
    assert len(pd.read_csv(out / "jobs.csv")) == 3
    rows = (out / "table.md").read_text().splitlines()
    heads, first = ([cell.strip() for cell in row.split("|")[1:-1]] for row in (rows[0], rows[2]))
    assert dict(zip(heads, first, strict=True))["clean AT"] == "81.00 ± 1.41"
    latex = (out / "table.tex").read_text()
    assert r"81.00{\scriptsize\,$\pm$\,1.41}" in latex
    assert r"\toprule" in latex
    assert latex.isascii()
    assert r"method pgd\_at" in latex


@pytest.mark.parametrize(
    ("form", "mark"), [("markdown", "|:--"), ("csv", "model,dataset"), ("latex", r"\midrule")]
)
def test_a_form_without_output_is_printed(jobs, capsys, form, mark):
    assert main([str(jobs), "--format", form]) == 0
    assert mark in capsys.readouterr().out


def test_study_and_smoke_select(jobs, capsys):
    assert main([str(jobs), "--study", "other"]) == 0
    assert "resnet18-cifar10-pgd_at-s0" in capsys.readouterr().out  # a single job: its own table
    assert main([str(jobs), "--smoke"]) == 0
    assert "smoke run: not a result" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{jobs}/nowhere"], "does not exist"),
        (["{jobs}", "--study", "othr"], "did you mean 'other'?"),
        (["{jobs}/default/tried"], "add --smoke"),
        (["{jobs}", "--format", "all"], "--output DIR"),
    ],
)
def test_mistakes_are_one_sentence(jobs, capsys, arguments, sentence):
    assert main([argument.format(jobs=jobs) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_an_unreadable_summary_is_a_warning(jobs, capsys):
    (jobs / "broken").mkdir()
    (jobs / "broken" / "summary.json").write_text("{")
    assert main([str(jobs)]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: skipped: ")
    assert str(jobs / "broken" / "summary.json") in error
    assert error.count("\n") == 1


def test_latex_escapes_what_latex_would_swallow():
    assert latex_escape("a_b 5% {x} & #1 α ± 2 – \\") == (
        r"a\_b 5\% \{x\} \& \#1 $\alpha$ $\pm$ 2 -- \textbackslash{}"
    )
