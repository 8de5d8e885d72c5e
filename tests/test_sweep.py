"""A sweep as a whole: one failure stops nothing, and how every job ended is said."""

from __future__ import annotations

import json
import subprocess

import pytest
from tiny_jobs import TINY, command, subprocess_arguments

import rift.job
from rift import sweep
from rift.errors import JobFailed, UserError

SWEEP = ("-m", *TINY, "stage=at", "stage.at.epochs=1")


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A sweep's folder with three planned jobs."""
    jobs = [["model=resnet18", f"seed={seed}"] for seed in (0, 1, 2)]
    (tmp_path / "plan.json").write_text(json.dumps(jobs))
    monkeypatch.setenv(sweep.VARIABLE, str(tmp_path))
    return jobs


def test_one_mistake_leaves_the_other_jobs_alone(tmp_path, capsys):
    assert command(*SWEEP, "stage.at.select=best,middle,last", f"output={tmp_path}") == 1
    captured = capsys.readouterr()
    assert len(list(tmp_path.glob("jobs/demo/*/summary.json"))) == 2
    assert "rift: error: job #1: stage.at.select=middle is not known" in captured.err
    assert "Traceback" not in captured.err
    table = captured.out[captured.out.index("Jobs of this sweep") :]
    for line in ("#0 stage.at.select=best", "#1 stage.at.select=middle", "#2 stage.at.select=last"):
        assert line in table
    assert table.count("done") == 2 and "failed: stage.at.select=middle" in table
    assert {path.name for path in (tmp_path / "hydra").iterdir()} == {"multirun.yaml"}, "litter"


def test_neither_does_a_bug_which_keeps_its_traceback(tmp_path, capsys, monkeypatch):
    real = rift.job.run_job

    def failing(config, *rest):
        if config.seed == 0:
            raise ZeroDivisionError("a bug")
        return real(config, *rest)

    monkeypatch.setattr(rift.job, "run_job", failing)
    assert command(*SWEEP, "seed=0,1", f"output={tmp_path}") == 1
    captured = capsys.readouterr()
    assert "Traceback" in captured.err and "ZeroDivisionError: a bug" in captured.err
    assert "failed: ZeroDivisionError: a bug" in captured.out
    assert len(list(tmp_path.glob("jobs/demo/*/summary.json"))) == 1


def test_a_sweep_without_failures_ends_with_zero(tmp_path, capsys):
    assert command(*SWEEP, "seed=0,1", f"output={tmp_path}") == 0
    assert capsys.readouterr().out.count("done") == 2


def test_stopped_by_hand_it_says_what_was_not_run(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rift.job, "run_job", interrupted)
    assert command(*SWEEP, "seed=0,1", f"output={tmp_path}") == 130
    captured = capsys.readouterr()
    assert "stopped: before its end" in captured.out and "not run" in captured.out
    assert captured.err.rstrip().endswith("stopped; the same command goes on from here")


@pytest.mark.slow
def test_side_by_side_the_others_finish_too(tmp_path):
    """joblib gives up all jobs at work when one of them raises."""
    arguments = (
        *SWEEP,
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "stage.at.select=middle,best,last",
    )
    options = subprocess_arguments(*arguments, f"output={tmp_path}")
    done = subprocess.run(**options, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert len(list(tmp_path.glob("jobs/demo/*/summary.json"))) == 2
    assert "failed: stage.at.select=middle" in done.stdout and done.stdout.count(" done") == 2
    for name in ("best", "last"):  # each line says which job it is from
        assert f"[stage.at.select={name}] at: " in done.stderr


def test_what_sets_a_job_apart(plan):
    assert sweep.differing(plan[1]) == ["seed=1"]
    assert sweep.varied(plan[1]) == []  # the name has the seed already
    assert sweep.varied(["model=resnet18", "stage.finetune.lr=0.1"]) == ["finetune.lr=0.1"]


def test_a_sweeper_that_decides_as_it_goes_sees_the_failure(plan, tmp_path):
    with pytest.raises(JobFailed, match="no"), sweep.recorded(1, plan[1], carry_on=False):
        raise UserError("no")
    with sweep.recorded(2, plan[2], carry_on=True):
        raise UserError("no")
    notes = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (1, 2)]
    assert [(note["state"], note["reason"]) for note in notes] == [("failed", "no")] * 2


def test_names_tell_the_jobs_of_a_sweep_apart(tmp_path):
    assert command(*SWEEP, "stage.at.lr=0.05,0.02", f"output={tmp_path}") == 0
    names = sorted(path.name.rpartition("-")[0] for path in tmp_path.glob("jobs/demo/*"))
    assert names == [f"resnet_small_w8-digits-pgd_at-s0-at.lr={lr}" for lr in ("0.02", "0.05")]


def test_a_job_keeps_its_folder_whatever_sweep_it_is_in(tmp_path):
    single = [text for text in SWEEP if text != "-m"]
    assert command(*single, "stage.at.lr=0.05", f"output={tmp_path}") == 0
    assert command(*SWEEP, "stage.at.lr=0.05,0.02", f"output={tmp_path}") == 0
    assert len(list(tmp_path.glob("jobs/demo/*"))) == 2


@pytest.mark.parametrize(
    ("swept", "words"),
    [
        (["seed=range(0,1000000000)"], ["seed is a sweep of 1 000 000 000 jobs", "at most 10000"]),
        (
            ["seed=range(0,200)", "stage.at.epochs=shuffle(range(1,100))"],
            ["seed × stage.at.epochs", "19 800"],
        ),
        (["stage.at.lr=range(0.0,1.0,0.00001)"], ["stage.at.lr is a sweep of 100 000 jobs"]),
        (["stage.at.lr=range(0,1,0)"], ["stage.at.lr is a sweep without end"]),
        (["seed=range(5,0)"], ["seed stands for no value"]),
        (["experiment=table1", "study=" + ",".join(f"s{number}" for number in range(400))], ["10 800 jobs"]),
    ],
)
def test_a_sweep_too_large_is_refused_before_it_is_listed(tmp_path, capsys, swept, words):
    assert command("-m", *swept, "logger=none", f"output={tmp_path}/out") == 2
    said = capsys.readouterr()
    assert said.err.startswith("rift: error: ") and said.err.count("\n") == 1 and said.out == ""
    assert not [word for word in words if word not in said.err], said.err
    assert not (tmp_path / "out").exists()
