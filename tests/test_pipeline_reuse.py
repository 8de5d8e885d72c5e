"""What decides a result and what does not: which stages a job shares with others."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch
from tiny_jobs import restored_process, results_of, same_bits, tiny_config

import rift.measurements
import rift.pipeline
from rift.assembly import make_runtime, make_session
from rift.checkpoint import save_tensors
from rift.errors import UserError
from rift.job import job_key, run_job
from rift.pipeline import Pipeline
from rift.progress import set_up_logging
from rift.store import StageFolder, Store
from rift.tracking import Tracker

STAGES = ("adversarial_training", "mrc_scan", "fine_tuning", "interpolation", "evaluation")
ALL = ("at", "mrc", "finetune", "interpolate", "evaluate_at", "evaluate_rift")


class Rows(Tracker):
    """Remembers what it is told."""

    def __init__(self):
        self.told = []

    def row(self, section, row):
        self.told.append((section, dict(row)))


@pytest.fixture(autouse=True, scope="module")
def theta_star_is_theta_ft():
    """At α* = 0 the two networks would be one, and be evaluated once."""
    with pytest.MonkeyPatch.context() as patch:
        stage = import_module("rift.stages.interpolation")  # the package has a function of that name
        patch.setattr(stage, "best_alpha", lambda points, tolerance: points[-1])
        yield


@pytest.fixture(autouse=True)
def process():
    with restored_process():
        yield


def run(output, *overrides, tracker=None) -> dict[str, StageFolder]:
    """The finished folders of a tiny job, by section."""
    config = tiny_config(*overrides, output=output)
    session = make_session(config, make_runtime(config))
    return Pipeline(config, session, Store(output / "store")).run(tracker or Tracker())


def watch(patch) -> list[str]:
    """The stages that do work from now on, in order; reused ones are not in it."""
    calls = []

    def watched(name, real):
        def call(*args, **kwargs):
            calls.append(name)
            return real(*args, **kwargs)

        return call

    for name in STAGES:
        module = rift.measurements if name == "evaluation" else rift.pipeline
        patch.setattr(module, name, watched(name, getattr(module, name)))
    return calls


@pytest.fixture
def worked(monkeypatch):
    return watch(monkeypatch)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A tiny job: (output folder, stage folders, the stages that did work)."""
    output = tmp_path_factory.mktemp("finished")
    with restored_process(), pytest.MonkeyPatch.context() as patch:
        calls = watch(patch)
        return output, run(output), calls


@pytest.fixture(scope="module")
def finished(first_run):
    """The finished job: (output folder, stage folders). Tests may add to it, not change it."""
    return first_run[:2]


def test_everything_runs_once_and_in_order(first_run):
    _, folders, calls = first_run
    assert calls == [*STAGES, "evaluation"]
    assert set(folders) == set(ALL)
    assert all(folder.finished for folder in folders.values())


def test_the_same_command_again_does_nothing(finished, worked):
    output, first = finished
    times = {path: path.stat().st_mtime_ns for path in output.rglob("store/*/*/*")}
    tracker = Rows()
    second = run(output, tracker=tracker)
    assert worked == []
    assert {name: folder.key for name, folder in second.items()} == {n: f.key for n, f in first.items()}
    assert {path: path.stat().st_mtime_ns for path in output.rglob("store/*/*/*")} == times
    # The sink of a new job hears all of it all the same.
    expected = [(name, row) for name, folder in first.items() for row in folder.rows()]
    assert tracker.told == expected and len(expected) > 20


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "stage.at.lr=0.04",
        "attack.epsilon=0.1",
        "attack@selection_attack=fgsm",
        "dataset.train_limit=180",
        "dataset.mean=[0.4]",
        "dataset.padding=2",
        "model.width=12",
        "method=trades",
        "stage.at.average=0.9",
        "runtime.selection_precision=bfloat16",
    ],
)
def test_what_training_depends_on_trains_again(finished, worked, override):
    output, first = finished
    second = run(output, override, "stage=at")
    assert worked == ["adversarial_training"]
    assert second["at"].key != first["at"].key


@pytest.mark.parametrize(
    ("override", "start", "expected"),
    [
        ("stage.mrc.epsilon_w=0.2", 1, ["mrc_scan"]),  # and what follows, if another module comes out
        ("stage.finetune.lr=0.02", 2, ["fine_tuning", "interpolation", "evaluation"]),
        ("stage.interpolate.points=2", 3, ["interpolation", "evaluation"]),
        ("stage.evaluate.restarts=1", 4, ["evaluation", "evaluation"]),
        ("attack@evaluation_attack=pgd20", 4, ["evaluation", "evaluation"]),
        ("runtime.evaluation_precision=bfloat16", 4, ["evaluation", "evaluation"]),
    ],
)
def test_an_option_reruns_its_stage_and_what_follows(finished, worked, override, start, expected):
    output, first = finished
    second = run(output, override)
    assert worked[: len(expected)] == expected
    changed = {name for name in ALL if second[name].key != first[name].key}
    assert changed and changed <= set(ALL[start:])


