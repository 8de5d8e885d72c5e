"""Jobs of a second or two on embedded digits, for the tests of stages, pipeline and command line."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import rift
from rift.conf_files import CONF
from rift.config import to_config
from rift.main import main, quoted
from rift.models import build_model
from rift.runtime import Runtime, seed_everything
from rift.stages import Session
from rift.store import Store

# Small enough that a stage takes a fraction of a second, and every mechanism is still used.
TINY = (
    "experiment=demo",
    "model.width=8",
    "dataset.train_limit=200",
    "dataset.test_limit=100",
    "logger=none",
    "runtime.device=cpu",
    "runtime.estimate=false",
    "stage.at.epochs=2",
    "stage.at.batch_size=64",
    "stage.at.milestones=[1]",
    "attack.steps=2",
    "attack.step_size=0.1",
    "stage.mrc.epochs=1",
    "stage.mrc.max_images=60",
    "stage.mrc.batch_size=30",
    "stage.finetune.epochs=2",
    "stage.finetune.milestones=[1]",
    "stage.interpolate.points=3",
    "stage.interpolate.restarts=1",
    "stage.evaluate.restarts=2",
    "stage.evaluate.measure=[pgd]",
)


VALUES = ("seed=", "study=", "output=")  # options at the top that are no groups


def composed(*overrides: str, hydra: bool = False):
    """What Hydra makes of a command line, unchecked."""
    return copy.deepcopy(_composed(overrides, hydra))


@cache
def _composed(overrides: tuple[str, ...], hydra: bool):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [quoted(text) for text in overrides], return_hydra_config=hydra)


def script(name: str):
    """A file of `scripts/` as a module."""
    path = Path(__file__).resolve().parent.parent / "scripts" / f"{name}.py"
    found = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def config_of(*overrides: str):
    """The checked configuration of a command line."""
    return to_config(composed(*overrides))


def tiny_config(*overrides: str, output: Path | str = "/nonexistent"):
    """The checked configuration of a tiny job.

    Composing takes Hydra a quarter of a second, so it is done once per choice of groups; plain values are
    laid over the outcome, as Hydra does it.
    """
    values = [text for text in overrides if "." in text.partition("=")[0] or text.startswith(VALUES)]
    groups = [text for text in overrides if text not in values]
    laid_over = OmegaConf.from_dotlist([f"output={output}", *values])
    return to_config(OmegaConf.merge(composed(*TINY, *groups), laid_over))


def tiny_session(dataset, *, seed: int = 0, width: int = 8, device: str = "cpu", **runtime) -> Session:
    """A session over `dataset` with a narrow network, in float32."""
    machine = Runtime(torch.device(device), **{"batch_size": 64, "cache_mib": 64, **runtime})

    def new_network():
        seed_everything("initial weights", seed)
        network = build_model(
            "resnet_small",
            num_classes=dataset.num_classes,
            in_channels=dataset.shape[0],
            image_size=dataset.shape[1],
            mean=dataset.mean,
            std=dataset.std,
            width=width,
        )
        return machine.place(network)

    return Session(dataset.to(machine.device), machine, seed, new_network)


def stage_folder(root: Path, stage: str = "stage", **options):
    """A begun stage folder, as the pipeline hands it to a stage."""
    folder = Store(root).folder(stage, "tiny", options)
    with folder.locked():
        folder.begin()
    return folder


def same_bits(first: dict, second: dict) -> bool:
    """Whether two state dicts hold the same tensors bit for bit; -0.0 is not 0.0 here."""
    return first.keys() == second.keys() and not changed(first, second)


def changed(first: dict, second: dict) -> set[str]:
    """Names of the tensors that differ in any bit."""
    return {name for name in first if _bits(first[name]) != _bits(second[name])}


def _bits(tensor: torch.Tensor) -> tuple:
    plain = tensor.detach().cpu().contiguous()
    return plain.dtype, tuple(plain.shape), plain.numpy().tobytes()


class Killed(BaseException):
    """Not an Exception: nothing may catch it on the way out, as nothing catches SIGKILL."""


@contextmanager
def restored_process():
    """Gives back what a job changes in its process: threads, loggers, environment, arguments."""
    threads, argv, environment = torch.get_num_threads(), list(sys.argv), dict(os.environ)
    loggers = [logging.getLogger(), logging.getLogger("rift")]  # Hydra's --info writes through the root
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
        sys.argv[:] = argv
        os.environ.clear()
        os.environ.update(environment)
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
        GlobalHydra.instance().clear()


def command(*arguments: str) -> int:
    """`python -m rift ARGUMENTS` inside this process; the exit code."""
    with restored_process():
        sys.argv[1:] = arguments
        try:
            main()
        except SystemExit as leaving:
            return leaving.code or 0
        return 0


def subprocess_arguments(*arguments: str) -> dict:
    """`python -m rift ARGUMENTS` as a process of its own: what to give to `subprocess`."""
    root = Path(rift.__file__).parents[1]  # the package need not be installed
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {
        "args": [sys.executable, "-m", "rift", *arguments],
        "env": clean | {"PYTHONPATH": str(root), "NETRC": "/nonexistent"},
        "stdin": subprocess.DEVNULL,
    }


def results_of(output: Path) -> dict[str, dict]:
    """Every stage result below an output folder, without times and circumstances, by stage and key."""
    found = {}
    for path in sorted(output.glob("store/*/*/result.json")):
        result = json.loads(path.read_text())
        found[f"{path.parts[-3]}/{path.parts[-2]}"] = _without_times(result)
    return found


def _without_times(value):
    timed = (
        "seconds",
        "images_per_s",
        "tflops",
        "of_matmul_rate",
        "resumed",
        "command",
        "finished",
        "commit",
        "dirty",
        "device",
    )
    if isinstance(value, dict):
        return {name: _without_times(part) for name, part in value.items() if name not in timed}
    return [_without_times(part) for part in value] if isinstance(value, list) else value
