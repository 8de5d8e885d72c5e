"""Which jobs a report is of, in which order, with which columns; the index; tests over seeds and images."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from report_samples import INTERVALS, accuracies, interval, summary, write
from scipy import stats

from rift.report import results
from rift.report.__main__ import main
from rift.report.index import age_text
from rift.report.results import Job
from rift.report.settings import telling_texts
from rift.report.significance import pooled, significance_frame
from rift.report.study import jobs_frame
from rift.report.tables import latex_table


@pytest.fixture
def jobs(tmp_path):
    """Two networks, two seeds each; the second gains less and was fine-tuned at another rate."""
    root = tmp_path / "jobs"
    for model, gain, lr in (("resnet18", 0.03, 0.01), ("resnet34", 0.01, 0.001)):
        for seed in (0, 1):
            write(
                root / "default", f"{model}-s{seed}", model=model, name=f"{model}-s{seed}", seed=seed,
                at=accuracies(0.8, 0.5, 0.49), rift=accuracies(0.8 + gain, 0.5, 0.49), sweep=None, mrc=None,
                options={"stage.finetune.lr": lr},
            )  # fmt: skip
    return root


def table(capsys, *arguments):
    """What the command prints as CSV, as a frame."""
    assert main([*arguments, "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return pd.DataFrame([line.split(",") for line in lines[1:]], columns=lines[0].split(","))


@pytest.mark.parametrize(
    ("where", "models"),
    [
        (["model=resnet34"], ["resnet34"]),
        (["model=resnet18,resnet34", "seed=1"], ["resnet18", "resnet34"]),
        (["target=least_critical"], ["resnet18", "resnet34"]),
        (["finetune.lr=0.01"], ["resnet18"]),
        (["stage.finetune.lr=0.001"], ["resnet34"]),
    ],
)
def test_where_keeps_the_jobs_that_fulfil_every_condition(jobs, capsys, where, models):
    found = table(capsys, str(jobs), "--columns", "model,n", "--where", *where)
    assert list(found["model"]) == models
    assert set(found["n"]) == {"1" if "seed=1" in where else "2"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--where", "modl=resnet18"], "did you mean 'model'?"),
        (["--where", "finetune.rl=1"], "did you mean 'finetune.lr'?"),
        (["--where", "model=resnet35"], "did you mean 'resnet34'?"),
        (["--where", "resnet18"], "takes name=value"),
        (["--sort", "clean_dleta"], "did you mean 'clean_delta'?"),
        (["--columns", "model,clean_dleta"], "did you mean 'clean_delta'?"),
    ],
)
def test_a_name_that_does_not_exist_gets_the_nearest(jobs, capsys, arguments, sentence):
    assert main([str(jobs), "--format", "md", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_sort_orders_rows_by_their_mean_and_columns_are_chosen(jobs, capsys):
    found = table(capsys, str(jobs), "--sort", "clean_delta", "--columns", "clean_delta,model")
    assert list(found) == ["clean_delta_mean", "clean_delta_std", "model"]
    assert list(found["model"]) == ["resnet34", "resnet18"]
    found = table(capsys, str(jobs), "--sort", "clean_delta", "--reverse", "--columns", "clean_delta,model")
    assert list(found["model"]) == ["resnet18", "resnet34"]


def test_a_count_of_seeds_is_headed_seeds_and_n_names_it_in_every_form(jobs, capsys):
    for form, head in (("md", "seeds"), ("tex", "seeds"), ("csv", "n")):
        assert main([str(jobs), "--format", form, "--columns", "model,n"]) == 0
        lines = capsys.readouterr().out.splitlines()
        told = [re.split(r"[|&,]", line.removesuffix(r" \\")) for line in lines]
        rows = [[cell.strip() for cell in row if cell.strip()] for row in told]
        assert ["model", head] in rows and ["resnet34", "2"] in rows
    which = table(capsys, str(jobs), "--columns", "seeds")
    assert list(which["seeds"]) == ["0 1", "0 1"]  # and not how many
    assert main([str(jobs), "--significance", "--format", "md", "--columns", "n,p_seeds,p_images"]) == 0
    heads = capsys.readouterr().out.splitlines()[0]
    assert [cell.strip() for cell in heads.split("|")[1:-1]] == ["seeds", "p seeds", "p images"]


def test_list_has_every_job_with_state_age_and_hours(jobs, capsys):
    failed = jobs / "default" / "failed"
    failed.mkdir()
    about = {"seed": 3, "model": "resnet18", "study": "default"}
    state = {"state": "failed", "began": "2026-01-01T00:00:00+00:00", "reason": "disk full", "about": about}
    (failed / "state.json").write_text(json.dumps(state))
    found = table(capsys, str(jobs), "--list").set_index("job")
    assert len(found) == 5
    assert found.loc["failed", "state"] == "failed"
    assert found.loc["failed", "reason"] == "disk full"
    assert found.loc["resnet18-s0", "state"] == "done"
    assert float(found.loc["resnet18-s0", "device_hours"]) == round(13.2 / 3600, 4)
    assert main([str(jobs), "--list", "--where", "seed=3"]) == 0
    shown = capsys.readouterr().out
    assert "disk full" in shown
    assert "resnet18-s0" not in shown


def unfinished(root, name, *, reason=None, **about):
    """The folder of a job that failed, or has its process gone, before it had a summary."""
    folder = root / name
    folder.mkdir(parents=True)
    about = {"seed": 0, "model": "resnet18", "dataset": "cifar10", "method": "pgd_at", "study": "s"} | about
    state = {"state": "failed" if reason else "running", "began": "2026-01-01T00:00:00+00:00"}
    (folder / "state.json").write_text(json.dumps(state | {"reason": reason, "about": about}))
    return folder


def test_list_says_in_what_jobs_differ_that_are_called_the_same(tmp_path, capsys):
    def options(epsilon, **more):
        return {"attack.epsilon": epsilon, "selection_attack.epsilon": epsilon, "stage.at.epochs": 5} | more

    write(tmp_path / "s", "alone", model="resnet34", options=options("1/255", other=1))
    for seed in (0, 1):
        write(tmp_path / "s", f"usual{seed}", seed=seed, options=options("8/255"))
    unfinished(tmp_path / "s", "smaller", reason="disk full", options=options("4/255"))
    own = options("8/255", **{"stage.at.lr": 0.1})
    unfinished(tmp_path / "s", "stopped", options=own, protocol="holdout")
    unfinished(tmp_path / "s", "older")  # its state file knows no options
    found = table(capsys, str(tmp_path), "--list").set_index("job")
    assert dict(found["settings"]) == {
        "alone": "", "usual0": "", "usual1": "", "smaller": "attack.epsilon=4/255",
        "stopped": "protocol=holdout", "older": "",
    }  # fmt: skip
    assert main([str(tmp_path), "--list", "--format", "md"]) == 0
    assert "differs in" in capsys.readouterr().out.splitlines()[0]
    assert main([str(tmp_path), "--list", "--format", "md", "--where", "model=resnet34"]) == 0
    assert "differs in" not in capsys.readouterr().out


def test_two_jobs_both_say_in_what_they_differ():
    told = telling_texts(["a", "a", "b"], [{"x": 1, "stage.y": True}, {"x": 2, "stage.y": False}, {"x": 3}])
    assert told == ["x=1", "x=2", ""]  # y tells them apart no further
    digest = "0123456789abcdef" * 4
    assert telling_texts(["a", "a"], [{"f": digest}, {"f": None}]) == ["f=0123456789ab", "f=null"]


@pytest.mark.parametrize(
    "command",
    ["", "--html", "--list", "--format=csv", "table1 --format=csv", "table1 --html", "table1 --collect"],
)
def test_folders_are_walked_once_and_summaries_read_once(tmp_path, monkeypatch, command):
    for seed in (0, 1):
        write(tmp_path / "jobs" / "s", f"j{seed}", seed=seed, sweep=None, mrc=None)
    unfinished(tmp_path / "jobs" / "s", "failed", reason="disk full")
    walked, read = [], []
    walk, load = os.walk, results.read_summary
    monkeypatch.setattr(results.os, "walk", lambda path: walked.append(path) or walk(path))
    monkeypatch.setattr(results, "read_summary", lambda path: read.append(path.parent.name) or load(path))
    monkeypatch.chdir(tmp_path)
    main([*command.split()[:-1], "jobs", *command.split()[-1:]])
    assert (len(walked), sorted(read)) == (1, ["j0", "j1"])


def test_age_is_told_in_the_largest_unit():
    assert [age_text(s) for s in (0.2, 59, 60, 7200, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]


def test_aliases_of_the_formats(jobs, capsys):
    for alias, name in (("md", "markdown"), ("tex", "latex")):
        assert main([str(jobs), "--format", alias]) == 0
        short = capsys.readouterr().out
        assert main([str(jobs), "--format", name]) == 0
        assert short == capsys.readouterr().out


# -- tests over seeds and images ---------------------------------------------------------------------------


def test_over_seeds_it_is_the_paired_t_test():
    deltas = [0.02, 0.035, 0.01, 0.027]
    jobs = jobs_frame(
        Job(Path(f"j{i}"), summary(seed=i, rift=accuracies(0.81 + d, 0.53, 0.52)), 0.0)
        for i, d in enumerate(deltas)
    )
    row = significance_frame(jobs).set_index("metric").loc["clean"]
    values = [100 * delta for delta in deltas]
    assert row["n"] == 4
    assert row["p_seeds"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx(tuple(interval))
    assert (row["only_at"], row["only_rift"]) == (4 * 125, 4 * 400)


def test_two_seeds_are_judged_by_nothing():
    jobs = jobs_frame(Job(Path(f"j{i}"), summary(seed=i), 0.0) for i in range(2))
    row = significance_frame(jobs).set_index("metric").loc["clean"]
    assert pd.isna(row["p_seeds"])
    assert row["p_images"] < 1e-9


def test_pooled_images_are_one_mcnemar_test_and_say_when_seeds_disagree():
    same = pooled([{"only_at": 3, "only_rift": 9}, {"only_at": 1, "only_rift": 3}])
    assert same["p_images"] == pytest.approx(stats.binomtest(12, 16).pvalue)
    assert same["p_seeds_agree"] == pytest.approx(1.0)
    against = pooled([{"only_at": 0, "only_rift": 20}, {"only_at": 20, "only_rift": 0}])
    assert against["p_images"] == pytest.approx(1.0)
    assert against["p_seeds_agree"] < 1e-6
    assert pooled([{"only_at": 3, "only_rift": 9}, None]) == {}


# -- LaTeX -------------------------------------------------------------------------------------------------


def test_latex_has_groups_bold_and_a_real_minus():
    frame = pd.DataFrame([["[a_b-1", "-0.10 ± 0.20", "+2.00"]])
    frame.columns = pd.MultiIndex.from_tuples([("", "name"), ("clean", "AT"), ("clean", "Δ")])
    bold = pd.DataFrame([[False, False, True]], columns=frame.columns)
    lines = latex_table(frame, caption="c", label="l", bold=bold).splitlines()
    assert r" & \multicolumn{2}{c}{clean} \\" in lines
    assert r"\cmidrule(lr){2-3}" in lines
    assert r"name & AT & $\Delta$ \\" in lines
    assert r"{[}a\_b-1 & $-$0.10{\scriptsize\,$\pm$\,0.20} & \textbf{+2.00} \\" in lines


def test_latex_sets_in_bold_what_the_verdict_calls_better_and_has_the_papers_values_if_wanted(
    tmp_path, capsys
):
    worse = INTERVALS | {"robust": interval(-0.01, 0.003, "worse")}
    write(tmp_path, "job", intervals=worse)
    assert main([str(tmp_path), "--format", "tex"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith(r"\\")]
    assert re.search(r"81\.00 & \\textbf\{83\.75\} & \\textbf\{\+2\.75\}", rows[2])
    assert re.search(r"\\textbf\{53\.00\} & 53\.05 & ", rows[2])
    assert "81.46 & 83.44 & +1.98" in rows[3]
    assert main([str(tmp_path), "--format", "tex", "--no-paper"]) == 0
    assert "81.46" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (texlive-latex-recommended)")
def test_latex_compiles_and_fits_a_line(tmp_path, capsys):
    for seed in range(3):
        hostile = r"\input{/etc/passwd} $x^2_3$ ~%&#{"
        write(tmp_path / "jobs", f"j{seed}", seed=seed, intervals=INTERVALS, target=hostile)
        write(
            tmp_path / "jobs",
            f"k{seed}",
            seed=seed,
            dataset="cifar100",
            at=accuracies(0.6 + seed / 50, 0.3, 0.3),
        )
    text = ""
    for arguments in (
        [str(tmp_path / "jobs")],
        ["table1", str(tmp_path / "jobs")],
        [str(tmp_path / "jobs"), "--significance"],
    ):
        assert main([*arguments, "--format", "tex"]) == 0
        text += capsys.readouterr().out
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{text}\n\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert text.count(r"\begin{table}") == 3