@pytest.mark.parametrize(
    "override",
    [
        "logger.project=elsewhere",
        "study=other",
        "dataset.root=/elsewhere",
        "runtime.batch_size=64",
        "runtime.cache_mib=0",
        "runtime.threads=1",
        "stage.finetune.top_k=5",
        "runtime=deterministic",
    ],
)
def test_where_and_how_it_runs_changes_no_key(finished, worked, override):
    output, first = finished
    second = run(output, override)
    assert worked == []
    assert {name: folder.key for name, folder in second.items()} == {n: f.key for n, f in first.items()}


def test_a_target_by_another_name_is_the_same_result(finished, worked):
    """The modules decide, not how they were chosen."""
    output, first = finished
    (module,) = first["finetune"].result()["modules"]
    assert first["mrc"].result()["ranking"][0] == module
    for target in (module, "top_k"):
        folders = run(output, f"stage.finetune.target={target}", "stage.finetune.top_k=1")
        assert folders["finetune"].key == first["finetune"].key
    assert worked == []


def test_an_evaluation_is_of_weights_whatever_they_are_called(finished):
    """θ_AT is evaluated once for all fine-tunings."""
    output, first = finished
    second = run(output, "stage.finetune.lr=0.03")
    assert second["evaluate_at"].path == first["evaluate_at"].path
    assert second["evaluate_rift"].path != first["evaluate_rift"].path


# -- one stage at a time --------------------------------------------------------------------------------


def test_stages_run_one_by_one_are_the_whole(finished, tmp_path, worked):
    last = None
    for stage in ("at", "mrc", "finetune", "interpolate", "evaluate"):
        last = run(tmp_path, f"stage={stage}")
    assert worked == [*STAGES, "evaluation"]
    assert set(last) == set(ALL)
    assert results_of(tmp_path) == {
        name: result
        for name, result in results_of(finished[0]).items()
        if name.rpartition("-")[2] in {folder.key for folder in last.values()}
    }


@pytest.mark.parametrize(
    ("stages", "missing", "remedy"),
    [
        (["mrc"], "at", "stage=at"),
        (["finetune"], "at", "model.checkpoint=PATH"),
        (["evaluate"], "at", "stage=at"),
        (["at", "finetune"], "mrc", "stage=mrc"),
        (["at", "interpolate"], "mrc", "stage=mrc"),
        (["at", "mrc", "interpolate"], "finetune", "stage=finetune"),
    ],
)
def test_a_missing_input_is_named_with_what_makes_it(tmp_path, stages, missing, remedy):
    with pytest.raises(UserError, match=f"no finished '{missing}' result") as error:
        run(tmp_path, f"stage.run={stages}", "stage.at.epochs=1")
    assert remedy in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("target", ["all", "conv1"])
def test_targets_that_need_no_ranking_need_no_scan(tmp_path, worked, target):
    stages = "stage.run=[at,finetune,interpolate,evaluate]"
    folders = run(tmp_path, stages, "stage.at.epochs=1", f"stage.finetune.target={target}")
    assert "mrc" not in folders and "mrc_scan" not in worked
    assert folders["evaluate_rift"].finished


def test_evaluation_without_fine_tuning_is_of_theta_at_alone(tmp_path):
    folders = run(tmp_path, "stage.run=[at,evaluate]", "stage.at.epochs=1")
    assert set(folders) == {"at", "evaluate_at"}


def test_a_damaged_input_is_refused_not_used(tmp_path):
    folders = run(tmp_path, "stage=at")
    path = folders["at"].path / "best.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.safetensors is missing or damaged"):
        run(tmp_path, "stage=mrc")


def test_an_interrupted_stage_is_begun_again_or_gone_on_with(tmp_path, worked):
    """A folder without the completion mark is unfinished, whatever lies in it."""
    first = run(tmp_path, "stage=at")["at"]
    weights = first.load("best")
    (first.path / "manifest.json").unlink()
    second = run(tmp_path, "stage=at")["at"]
    assert worked == ["adversarial_training"] * 2
    assert second.finished and same_bits(second.load("best"), weights)


# -- weights from elsewhere ---------------------------------------------------------------------------


