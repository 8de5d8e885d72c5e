"""Every experiment of conf/experiment as a small sweep on digits, and its report by name."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
from tiny_jobs import command, results_of

from rift.report.__main__ import main as report
from rift.report.experiments import experiment_names

SMALL = (
    "-m",
    "smoke=true",
    "dataset=digits",
    "model=resnet_small",
    "model.width=8",
    "logger=none",
    "runtime.device=cpu",
    "runtime.threads=1",
    "stage.evaluate.measure=[pgd]",
    "dataset.train_limit=120",
    "dataset.test_limit=60",
)
# Swept on less than the whole: the backbones do not fit a CPU, and one seed shows the same code.
AXES = {
    "table1": ("seed=0,1,2",),
    "table2": ("method=trades,awp", "seed=0"),
    "table3": ("stage.finetune.target=all,random,least_critical", "seed=0"),
    "table4": ("seed=0",),
    "figure1": ("seed=0",),
    "figure3": ("seed=0,1",),
    "bn_ablation": ("seed=0",),
    "protocol_gap": ("seed=0",),
    "mrc_stability": ("arm=scan,scan_other_images,scan_projected", "seed=0", "stage.mrc.max_images=60"),
    "joint_mrc": ("stage.finetune.top_k=2", "stage.joint.size=2", "stage.joint.epochs=1", "seed=0"),
}
QUICK = ("figure3",)
JOBS = {"table1": 3, "table2": 2, "table3": 3, "table4": 4, "figure1": 4, "figure3": 2, "bn_ablation": 4,
        "protocol_gap": 3, "mrc_stability": 3, "joint_mrc": 2}  # fmt: skip
SLOW = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(AXES)]


def sweep(name, output) -> str:
    with redirect_stderr(StringIO()) as log, redirect_stdout(StringIO()):
        code = command(*SMALL, f"experiment={name}", *AXES[name], f"output={output}")
    assert code == 0, log.getvalue()
    return log.getvalue()


def test_none_is_forgotten():
    assert set(AXES) == set(JOBS) == set(experiment_names())


@pytest.mark.parametrize("name", SLOW)
def test_it_runs_its_table_is_whole_and_a_second_run_does_nothing(name, tmp_path, capsys):
    output = tmp_path / "out"
    sweep(name, output)
    jobs = str(output / "jobs")
    assert report([name, jobs, "--smoke", "--output", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr().out
    assert ("resnet_small" in shown and "smoke" in shown) or name in ("figure3", "mrc_stability")
    written = {path.suffix for path in (tmp_path / "report").iterdir()}
    assert written == {".txt", ".md", ".csv", ".tex", ".png", ".pdf"}
    assert report([name, jobs, "--smoke", "--collect"]) in (0, 1)  # axes are cut, so some are missing
    assert f"{JOBS[name]} of " in capsys.readouterr().out
    before = results_of(output)
    log = sweep(name, output)
    assert results_of(output) == before
    done = log.count("nothing to do, done before")
    assert done == len(list((output / "jobs").glob("*/*/"))) >= JOBS[name] and " at 1: " not in log
