"""A run opens with its plan, `--check` shows it and writes nothing, and the clock changes no bit."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_jobs import TINY, command, restored_process, results_of, same_bits, tiny_config

import rift.job
from rift.assembly import make_runtime, make_session
from rift.checkpoint import save_tensors
from rift.errors import UserError
from rift.estimate import with_times
from rift.job import job_key, run_job
from rift.pipeline import Pipeline
from rift.plan import Step, busy, duration, make_plan, plan_lines
from rift.progress import set_up_logging
from rift.resume_point import RESUME, noted_rows
from rift.runtime import Runtime
from rift.store import Store

QUICK = ("logger=none", "stage.run=[at,mrc]")


@pytest.fixture(autouse=True)
def process():
    with restored_process():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a job of two stages."""
    output = tmp_path_factory.mktemp("finished")
    with restored_process():
        run_job(tiny_config(*QUICK, output=output), {})
    return output


def rehearsed(output, *overrides) -> Pipeline:
    config = tiny_config("logger=none", *overrides, output=output)
    pipeline = Pipeline(config, make_session(config, make_runtime(config)), Store(output / "store"))
    pipeline.rehearse()
    return pipeline


def contents(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# -- the plan -------------------------------------------------------------------------------------------


def test_what_is_reused_and_what_runs(finished):
    steps = {step.section: step for step in make_plan(rehearsed(finished))}
    assert [step.state for step in steps.values()] == ["reused"] * 2 + ["runs"] * 4
    assert steps["at"].size == "2 epochs × 200 images, pgd_at, 2 attack steps"
    assert steps["mrc"].size == "13 modules × 1 epoch × 60 images"
    (module,) = rehearsed(finished).folders["finetune"].options["modules"]
    assert steps["finetune"].size == f"2 epochs × 200 images: {module}"
    assert steps["interpolate"].size == "3 α × 1 attack run × 100 images"
    assert steps["evaluate_rift"].size == "2 attack runs × 100 images"


def test_before_the_scan_the_module_is_not_known(tmp_path):
    steps = {step.section: step for step in make_plan(rehearsed(tmp_path))}
    assert steps["finetune"].size == "2 epochs × 200 images: least_critical, known after the scan"


def test_an_interrupted_stage_says_where_it_goes_on(tmp_path):
    folder = rehearsed(tmp_path).folders["at"].path
    folder.mkdir(parents=True)
    save_tensors(folder / RESUME, {"a": torch.zeros(1)}, {"note": {}, "rows": [{"epoch": 1}], "sha256": ""})
    at, scan, *_ = make_plan(rehearsed(tmp_path))
    assert at.account == "resumes after epoch 1" and scan.account == "runs"
    (folder / RESUME).write_bytes(b"damaged")
    assert noted_rows(folder) is None and make_plan(rehearsed(tmp_path))[0].state == "runs"


def test_weights_that_are_given_are_not_trained(tmp_path):
    network = rehearsed(tmp_path).session.new_network()
    save_tensors(tmp_path / "weights.safetensors", network.state_dict())
    given = f"model.checkpoint={tmp_path}/weights.safetensors"
    assert make_plan(rehearsed(tmp_path, given, "stage.run=[mrc]"))[0].size == "the weights as they are"


def test_a_busy_machine_is_said(monkeypatch):
    machine = Runtime(torch.device("cpu"))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for load, threads, words in (
        (2.9, 2, None),
        (3.0, 2, "load 3.0 on 4 cores), so times are estimated too long; runtime.threads=1"),
        (9.0, 1, "load 9.0 on 4 cores), so times are estimated too long"),
    ):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        told = busy(machine)
        assert told is None if words is None else words in told
        assert words is None or ("threads=1" in told) == (threads > 1)


def test_plain_lines():
    steps = [
        Step("at", "reused", [], "2 epochs × 200 images"),
        Step("mrc", "resumes", [{"index": 0, "module": "conv1"}], "13 modules", 100.0),
        Step("finetune", "runs", [], "1 epoch"),
    ]
    assert plan_lines(steps) == [
        "at reused (2 epochs × 200 images)",
        "mrc resumes after module conv1 (13 modules), about 2 min",
        "finetune runs (1 epoch), not estimated",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (40, "40 s"), (100, "2 min"), (5000, "83 min"), (5400, "1.5 h"), (200_000, "2.3 days")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


# -- the clock ------------------------------------------------------------------------------------------


def test_the_clock_leaves_generators_and_session_alone(tmp_path):
    pipeline = rehearsed(tmp_path, "runtime.estimate=true")
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    runtime = replace(pipeline.session.runtime, fallbacks=list(pipeline.session.runtime.fallbacks))
    steps = with_times(make_plan(pipeline), pipeline)
    assert all(step.seconds > 0 for step in steps)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert pipeline.session.runtime == runtime
    assert list(tmp_path.iterdir()) == []


def test_twice_the_epochs_take_twice_as_long(tmp_path):
    """Of what was measured once: the reckoning, whatever the machine is busy with."""
    pipeline = rehearsed(tmp_path, "runtime.estimate=true")
    at = make_plan(pipeline)[0]
    clock = rift.estimate._Clock(pipeline)
    clock._attacked = lambda attack, precision: 0.5
    clock._image_in_training = lambda: 2.0
    assert clock._at(at) == 2 * 200 * 2.0 + 2 * 100 * 0.5
    assert clock._at(replace(at, rows=[{"epoch": 1}])) == 200 * 2.0 + 100 * 0.5
    interpolate = replace(at, section="interpolate", rows=[{"alpha": 0.0}])
    assert clock._interpolate(interpolate) == 2 * 100 * 1 * 0.5
    assert clock._evaluate(at) == 2 * 100 * 0.5


def test_a_network_that_is_too_slow_is_not_timed(tmp_path):
    pipeline = rehearsed(tmp_path, "runtime.estimate=true")
    clock = rift.estimate._Clock(pipeline)
    clock.__dict__["_forward"] = 10.0  # seconds of one image
    assert [clock.of(step) for step in make_plan(pipeline)] == [None] * 6


def test_results_and_keys_are_those_of_a_run_without_a_clock(finished, tmp_path):
    config = tiny_config(*QUICK, "runtime.estimate=true", output=tmp_path)
    without = tiny_config(*QUICK, output=tmp_path)
    assert job_key(config, make_runtime(config)) == job_key(without, make_runtime(without))
    set_up_logging()
    run_job(config, {})
    assert results_of(tmp_path) == results_of(finished)
    for path in finished.glob("store/*/*/*.safetensors"):
        twin = tmp_path / path.relative_to(finished)
        assert same_bits(load_file(path), load_file(twin)), path.name
    assert "plan: mrc runs (13 modules" in next(tmp_path.glob("jobs/*/*/job.log")).read_text()


# -- the check ------------------------------------------------------------------------------------------


def test_a_check_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    assert command("--check", *TINY, f"output={tmp_path}/out") == 0
    said = capsys.readouterr().out
    assert "13 modules × 1 epoch × 60 images" in said and "machine: cpu" in said
    assert "GiB needed" in said and "all is well, nothing was written" in said
    assert list(tmp_path.iterdir()) == []


def test_a_check_of_finished_stages_touches_none(finished, capsys):
    before = contents(finished)
    assert command(*TINY, "--check", f"output={finished}") == 0
    assert capsys.readouterr().out.count("reused") == 2
    assert contents(finished) == before


def test_a_check_says_what_is_wrong(tmp_path, capsys):
    assert command("--check", *TINY, f"output={tmp_path}/out", "stage.finetune.target=layer9") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("rift: error: stage.finetune.target=layer9 is no module")
    assert list(tmp_path.iterdir()) == []


def test_a_check_downloads_nothing(tmp_path, capsys):
    arguments = ("dataset=cifar10", "dataset.download=true", f"dataset.root={tmp_path}/data", "logger=none")
    assert command("--check", *arguments, f"output={tmp_path}/out") == 2
    assert "--check downloads nothing, so it ends here: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_check_of_a_sweep_has_a_row_for_each_job(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rift.job, "run_job", None)
    targets = "stage.finetune.target=least_critical,layer9"
    launcher = "hydra/launcher=gpus"  # a check needs none
    assert command("--check", "-m", *TINY, targets, launcher, f"output={tmp_path}/out") == 2
    said = capsys.readouterr()
    assert "fine: runs: at, mrc" in said.out and "failed:" in said.out and "#1" in said.out
    assert said.err.count("rift: error: job #1: stage.finetune.target=layer9 is no module") == 1
    assert list(tmp_path.iterdir()) == []
    assert command("-m", "--check", *TINY, "seed=0,1", f"output={tmp_path}/out") == 0


@pytest.mark.parametrize("flag", ["--cfg=job", "--info=all"])
def test_a_check_goes_with_no_other_answer(capsys, flag):
    code = command("--check", flag)
    said = capsys.readouterr()
    assert code == 2 and "--check" in said.err and "cannot go together" in said.err


def test_decoded_images_are_not_kept_by_a_check(tmp_path):
    from PIL import Image

    from rift.data.cache import decode_cached, nothing_kept

    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "a.png")
    parts, cache = {"train": [tmp_path / "a.png"]}, tmp_path / "cache"
    with nothing_kept():
        seen = decode_cached("one", tmp_path, parts, size=None, cache=cache)["train"]
    assert not cache.exists() and seen.flatten(2)[0, :, 0].tolist() == [9, 8, 7]
    kept = decode_cached("one", tmp_path, parts, size=None, cache=cache)["train"]
    assert torch.equal(kept, seen) and len(list(cache.glob("*.safetensors"))) == 1


def test_damaged_data_are_found_by_a_check(tmp_path):
    config = tiny_config("dataset=image_folder", f"dataset.root={tmp_path}/none", output=tmp_path)
    from rift.dry_run import check

    with pytest.raises(UserError, match="none"):
        check(config)