@pytest.fixture
def checkpoint(finished, tmp_path):
    """Somebody's file: θ_AT of the finished job, under other names."""
    state = finished[1]["at"].load("best")
    path = tmp_path / "theirs.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 7}, path)
    return path, state


def test_a_checkpoint_is_theta_at_where_nothing_is_trained(checkpoint, finished, tmp_path, worked):
    path, state = checkpoint
    folders = run(tmp_path, "stage=from_checkpoint", f"model.checkpoint={path}")
    assert set(folders) == set(ALL)
    for name in ("best", "last"):
        assert same_bits(folders["at"].load(name), state)
    # The same weights, so the same numbers as in the job that trained them.
    theirs, ours = folders["evaluate_at"].result(), finished[1]["evaluate_at"].result()
    for name in ("clean_accuracy", "robust_accuracy", "robust_accuracy_per_image"):
        assert theirs[name] == ours[name]
    assert folders["mrc"].result()["ranking"] == finished[1]["mrc"].result()["ranking"]
    again = list(worked)
    run(tmp_path, "stage=mrc", f"model.checkpoint={path}")
    assert worked == again


def test_which_normalisation_imported_weights_get_is_said(checkpoint, tmp_path, capsys):
    path, _ = checkpoint
    config = tiny_config("stage=at", "stage.at.epochs=0", f"model.checkpoint={path}", output=tmp_path)
    summary = run_job(config, {})
    assert any(note.startswith("Normalises with mean [0.3") for note in summary["notes"])


def test_the_content_of_a_checkpoint_decides_not_its_place(checkpoint, tmp_path):
    path, state = checkpoint
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes(path.read_bytes())
    other = tmp_path / "other.safetensors"
    save_tensors(other, state | {"fc.bias": state["fc.bias"] + 1})
    keys = [
        run(tmp_path, "stage=at", "stage.at.epochs=0", f"model.checkpoint={file}")["at"].key
        for file in (path, moved, other)
    ]
    assert keys[0] == keys[1] != keys[2]


# -- the job --------------------------------------------------------------------------------------------


def key_of(config):
    return job_key(config, make_runtime(config))


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("logger=wandb", True),
        ("study=other", True),
        ("output=/elsewhere", True),
        ("dataset.root=/elsewhere", True),
        ("dataset.cache=/elsewhere", True),
        ("runtime.threads=1", True),
        ("runtime.device=auto", True),
        ("seed=1", False),
        ("stage=at", False),
        ("stage.finetune.lr=0.02", False),
        ("protocol=paper", False),
        ("runtime.precision=bfloat16", False),
        ("runtime.precision=float32", True),  # what auto is on a CPU
        ("runtime.evaluation_precision=bfloat16", False),
        ("runtime.selection_precision=bfloat16", False),
        ("runtime.selection_precision=float32", True),
        ("runtime.save_seconds=0", True),
        ("runtime.strict=true", True),
        ("method=trades", False),
        ("runtime.tf32=true", False),
        ("model.width=12", False),
    ],
)
def test_a_job_s_key_is_of_what_decides_its_result(override, same):
    assert (key_of(tiny_config(override)) == key_of(tiny_config())) is same


def test_the_job_s_folder_says_what_was_run_and_what_came_out(finished, capsys):
    output, folders = finished
    config = tiny_config(output=output)
    set_up_logging()
    summary = run_job(config, {"stage.finetune.lr": "0.05"})
    again = run_job(config, {"stage.finetune.lr": "0.05"})
    assert {**again, "provenance": None} == {**summary, "provenance": None}
    summary = again
    (job,) = (output / "jobs" / "demo").iterdir()
    assert job.name == f"resnet_small_w8-digits-pgd_at-s0-{key_of(config)}"
    assert json.loads((job / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert json.loads((job / "config.json").read_text())["attack"]["epsilon"] == "0.15"
    for which in ("at", "rift"):
        result = folders[f"evaluate_{which}"].result()
        assert summary[which]["robust_accuracy"] == result["robust_accuracy"]
        assert summary[which]["num_images"] == 100
    assert summary["alpha"] == folders["interpolate"].result()["alpha"]
    assert [row["module"] for row in summary["mrc"] if row["rank"] == 1] == summary["target_modules"]
    assert summary["overrides"] == {"stage.finetune.lr": "0.05"}
    assert "selected on the test set" in summary["notes"][0]
    printed = capsys.readouterr().out
    for name in ("summary.json", "mrc.png", "alpha.png"):
        assert name in printed
    for name in ("report.md", "figures/mrc.png", "figures/alpha.png"):
        assert (job / name).stat().st_size > 0
    assert (job / "job.log").read_text().count(" at: reused") == 2
