"""A hundred kills: the next attempt goes on, and the end is as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_jobs import restored_process, results_of, tiny_config

import rift
from rift.job import run_job

KILLS = 100
# One process imports everything once; its children are the jobs, and are killed.
PARENT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from tiny_jobs import tiny_config
import rift.job, rift.report

output, wanted, options = Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
draw, kills, stages, seed = random.Random(7), 0, {}, 0

def attempt(seed, seconds):
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = 1
        try:
            rift.job.run_job(tiny_config(*options, f"seed={seed}", output=output), {})
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None

while kills < wanted:
    patience = 0.3
    while True:
        status = attempt(seed, draw.uniform(0.02, patience))
        if status is not None:
            assert status == 0, status
            break
        kills += 1
        patience += 0.05  # so that a stage without a point inside is over some time
        for folder in output.glob("store/*/*/"):
            if not (folder / "manifest.json").exists():
                stages[folder.parent.name] = stages.get(folder.parent.name, 0) + 1
    seed += 1
print(json.dumps({"kills": kills, "seeds": seed, "stages": stages}))
"""
OPTIONS = ("stage.run=[at,mrc,gains,finetune,interpolate,evaluate]", "stage.mrc.exclude=['layer[1234].*']",
           "runtime.save_seconds=0.01")  # fmt: skip


def run(output: Path, kills: int) -> dict:
    root = Path(rift.__file__).parents[1]
    arguments = [str(root / "tests"), str(output), str(kills), json.dumps(OPTIONS)]
    done = subprocess.run(
        [sys.executable, "-c", PARENT, *arguments],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_hundred_kills_lose_and_corrupt_nothing(tmp_path):
    told = run(tmp_path / "killed", KILLS)
    print(told)
    assert told["kills"] >= KILLS
    assert {"at", "finetune", "interpolate"} <= told["stages"].keys(), "hit in the midst of these"
    whole = tmp_path / "whole"  # the same jobs, undisturbed
    for seed in range(told["seeds"]):
        with restored_process():
            run_job(tiny_config(*OPTIONS, f"seed={seed}", output=whole), {})
    assert results_of(tmp_path / "killed") == results_of(whole)
    names = [path.relative_to(whole) for path in whole.glob("store/*/*/*.safetensors")]
    assert len(names) > 5 * told["seeds"]
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes(), name
    litter = [
        path
        for pattern in ("resume*", ".*.partial", ".resume*")
        for path in (tmp_path / "killed" / "store").rglob(pattern)
    ]
    assert litter == []
