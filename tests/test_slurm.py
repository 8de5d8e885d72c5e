"""Sweeps on a cluster: what the jobs do when they are told to stop, and a real SLURM of one node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1900)
def test_preempted_and_requeued_jobs_go_on_to_the_same_bits():
    done = subprocess.run(
        ["bash", "scripts/slurm_test.sh", sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("equal, bit for bit")
    assert done.stdout.count("Requeued job") == 2, "the job asks for it where SLURM does not"
    assert done.stdout.count("at: resumed, goes on after epoch") == 3
