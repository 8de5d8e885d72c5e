"""The jobs of a sweep as a SLURM job array, which go on where they were when they are preempted.

Submission, the job's environment and the requeueing are submitit's; what is ours is when it requeues, after
the step has been saved, and that the sweep outlives a job which SLURM ended.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as SubmititLauncher
from omegaconf import OmegaConf
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from rift import signals, sweep
from rift.errors import UserError
from rift.progress import set_up_logging

log = logging.getLogger(__name__)

LOOK_EVERY = 15.0  # seconds between two looks at the queue, which all users of a cluster ask
LATE = 30.0  # seconds that a result file may need to be seen on another machine
# What submitit sends before a job's time is over. NCCL uses SIGUSR1, so it is not that.
PREEMPTION = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
_OF_THE_EXECUTOR = ("submitit_folder", "max_num_timeout")  # the other options are the jobs'


class SlurmLauncher(SubmititLauncher):
    """Of `hydra/launcher=slurm`. In a job it is what is called; see `__call__`."""

    def __call__(self, *arguments: Any) -> JobReturn:
        """Runs one job, in the process that SLURM started for it.

        Told to stop, the job ends its step and saves. It is requeued if its time is nearly over or if it is
        being preempted. If it is cancelled, or requeued by SLURM already, it just ends.
        """
        requeue = signal.getsignal(PREEMPTION)  # submitit's: pickles the job, requeues it, exits
        signals.install([PREEMPTION], patient=True)
        try:
            return super().__call__(*arguments)
        except signals.Stopped as stop:
            if callable(requeue) and (stop.number == PREEMPTION or _is_being_preempted()):
                requeue(stop.number, None)
            sys.exit(stop.code)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the jobs as one array and waits for all of them.

        Raises:
            UserError: there is no SLURM here, or it refuses the jobs.
            Stopped: this process, not its jobs, was told to stop.
        """
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError(
                "hydra/launcher=slurm needs sbatch and srun, which this machine does not have: give the "
                "command on the cluster's login node, or leave hydra/launcher out."
            )
        set_up_logging()
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        jobs = self._submit(job_overrides, numbers)
        array = jobs[0].job_id.partition("_")[0]
        log.info("slurm: %d jobs submitted as %s; `squeue -j %s` shows them", len(jobs), array, array)
        log.info("slurm: their output: %s", jobs[0].paths.stdout.parent.parent)
        try:
            for number, job in _ended(dict(zip(numbers, jobs, strict=True))):
                if reason := _why_lost(job):
                    sweep.lost(number, reason)
        except KeyboardInterrupt:
            log.warning("slurm: the jobs stay in the queue; `scancel %s` takes them out", array)
            raise
        # How each one ended is in the sweep's table, and a failure here would hide those after it.
        return [JobReturn(status=JobStatus.COMPLETED) for _ in jobs]

    def _submit(
        self, job_overrides: Sequence[Sequence[str]], numbers: Sequence[int]
    ) -> list[submitit.Job[JobReturn]]:
        calls = [
            (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for number, overrides in zip(numbers, job_overrides, strict=True)
        ]
        generic = set(OmegaConf.structured(BaseQueueConf))
        own = {name: value for name, value in self.params.items() if name not in _OF_THE_EXECUTOR}
        executor = submitit.AutoExecutor(
            folder=self.params["submitit_folder"],
            cluster="slurm",
            slurm_max_num_timeout=self.params["max_num_timeout"],
        )
        Path(self.params["submitit_folder"]).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            executor.update_parameters(
                **{name if name in generic else f"slurm_{name}": value for name, value in own.items()}
            )
            return executor.map_array(self, *zip(*calls, strict=True))
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"SLURM refuses these jobs: {_said_by_sbatch(str(error))}.") from error


def _ended(
    waiting: dict[int, submitit.Job[JobReturn]],
) -> Iterator[tuple[int, submitit.Job[JobReturn]]]:
    """Each job with its number once it has ended: by its result, or because the queue has it no more.

    submitit would ask `sacct`, which knows nothing on a cluster without accounting.
    """
    looked, missing = time.monotonic(), dict[int, float]()
    while waiting:
        signals.check()
        done = [number for number, job in waiting.items() if _has_result(job)]
        if time.monotonic() - looked > LOOK_EVERY:
            looked, queued = time.monotonic(), _queued()
            for number, job in waiting.items():
                if queued is None or job.job_id in queued:
                    missing.pop(number, None)
                else:
                    missing.setdefault(number, looked)
        late = time.monotonic() - LATE
        done += [number for number, since in missing.items() if since < late and number not in done]
        for number in done:
            missing.pop(number, None)
            yield number, waiting.pop(number)
        time.sleep(0.5)


def _has_result(job: submitit.Job[JobReturn]) -> bool:
    folder = job.paths.folder
    with suppress(OSError):  # so that a network file system looks again
        folder.chmod(folder.stat().st_mode)
    return job.paths.result_pickle.exists()


def _why_lost(job: submitit.Job[JobReturn]) -> str | None:
    """Why a job that has ended left no result, or None if it did."""
    log_file = job.paths.stdout
    if not job.paths.result_pickle.exists():
        state = _shown_by_slurm(job.job_id).get("JobState", "not known any more")
        return f"ended by SLURM ({state}), see {log_file}"
    error = job.exception()
    if error is None:
        return None
    if isinstance(error, UncompletedJobError) and "timed-out too many times" in str(error):
        return (
            "out of time, give hydra.launcher.timeout_min or max_num_timeout more; the same command goes on"
        )
    return f"before its end, see {log_file}"


def _queued() -> set[str] | None:
    """Our jobs that wait, run or end, as `12_0`; None if SLURM does not answer."""
    asked = subprocess.run(
        ["squeue", "--me", "--array", "--noheader", "--format=%i %A_%a %A"],
        capture_output=True,
        text=True,
        check=False,
    )
    return set(asked.stdout.split()) if asked.returncode == 0 else None


def _shown_by_slurm(job_id: str) -> Mapping[str, str]:
    """What `scontrol show job` says, by name; nothing where SLURM does not answer or knows no such job."""
    asked = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job_id], capture_output=True, text=True, check=False
    )
    return dict(re.findall(r"(?:^|\s)(\w+)=(\S+)", asked.stdout)) if asked.returncode == 0 else {}


def _is_being_preempted() -> bool:
    """Whether SLURM has told this job to make room, and leaves it time to do so.

    It sends SIGTERM then, as it does to a job that is cancelled or requeued, but ends the job only later; a
    job that ends by itself before is not queued again.
    """
    shown = _shown_by_slurm(os.environ.get("SLURM_JOB_ID", ""))
    return shown.get("JobState") == "RUNNING" and shown.get("PreemptTime", "None") not in ("None", "Unknown")


def _said_by_sbatch(text: str) -> str:
    lines = re.findall(r"sbatch: (?:error: )?(.+)", text)
    return "; ".join(lines) if lines else text.strip().splitlines()[-1]
