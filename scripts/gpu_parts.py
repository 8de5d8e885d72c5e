"""What `scripts/gpu_check.py` looks at, one generator of result lines for each part."""

from __future__ import annotations

import importlib
import json
import pkgutil
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from timing import ATTACK, crafting_loop, make_at_step, make_network
from torch import Tensor, nn

import rift
from rift.attacks import Attack, pgd
from rift.methods import make_method
from rift.provenance import provenance
from rift.runtime import CraftingNetwork, Runtime, set_global_switches
from rift.runtime.throughput import wait_for
from rift.saving import BackgroundSaver

ROOT = Path(__file__).resolve().parent.parent
GPU_TESTS = ["tests/test_gpu.py", "tests/test_runtime_graphs.py", "tests/test_saving.py"]
Lines = Iterator[dict[str, Any]]


class Wrong(Exception):
    """Something is not as it must be; the sentence says what."""


class Check:
    """The device, the sizes, and what won so far."""

    def __init__(self, device: torch.device, small: bool, limit: int, alone: bool) -> None:
        self.device, self.small, self.limit, self.alone = device, small, limit, alone
        self.batch = 8 if small else 128
        self.large = (16, 24) if small else (512, 2048)
        self.attack = replace(ATTACK, steps=1) if small else ATTACK
        self.runtime = Runtime(
            device, precision=torch.bfloat16 if device.type == "cuda" else torch.float32, strict=True
        )
        self.options: dict[str, str] = {}

    def images(self, count: int, channels_last: bool = True) -> Tensor:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return images.to(self.device).contiguous(memory_format=layout)

    def labels(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device) % 10

    def network(self, runtime: Runtime, precision: torch.dtype | None = None) -> nn.Module:
        return runtime.place(make_network("resnet_small" if self.small else "resnet18"), precision)

    def seconds(self, call: Callable[[], object], times: int = 10) -> float:
        """Of one call, on average, the device's work included."""
        wait_for(self.device)
        began = time.perf_counter()
        for _ in range(times):
            call()
        wait_for(self.device)
        return (time.perf_counter() - began) / times


EXTRAS = (
    "submitit",
    "hydra_plugins",
    "altair",
    "vl_convert",
)  # packages of extras, which a GPU machine may lack


def versions(check: Check) -> Lines:
    """Every module of the package imports, but for what an extra is missing; what is installed."""
    for module in pkgutil.walk_packages(rift.__path__, "rift."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRAS:
                raise
    command = shlex.join(["python", *sys.argv])
    yield {"python": sys.version.split()[0], **provenance(), "command": command, **check.runtime.describe()}
    if check.device.type == "cuda":
        yield {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def gpu_tests(check: Check) -> Lines:
    """The tests that wait for a CUDA device."""
    if check.device.type != "cuda":
        yield {"not_measured": "no CUDA device"}
        return
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *GPU_TESTS]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)
    except subprocess.TimeoutExpired:
        yield {"not_measured": "the tests took more than 150 s"}
        return
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    yield {"outcome": last}
    if done.returncode != 0:
        raise Wrong(f"the GPU tests fail: {done.stdout[-2000:]}")


def same_bits(check: Check) -> Lines:
    """Whether the same attack gives the same bits twice, called plainly and replayed."""
    x, y = check.images(check.batch), check.labels(check.batch)
    network = check.network(check.runtime).eval()
    for kind, runtime in (
        ("plain", replace(check.runtime, cuda_graphs=False)),
        ("replayed", check.runtime),
    ):
        craft = crafting_loop(network, runtime, check.runtime.precision, check.attack)
        first, second = craft(x, y, x).clone(), craft(x, y, x).clone()
        same = torch.equal(first, second)
        yield {"kind": kind, "bit_equal": same, "equal_pixels": (first == second).double().mean().item()}
        inside = bool(((first - x).abs() <= check.attack.epsilon + 1e-6).all())
        moved = bool(((first - x).abs() > 1e-4).double().mean() > 0.5)
        if not (inside and moved and first.isfinite().all()):
            raise Wrong(f"the {kind} attack leaves its ball, or does nothing")


def at_steps(check: Check) -> Lines:
    """Milliseconds of one AT step in three ways, each for two limits of cuDNN's trials.

    Within a process cuDNN keeps what it has chosen for a shape, so the other limit has a process of its own.
    """
    lines = list(at_steps_of(check, check.limit))
    yield from lines
    if not check.alone:
        command = [
            sys.executable,
            str(ROOT / "scripts" / "gpu_check.py"),
            "--limit",
            "0",
            "--only",
            "at_steps",
        ]
        with TemporaryDirectory() as folder:
            files = ["--output", f"{folder}/lines", "--options", f"{folder}/options"]
            small = ["--small"] if check.small else []
            subprocess.run([*command, *files, *small], cwd=ROOT, capture_output=True, check=False)
            text = (Path(folder) / "lines").read_text(encoding="utf-8")
        others = [line for line in map(json.loads, text.splitlines()) if "way" in line]
        lines += others
        yield from others
    measured = [line for line in lines if "ms" in line]
    # Compilation is repeated in each stage: it must be worth that.
    best = min(measured, key=lambda line: line["ms"] * (1.05 if line["way"].endswith("compile") else 1.0))
    check.options |= {
        "runtime.cuda_graphs": str(best["way"].startswith("graph")).lower(),
        "runtime.compile": str(best["way"].endswith("compile")).lower(),
        "runtime.benchmark_limit": str(best["benchmark_limit"]),
    }


