"""A job that is given again: where nothing is left to do nothing is tracked anew, and else all is as ever."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from tiny_jobs import command, restored_process, tiny_config

import rift.job
from rift import sweep
from rift.errors import UserError
from rift.job import job_key, run_job
from rift.report import conclusion_in_brief
from rift.tracking import Tracker, earlier_run

LEFT = (".log", ".lock")  # what every job touches
RUN = ("stage.run=[at]", "stage.at.epochs=1", "logger.name=wandb")


@pytest.fixture(autouse=True)
def process(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with restored_process():
        yield


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The output of a job that was run once."""
    output = tmp_path_factory.mktemp("once")
    with restored_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rift.job, "open_tracker", begun_in)
        run_job(tiny_config(*RUN, output=output), {})
    return output


def begun_in(name, *, folder, key, **_):
    """A tracker that leaves what W&B leaves."""
    (folder / "wandb" / f"offline-run-20261126_163044-{key}").mkdir(parents=True, exist_ok=True)
    return Tracker()


@pytest.fixture
def left(once, monkeypatch):
    """That output, and the names of the trackers that begin from now on."""
    kept = once.parent / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(once, kept)
    began = []

    def opened(name, **options):
        began.append(name)
        return Tracker()

    monkeypatch.setattr(rift.job, "open_tracker", opened)
    yield once, began
    shutil.rmtree(once)
    kept.rename(once)


def folder_of(output):
    (folder,) = (output / "jobs" / "demo").iterdir()
    return folder


def test_in_one_run_the_table_is_as_ever_and_the_earlier_run_is_named(left, capsys, caplog):
    output, began = left
    with caplog.at_level(logging.INFO, "rift"):
        run_job(tiny_config(*RUN, output=output), {})
    printed = capsys.readouterr().out
    assert began == [] and "summary.json" in printed and "θ_AT (epoch" in printed
    assert f"W&B run: {folder_of(output)}/wandb/offline-run-20261126_163044-" in printed
    assert "nothing to do: all of it was done before" in caplog.text


def test_in_a_sweep_it_is_one_line(left, capsys, caplog):
    output, began = left
    folder = folder_of(output)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.suffix not in LEFT}
    with caplog.at_level(logging.INFO, "rift"):
        summary = run_job(tiny_config(*RUN, output=output), {}, (), None, True)
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing to do, done before: {folder}"  # nothing was compared
    ]
    assert began == [] and capsys.readouterr().out == ""
    assert summary == json.loads((folder / "summary.json").read_text())
    del before[folder / "state.json"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert json.loads((folder / "state.json").read_text())["state"] == "done"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CHANGES = {
    "another logger": lambda folder: change(folder / "config.json", logger={"name": "none"}),
    "a failed job": lambda folder: change(folder / "state.json", state="failed"),
    "a summary of another version": lambda folder: change(folder / "summary.json", format=1),
    "a damaged summary": lambda folder: (folder / "summary.json").write_text("{"),
    "no page": lambda folder: (folder / "report.md").unlink(),
    "no W&B run": lambda folder: shutil.rmtree(folder / "wandb"),
    "a stage to do": lambda folder: next(folder.parents[2].glob("store/at/*/manifest.json")).unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_with_something_to_do_it_is_tracked(left, capsys, what):
    output, began = left
    CHANGES[what](folder_of(output))
    run_job(tiny_config(*RUN, output=output), {}, (), None, True)
    assert began == ["wandb"] and "summary.json" in capsys.readouterr().out


def test_a_damaged_result_is_found_all_the_same(left):
    output, _ = left
    (weights,) = output.glob("store/at/*/best.safetensors")
    weights.write_bytes(b"")
    with pytest.raises(UserError, match=r"best\.safetensors is missing or damaged"):
        run_job(tiny_config(*RUN, output=output), {}, (), None, True)


def test_other_words_for_the_same_are_nothing_to_do(left, monkeypatch):
    output, began = left
    keys = []
    monkeypatch.setattr(rift.job, "job_key", lambda *given: keys.append(job_key(*given)) or keys[-1])
    run_job(tiny_config(*RUN, output=output), {"seed": "0"}, (), None, True)
    assert began == [] and len(keys) == 1  # the key takes a digest of all options, once


def test_the_last_run_of_a_job_is_found(tmp_path):
    for name in ("offline-run-20260101_000000-k", "run-20260102_000000-k", "run-20260103_000000-other"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert earlier_run(tmp_path, "k").name == "run-20260102_000000-k"
    assert earlier_run(tmp_path, "none") is None


def test_a_conclusion_in_brief():
    better = {"delta": 0.02, "low": 0.01, "high": 0.03, "images": 100, "verdict": "better"}
    assert conclusion_in_brief({"intervals": {"clean": better}}) == "RiFT is better in clean accuracy"
    assert conclusion_in_brief({}) == ""


def test_what_an_experiment_sweeps_is_not_the_user_s():
    overrides = ["experiment=x", "arm=frozen", "seed=1", "stage.finetune.lr=0.1", "stage.at.milestones=[1,2]"]
    params = {"arm": "moving,frozen", "seed": "0,2", "stage.at.milestones": "[1],[1,2]"}
    assert sweep.of_user(overrides, params) == ["experiment=x", "seed=1", "stage.finetune.lr=0.1"]
    assert sweep.of_user(overrides, {}) == overrides


@pytest.mark.parametrize(
    ("arguments", "level"),
    [(["experiment=demo"], "INFO"), (["experiment=demo", "attack.step_size=0.05"], "WARNING")],
)
def test_what_the_user_s_words_depart_from_is_a_warning(tmp_path, capsys, monkeypatch, arguments, level):
    def stop(pipeline):
        raise UserError("enough.")

    monkeypatch.setattr(rift.job, "announce_plan", stop)
    small = ["dataset.train_limit=50", "dataset.test_limit=50", "model.width=4", "logger=none"]
    assert command(*arguments, *small, f"output={tmp_path}") == 2
    said = capsys.readouterr().err
    warned = [line for line in said.splitlines() if "WARNING" in line]
    if level == "INFO":
        assert warned == [] and "set up to depart from protocol=official in 5 points; the report" in said
    else:
        (line,) = warned
        assert line.endswith("protocol=official is departed from: attack.step_size = 0.05 (2/225)")
        assert "set up to depart from protocol=official in 4 points" in said
