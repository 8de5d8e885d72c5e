"""Every module's own fine-tuning, and modules chosen by the MRC of their set, through the whole chain."""

from __future__ import annotations

import json

import pytest
from tiny_jobs import Killed, restored_process, results_of, tiny_config

import rift.pipeline
from rift.assembly import make_runtime, make_session
from rift.errors import UserError
from rift.job import run_job
from rift.pipeline import Pipeline
from rift.stage_options import CHAIN
from rift.store import Store
from rift.tracking import Tracker

GAINS = ("stage.run=[at,mrc,gains]", "stage.mrc.exclude=['layer[234].*']")  # four modules are left
JOINT = ("stage.run=[at,mrc,joint,finetune,interpolate,evaluate]", "stage.joint.epochs=1")


@pytest.fixture(autouse=True)
def process():
    with restored_process():
        yield


def run(output, *overrides):
    config = tiny_config(*overrides, output=output)
    session = make_session(config, make_runtime(config))
    return Pipeline(config, session, Store(output / "store")).run(Tracker())


@pytest.fixture(scope="module")
def gained(tmp_path_factory):
    output = tmp_path_factory.mktemp("gains")
    with restored_process():
        return output, run(output, *GAINS)


def test_every_scanned_module_is_tuned_and_its_row_is_what_its_own_job_has(gained):
    output, folders = gained
    rows = folders["gains"].result()["modules"]
    scanned = folders["mrc"].result()["modules"]
    assert [row["module"] for row in rows] == [row["module"] for row in scanned]
    assert [(row["mrc"], row["rank"]) for row in rows] == [(row["mrc"], row["rank"]) for row in scanned]
    own = run(output, f"stage.finetune.target={rows[1]['module']}", GAINS[1])
    before, after = (own[f"evaluate_{which}"].result() for which in ("at", "rift"))
    assert rows[1]["alpha"] == own["interpolate"].result()["alpha"]
    for name in ("clean", "robust"):
        assert rows[1][f"delta_{name}"] == after[f"{name}_accuracy"] - before[f"{name}_accuracy"]
        sweep = own["interpolate"].result()["sweep"]
        change = sweep[-1][f"{name}_accuracy"] - sweep[0][f"{name}_accuracy"]
        assert rows[1][f"end_delta_{name}"] == change


def test_they_share_their_results_with_a_job_that_tunes_the_module(gained, monkeypatch):
    output, folders = gained
    called = []
    monkeypatch.setattr(rift.pipeline, "fine_tuning", lambda *args: called.append(1))
    run(output, f"stage.finetune.target={folders['mrc'].result()['modules'][2]['module']}", GAINS[1])
    assert called == []


def test_killed_among_the_modules_it_goes_on_to_the_same_result(gained, tmp_path, monkeypatch):
    tune, calls = rift.pipeline.fine_tuning, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return tune(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(rift.pipeline, "fine_tuning", dying)
        run(tmp_path, *GAINS)
    folders = run(tmp_path, *GAINS)
    assert folders["gains"].resumed
    alone = results_of(tmp_path)
    whole = results_of(gained[0])
    assert alone and all(whole[name] == result for name, result in alone.items())


def test_the_summary_has_the_gains_and_the_sets(tmp_path):
    summary = run_job(tiny_config(*GAINS, output=tmp_path), {})
    assert len(summary["gains"]) == 4
    summary = run_job(
        tiny_config(*JOINT, "stage.finetune.target=joint_k", "stage.finetune.top_k=2", output=tmp_path), {}
    )
    assert [len(entry["modules"]) for entry in summary["joint"]["greedy"]] == [1, 2, 3]
    assert summary["target_modules"] == summary["joint"]["greedy"][1]["modules"]
    assert summary["target"] == "joint_k"
    json.dumps(summary, allow_nan=False)


def test_modules_by_their_joint_mrc_need_the_joint_scan(tmp_path):
    run(tmp_path, "stage.run=[at,mrc]")
    with pytest.raises(UserError, match=r"no finished 'joint' result .* stage=joint"):
        run(tmp_path, "stage.run=[finetune]", "stage.finetune.target=joint_k")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["stage.finetune.target=joint_k", "stage.finetune.top_k=4"], r"raise stage\.joint\.size=3"),
        (["stage.joint.size=1"], r"stage\.joint\.size"),
        (["stage.mrc.part=2", "stage.mrc.max_images=null"], r"give stage\.mrc\.max_images"),
        (["stage.mrc.part=-1"], r"stage\.mrc\.part"),
        (["stage.joint.solver=adam"], r"stage\.joint\.solver"),
    ],
)
def test_options_that_cannot_be_are_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny_config(*overrides)


def test_more_modules_in_a_set_than_are_scanned_is_refused_before_any_work(tmp_path):
    config = tiny_config("stage.run=[at,mrc,joint]", "stage.joint.size=14", output=tmp_path)
    with pytest.raises(UserError, match=r"stage\.joint\.size=14, but only 13 modules"):
        make_session(config, make_runtime(config))
    config = tiny_config("stage.run=[at,mrc]", "stage.mrc.part=9", output=tmp_path)
    with pytest.raises(UserError, match=r"stage\.mrc\.part=9 of 60 images"):
        make_session(config, make_runtime(config))
    assert not list(tmp_path.iterdir())


def test_neither_is_part_of_the_papers_chain():
    assert tiny_config().stage.run == list(CHAIN)


def test_with_a_checkpoint_the_gains_are_of_the_network_that_was_trained_from_it(gained, tmp_path):
    """Not of the checkpoint itself; and how fine-tuning augments is part of what decides them."""
    weights = next((gained[0] / "store" / "at").glob("*/last.safetensors"))
    options = (*GAINS[1:], f"model.checkpoint={weights}")
    trained = run(tmp_path, GAINS[0], *options)
    tunings = (tmp_path / "store" / "finetune").glob("*/options.json")
    (tuned,) = {json.loads(path.read_text())["at"] for path in tunings}
    assert tuned.startswith(trained["at"].key)
    given = run(tmp_path, "stage.run=[mrc,gains]", *options)
    flipped = run(tmp_path, "stage.run=[mrc,gains]", *options, "dataset.flip=true")
    assert given["at"].key == flipped["at"].key != trained["at"].key
    assert given["gains"].key != flipped["gains"].key