def at_steps_of(check: Check, limit: int) -> Lines:
    """One limit of cuDNN's trials: eager, one graph, one graph of compiled code."""
    x, y = check.images(check.batch), check.labels(check.batch)
    ways = {
        "eager": {"cuda_graphs": False, "compile": False},
        "graph": {"cuda_graphs": True, "compile": False},
        "graph+compile": {"cuda_graphs": True, "compile": True},
    }
    if check.device.type != "cuda":  # where there are no graphs, nothing may pass for one
        ways = {"eager": ways["eager"], "eager+compile": {"cuda_graphs": False, "compile": True}}
    set_global_switches(tf32=False, deterministic=False, threads=None, benchmark_limit=limit)
    for way, options in ways.items():
        runtime = replace(check.runtime, **options)
        network = check.network(runtime)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
        step = make_at_step(network, optimizer, runtime, make_method("pgd_at", {}), check.attack)
        began = time.perf_counter()
        try:
            for _ in range(2):
                step(x, y, x)
        except Exception as error:
            if not options["compile"]:
                raise
            yield {"way": way, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
            continue  # a machine without a compiler trains all the same
        wait_for(check.device)
        ready = time.perf_counter() - began
        milliseconds = 1e3 * check.seconds(lambda step=step: step(x, y, x), 2 if check.small else 20)
        epoch = milliseconds * 50_000 / check.batch / 1e3
        yield {
            "way": way,
            "benchmark_limit": limit,
            "ms": milliseconds,
            "s_per_epoch": epoch,
            "s_until_ready": ready,
        }


def attacks(check: Check) -> Lines:
    """Images per second of PGD-10 in each precision and memory format."""
    fastest: dict[str, float] = {}
    for count in check.large:
        y = check.labels(count)
        for name, precision, channels_last, tf32 in (
            ("float32 NHWC", torch.float32, True, False),
            ("float32 NCHW", torch.float32, False, False),
            ("TF32 NHWC", torch.float32, True, True),
            ("bfloat16 NHWC", torch.bfloat16, True, False),
        ):
            set_global_switches(tf32=tf32, deterministic=False, threads=None)
            runtime = replace(check.runtime, channels_last=channels_last)
            craft = crafting_loop(check.network(runtime, precision).eval(), runtime, precision, check.attack)
            x = check.images(count, channels_last)
            craft(x, y, x)
            seconds = check.seconds(lambda craft=craft, x=x, y=y: craft(x, y, x), 1 if check.small else 3)
            fastest[name] = max(fastest.get(name, 0.0), count / seconds)
            yield {"images": count, "how": name, "images_per_s": count / seconds}
    set_global_switches(tf32=False, deterministic=False, threads=None)
    faster = "true" if fastest["float32 NHWC"] >= fastest["float32 NCHW"] else "null"
    check.options["runtime.channels_last"] = faster


def new_shape(check: Check) -> Lines:
    """What a batch of another size costs the first time."""
    network = check.network(check.runtime).eval()
    crafting = CraftingNetwork(network, check.runtime, torch.float32)
    one = Attack("linf", 8 / 255, 2 / 255, 1)
    size = check.large[0]
    for count in (size, size, size - 7, size - 7):
        x, y = check.images(count), check.labels(count)
        yield {"images": count, "s": check.seconds(lambda x=x, y=y: pgd(crafting, x, y, x, one), 1)}


def one_save(check: Check) -> Lines:
    """A resume point of network, best weights and momentum: how long training waits for it, and in all."""
    state = check.network(check.runtime).state_dict()
    tensors = {f"{part}.{n}": v for part in ("network", "best", "momentum") for n, v in state.items()}
    saver = BackgroundSaver()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "resume.safetensors"
        for attempt in ("first", "second"):
            began = time.perf_counter()
            saver.save(path, tensors, {})
            waited = time.perf_counter() - began
            saver.wait()
            total = time.perf_counter() - began
            yield {"attempt": attempt, "mb": path.stat().st_size / 1e6, "s_waited": waited, "s_in_all": total}


def convolutions(check: Check) -> Lines:
    """TFLOP/s of ResNet18's convolutions, forward and input gradient."""
    for channels, side in ((64, 32), (128, 16), (256, 8), (512, 4)):
        for precision in (torch.float32, torch.bfloat16):
            x = torch.rand(check.batch, channels, side, side, device=check.device, dtype=precision)
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            weight = torch.rand(channels, channels, 3, 3, device=check.device, dtype=precision)
            weight = weight.contiguous(memory_format=torch.channels_last)

            def both(x: Tensor = x, weight: Tensor = weight) -> None:
                torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), x)

            both()
            seconds = check.seconds(both, 1 if check.small else 20)
            work = 2 * 2 * check.batch * channels * channels * 9 * side * side
            name = str(precision).removeprefix("torch.")
            yield {"channels": channels, "side": side, "precision": name, "tflops": work / seconds / 1e12}


def kernels(check: Check) -> Lines:
    """The twenty kernels that take the most time of an AT step."""
    from torch.profiler import ProfilerActivity, profile

    runtime = replace(check.runtime, cuda_graphs=False)
    network = check.network(runtime)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    step = make_at_step(network, optimizer, runtime, make_method("pgd_at", {}), check.attack)
    x, y = check.images(check.batch), check.labels(check.batch)
    step(x, y, x)
    on_gpu = check.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as found:
        step(x, y, x)
        wait_for(check.device)
    column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, column))
    for event in events[:20]:
        yield {"kernel": event.key[:100], "ms": getattr(event, column) / 1e3, "calls": event.count}


PARTS: list[Callable[[Check], Lines]] = [
    versions,
    same_bits,
    gpu_tests,
    at_steps,
    attacks,
    new_shape,
    convolutions,
    one_save,
    kernels,
]
"""In the order of what must be known first."""
