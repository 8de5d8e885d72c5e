"""Too little memory, too little disk, another machine, another version: said, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import pytest
import test_stages_at as at
import test_stages_mrc as mrc
import torch
from tiny_jobs import restored_process, stage_folder, tiny_config, tiny_session

import rift.attacks.evaluation
import rift.criticality
import rift.store
from rift.assembly import make_runtime, make_session
from rift.attacks import Attack
from rift.data import load_dataset
from rift.errors import UserError
from rift.job import run_job
from rift.pipeline import Pipeline
from rift.provenance import made_elsewhere, versions
from rift.room import needed_bytes
from rift.store import Store
from rift.tracking import Tracker

ATTACK = Attack("linf", epsilon=0.1, step_size=0.05, steps=2)


@pytest.fixture(autouse=True)
def process():
    with restored_process():
        yield


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=150, test_limit=80)


# -- memory ------------------------------------------------------------------------------------------


def out_of_memory_above(monkeypatch, images):
    real = rift.attacks.evaluation.pgd

    def small(network, x, *arguments):
        if len(x) > images:
            raise torch.OutOfMemoryError("out of memory")
        return real(network, x, *arguments)

    monkeypatch.setattr(rift.attacks.evaluation, "pgd", small)


def test_an_evaluation_goes_on_in_smaller_batches_with_the_same_verdicts(digits, monkeypatch):
    session = tiny_session(digits)
    network = session.new_network()
    whole = session.attacked(network, digits.test, ATTACK, runs=2)
    assert whole.clean.sum() > 4  # what is wrong anyway is not attacked
    out_of_memory_above(monkeypatch, 4)
    small = session.attacked(network, digits.test, ATTACK, runs=2)
    assert session.runtime.batch_size == 4
    assert torch.equal(whole.clean, small.clean) and torch.equal(whole.robust, small.robust)
    assert session.runtime.fallbacks == [
        f"out of memory: evaluated in batches of {n}" for n in (32, 16, 8, 4)
    ]


def test_no_room_for_a_single_image_is_one_sentence(digits, monkeypatch):
    session = tiny_session(digits)
    out_of_memory_above(monkeypatch, 0)
    monkeypatch.setattr(rift.attacks.evaluation, "correct", lambda net, split, *_: torch.ones(80) > 0)
    with pytest.raises(UserError, match="no room for a single image"):
        session.attacked(session.new_network(), digits.test, ATTACK, runs=1)


def test_training_says_which_batch_size_to_try(digits, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(at.training_stage, "pgd", full)
    with pytest.raises(UserError, match=r"stage\.at\.batch_size=128: try 64 "):
        at.train(tiny_session(digits), stage_folder(tmp_path), at.options_of("stage.at.batch_size=128"))


@pytest.mark.parametrize("solver", ["sgd", "projected"])
def test_the_scan_takes_its_batches_in_parts(digits, tmp_path, monkeypatch, solver):
    options = f"stage.mrc.solver={solver}", "stage.mrc.epochs=2", "stage.mrc.exclude=['layer*']"
    weights = tiny_session(digits).new_network().state_dict()
    expected = mrc.scan(tiny_session(digits), stage_folder(tmp_path / "whole"), weights, *options)
    search, sizes = mrc.stage.module_robust_criticality, []

    def limited(*arguments):
        sizes.append(arguments[7])
        if arguments[7] is None or arguments[7] > 8:  # batches have 30 images, the last one fewer
            raise torch.OutOfMemoryError("out of memory")
        return search(*arguments)

    monkeypatch.setattr(mrc.stage, "module_robust_criticality", limited)
    session = tiny_session(digits)
    found = mrc.scan(session, stage_folder(tmp_path / "parts"), weights, *options)
    assert sizes == [None, 15, 7, 7], "what is known to fit is kept for the next module"
    assert session.runtime.fallbacks == [
        f"out of memory: the scan's gradients are computed for {n} images at once" for n in (15, 7)
    ]
    for one, two in zip(expected["modules"], found["modules"], strict=True):
        assert two["mrc"] == pytest.approx(one["mrc"], rel=1e-4, abs=1e-6)


def test_the_scan_says_what_to_lower(digits, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("out of memory")

    session = tiny_session(digits)
    monkeypatch.setattr(mrc.stage, "module_robust_criticality", full)
    with pytest.raises(UserError, match=r"lower runtime\.cache_mib"):
        mrc.scan(session, stage_folder(tmp_path), session.new_network().state_dict())


# -- disk --------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_found_before_any_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 2**20))
    with pytest.raises(UserError, match=r"has 0\.00 GiB free, and this job needs about 0\.0[0-9]: make room"):
        run_job(tiny_config(output=tmp_path), {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_needed_grows_with_the_network_and_the_average():
    config, averaged = tiny_config(), tiny_config("stage.at.average=0.9")
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(1000, 1000)
    assert needed_bytes(large, config) > needed_bytes(small, config) > 0
    assert needed_bytes(large, averaged) - needed_bytes(large, config) == 4 * 1_001_000 * (1 + 3)


# -- another version, another machine, other options --------------------------------------------------


def run(output, *overrides):
    config = tiny_config(*overrides, output=output)
    pipeline = Pipeline(config, make_session(config, make_runtime(config)), Store(output / "store"))
    return pipeline, pipeline.run(Tracker())


def test_a_stage_whose_algorithm_changed_is_made_anew(tmp_path, monkeypatch):
    _, first = run(tmp_path, "stage.run=[at,mrc]")
    monkeypatch.setitem(rift.store.ALGORITHMS, "mrc", 2)
    _, second = run(tmp_path, "stage.run=[at,mrc]")
    assert first["at"].key == second["at"].key
    assert first["mrc"].key != second["mrc"].key
    assert second["mrc"].options["algorithm"] == 2


def test_results_of_another_torch_or_device_are_used_and_said(tmp_path, caplog):
    _, folders = run(tmp_path, "stage.run=[at]")
    path = folders["at"].path / "result.json"
    result = json.loads(path.read_text())
    result["versions"]["torch"], result["device"]["name"] = "2.10.0", "a GPU"
    path.write_text(json.dumps(result))
    manifest = folders["at"].path / "manifest.json"
    listed = json.loads(manifest.read_text())
    listed["files"]["result.json"] = rift.store.file_digest(path)
    manifest.write_text(json.dumps(listed))
    summary = run_job(tiny_config("stage.run=[at,mrc]", output=tmp_path), {})
    (note,) = [note for note in summary["notes"] if "results in use" in note]
    assert "torch 2.10.0 on a GPU" in note and versions()["torch"] in note


def test_the_same_machine_is_no_reason_for_a_note():
    now = {"versions": versions(), "device": {"name": "this"}}
    assert made_elsewhere(now, "this") is None
    assert "on that" in made_elsewhere(now | {"device": {"name": "that"}}, "this")
    assert made_elsewhere({}, "this") is None


def test_begun_with_other_options_it_begins_anew_and_says_so(tmp_path, caplog):
    config = tiny_config("stage.run=[at]", "stage.at.lr=0.07", output=tmp_path)
    session = make_session(config, make_runtime(config))
    pipeline = Pipeline(config, session, Store(tmp_path / "store"))
    pipeline.rehearse()
    folder = pipeline.folders["at"]
    with folder.locked():
        folder.begin()
        folder.save_resume_point({}, {})
        folder.settle()
    caplog.set_level("INFO", "rift")
    run(tmp_path, "stage.run=[at]")
    assert "begins anew" in caplog.text and "options.lr 0.07 → 0.05" in caplog.text
