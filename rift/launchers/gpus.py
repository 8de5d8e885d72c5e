"""The jobs of a sweep on the GPUs of this machine, each in a process of its own that sees one GPU.

The pool of Hydra's joblib launcher keeps its processes from job to job, and with them CUDA's choice of the
GPU; and it gives up all jobs if one of them is killed. So each job has a fresh process here.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from rift import signals, sweep
from rift.errors import UserError
from rift.launchers.devices import VARIABLE, claimed, devices_here, lock_folder
from rift.progress import set_up_logging

log = logging.getLogger(__name__)

PATIENCE = signals.GRACE + 2  # seconds that jobs have to save their step


class GpusLauncher(Launcher):
    """Of `hydra/launcher=gpus`.

    Args:
        devices: GPUs, as nvidia-smi counts them or by UUID; None for those that this process sees.
        jobs_per_device: how many run at a time on each.
    """

    def __init__(self, devices: Any = None, jobs_per_device: Any = 1) -> None:
        self.devices, self.jobs_per_device = devices, jobs_per_device

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what every job needs; called by Hydra."""
        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs, as many at a time as there are places on GPUs.

        Raises:
            UserError: no GPU, or one that is named twice.
            Stopped: this process was told to stop; so were its jobs, which have saved their step.
        """
        devices, per_device = _checked_devices(self.devices), _checked_places(self.jobs_per_device)
        folder = lock_folder()
        set_up_logging()
        places = len(devices) * per_device
        log.info("gpus: %d jobs, %d at a time, on %s", len(job_overrides), places, ", ".join(devices))
        jobs = [
            _Job(initial_job_idx + index, list(overrides), self)
            for index, overrides in enumerate(job_overrides)
        ]
        _run_all(jobs, places, (devices, per_device, folder))
        # How each one ended is in the sweep's table, and a failure here would hide those after it.
        return [JobReturn(status=JobStatus.COMPLETED) for _ in jobs]


@dataclass
class _Job:
    number: int
    overrides: list[str]
    launcher: GpusLauncher

    def run(self) -> None:
        """As Hydra's own launchers do it, but for their pickle of all that Hydra knows: it is found anew."""
        of = self.launcher
        setup_globals()
        Plugins.instance()
        JobRuntime.instance().set("name", of.config.hydra.job.name)
        config = of.hydra_context.config_loader.load_sweep_config(of.config, self.overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(self.number), self.number
        HydraConfig.instance().set_config(config)
        run_job(
            task_function=of.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=of.hydra_context,
        )


def _checked_devices(given: Any) -> list[str]:
    devices = devices_here() if given is None else [str(name) for name in _listed(given)]
    if not devices:
        raise UserError(
            "hydra/launcher=gpus finds no GPU on this machine: name them, hydra.launcher.devices=[0,1], or "
            "leave hydra/launcher out."
        )
    if len(set(devices)) < len(devices):
        raise UserError(
            f"hydra.launcher.devices=[{','.join(devices)}] names one twice: for several jobs on each say "
            "hydra.launcher.jobs_per_device=2."
        )
    return devices


def _listed(given: Any) -> list[Any]:
    return [given] if isinstance(given, str | int) else list(given)


def _checked_places(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise UserError(f"hydra.launcher.jobs_per_device={given} is no number of jobs: give 1 or more.")
    return given


def _run_all(jobs: Sequence[_Job], at_a_time: int, pool: tuple[list[str], int, Path]) -> None:
    context = multiprocessing.get_context("spawn")  # fresh: nothing of CUDA, nothing of ours
    left, running = list(jobs), dict[int, BaseProcess]()
    try:
        while left or running:
            while left and len(running) < at_a_time:
                job = left.pop(0)
                process = context.Process(target=_in_job, args=(job, *pool))
                process.start()
                running[job.number] = process
            wait([process.sentinel for process in running.values()], timeout=0.5)
            signals.check()
            _reap(running)
    except BaseException:
        _stop(running)
        raise


def _reap(running: dict[int, BaseProcess]) -> None:
    for number, process in list(running.items()):
        if process.is_alive():
            continue
        process.join()
        del running[number]
        if process.exitcode is not None and process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            sweep.lost(number, f"its process was ended from outside ({name}); the same command goes on")


def _stop(running: dict[int, BaseProcess]) -> None:
    """Tells the jobs to save their step, and waits until they have."""
    until = time.monotonic() + PATIENCE
    for process in running.values():
        process.terminate()
    for process in running.values():
        with suppress(signals.Stopped):  # our own time is over: the jobs' is too
            process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()


def _in_job(job: _Job, devices: list[str], per_device: int, folder: Path) -> None:
    """The whole life of a job's process."""
    signals.install(patient=True)
    told = False

    def tell() -> None:
        nonlocal told
        signals.check()
        if not told:
            print(
                f"rift: job #{job.number} waits for a GPU: others have {', '.join(devices)}", file=sys.stderr
            )
        told = True

    try:
        with claimed(devices, per_device, folder, tell) as device:
            # Before torch is imported. nvidia-smi counts GPUs by their place on the bus, CUDA otherwise.
            os.environ[VARIABLE] = device
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            print(f"rift: job #{job.number} has GPU {device}", file=sys.stderr, flush=True)
            job.run()
    except signals.Stopped as stop:
        sys.exit(stop.code)
