"""`python -m rift.doctor`: what this machine can do, and which of rift's options go with that.

Each look at the machine stands by itself, so that what is broken does not hide the rest. Nothing is written,
and no key is printed. Exit code 0; 1 if something is broken that rift cannot do without.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

OLDEST_PYTHON, OLDEST_TORCH = (3, 11), (2, 10)
# What is imported, and what pip calls it.
REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "numpy": "numpy",
    "PIL": "pillow",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "filelock": "filelock",
    "rich": "rich",
    "yaml": "pyyaml",
    "tabulate": "tabulate",
    "jinja2": "jinja2",
}
# Extras: the packages that each brings, and what they are for.
EXTRAS = {
    "autoattack": (("pyautoattack",), "stage.evaluate.measure=[pgd,auto_attack]"),
    "slurm": (("submitit", "hydra_plugins.hydra_submitit_launcher"), "hydra/launcher=slurm"),
    "joblib": (("hydra_plugins.hydra_joblib_launcher",), "hydra/launcher=joblib"),
    "html": (("altair", "vl_convert"), "python -m rift.report --html"),
}
PATIENCE = 5  # seconds for SLURM to answer
_GIB = 2**30
_CACHE = 4096  # MiB that the scan keeps on a CPU unless told otherwise


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        what: was looked at.
        found: what it is like.
        advice: in the words of rift's options; may be empty.
        broken: rift cannot do without it: a sentence with the remedy, else empty.
    """

    what: str
    found: str
    advice: str = ""
    broken: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rift.doctor", description="What this machine can do.")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), help="folder that results would go to"
    )
    asked = parser.parse_args(arguments)
    findings = list(examine(asked.output))
    _print(findings)
    broken = [finding.broken for finding in findings if finding.broken]
    for sentence in broken:
        print(f"rift: error: {sentence}", file=sys.stderr)
    return 1 if broken else 0


def examine(output: Path) -> Iterator[Finding]:
    """All that is looked at, in the order of the table.

    Args:
        output: the folder that results would go to; it need not exist.
    """
    yield _python()
    packages = list(_packages())
    yield from packages
    looks: dict[str, Callable[[], Iterator[Finding]]] = {
        "disk": lambda: _disk(output),
        "W&B": _wandb,
        "extras": _extras,
        "SLURM": _slurm,
    }
    if not any(finding.broken for finding in packages):
        looks = {"GPU": _gpus, "CPU": _cpu, "memory": _memory, **looks}
    for what, look in looks.items():
        try:
            yield from look()
        except Exception as error:  # what a driver, a network drive or a proxy may raise nobody can list
            yield Finding(what, f"cannot be told: {_reason(error)}")


def _python() -> Finding:
    found, wanted = platform.python_version(), ".".join(map(str, OLDEST_PYTHON))
    old = sys.version_info < OLDEST_PYTHON
    sentence = f"Python {found} is too old: use {wanted} or newer." if old else ""
    return Finding("Python", f"{found}, {platform.system()} {platform.machine()}", broken=sentence)


def _packages() -> Iterator[Finding]:
    """The required ones, imported: versions that do not go together show only so."""
    failed = {}
    for name, pip in REQUIRED.items():
        try:
            importlib.import_module(name)
        except Exception as error:  # not only ImportError: a torchvision of another torch raises anything
            failed[pip] = _reason(error)
    if "torch" not in failed:
        yield _torch()
    for pip, reason in failed.items():
        together = "torch torchvision" if pip in ("torch", "torchvision") else pip
        yield Finding(
            pip,
            "does not import",
            broken=f"{pip} does not import ({reason}): install it for this Python, pip install {together}; "
            "requirements.txt has the versions.",
        )
    if not failed:
        yield Finding("packages", f"all {len(REQUIRED)} that are required import")


def _torch() -> Finding:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    found = f"{torch.__version__}, {cuda}" + _version_of("torchvision") + _version_of("timm")
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    wanted = ".".join(map(str, OLDEST_TORCH))
    sentence = (
        f"torch {torch.__version__} is too old: use {wanted} or newer." if numbers < OLDEST_TORCH else ""
    )
    return Finding("torch", found, broken=sentence)


def _version_of(package: str) -> str:
    try:
        return f"; {package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("GPU", *_no_gpu(shutil.which("nvidia-smi") is not None, torch.version.cuda is not None))
        return
    from rift.runtime import computes_bfloat16

    count = torch.cuda.device_count()
    for index in range(count):
        about = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            native = computes_bfloat16(torch.device("cuda", index))
        capability = f"compute capability {about.major}.{about.minor}"
        found = f"{about.name}, {about.total_memory / _GIB:.0f} GiB, {capability}"
        if native:
            yield Finding(f"GPU {index}", f"{found}, bfloat16", "trains and crafts in bfloat16 by itself")
        else:
            yield Finding(
                f"GPU {index}", f"{found}, no bfloat16", "float32 by itself; runtime.tf32 brings nothing"
            )
    if count > 1:
        yield Finding(
            "GPUs",
            f"{count}",
            f"sweeps: hydra/launcher=gpus; one run: torchrun --nproc-per-node={count} -m rift",
        )


def _no_gpu(driver: bool, built: bool) -> tuple[str, str]:
    if driver and not built:
        return (
            "none that torch can use: it was built without CUDA",
            "install torch's CUDA build, see pytorch.org",
        )
    if driver:
        return "none that torch can use: see what nvidia-smi says", "runtime.device=cpu until then"
    return "none", "real runs for a CPU: experiment=cifar10_small, experiment=cifar10_two_cores"


def _cpu() -> Iterator[Finding]:
    import torch

    from rift.runtime import computes_bfloat16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, load = torch.get_num_threads(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    advice = ""
    if threads > cores:
        advice = f"runtime.threads={cores}: more only get in each other's way"
    elif load > cores:
        advice = f"others work here too (load {load:.1f}): runtime.threads=1 loses least for small networks"
    elif threads < cores and "OMP_NUM_THREADS" in os.environ:
        advice = (
            f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} is set: runtime.threads={cores} overrules it"
        )
    instructions = torch.backends.cpu.get_cpu_capability()
    yield Finding("CPU", f"{cores} cores, {threads} of torch's threads, {instructions}", advice)
    if computes_bfloat16(torch.device("cpu")):
        yield Finding(
            "bfloat16 on the CPU", "has instructions", "runtime.precision=bfloat16, where asked for"
        )
    else:
        yield Finding(
            "bfloat16 on the CPU", "no instructions", "keep float32, as by itself: bfloat16 is slower"
        )


def _memory() -> Iterator[Finding]:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total, available = kib["MemTotal"] / 2**20, kib["MemAvailable"] / 2**20
    short = available < 2 * _CACHE / 2**10
    advice = f"runtime.cache_mib={int(available * 2**10 / 4)}: the scan on a CPU keeps {_CACHE} MiB else"
    yield Finding("memory", f"{total:.1f} GiB, {available:.1f} free", advice if short else "")


def _disk(output: Path) -> Iterator[Finding]:
    place = next(place for place in (output, *output.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free / _GIB
    found = f"{free:.1f} GiB free at {output}"
    if not os.access(place, os.W_OK):
        yield Finding("disk", f"{found}, which cannot be written", "output=FOLDER")
    else:
        yield Finding("disk", found, "what a run needs: rift --check")


def _wandb() -> Iterator[Finding]:
    try:
        importlib.import_module("wandb")
    except Exception as error:
        yield Finding("W&B", f"does not import ({_reason(error)})", "logger=none, or pip install wandb")
        return
    from rift.tracking import has_credentials

    if has_credentials():
        yield Finding("W&B", "a key was found", "runs are online by themselves; logger=none leaves W&B out")
    else:
        yield Finding(
            "W&B", "no key was found", "runs are offline by themselves; wandb login, or logger=none"
        )


def _extras() -> Iterator[Finding]:
    for extra, (names, use) in EXTRAS.items():
        missing = [name for name in names if not _is_there(name)]
        if missing:
            yield Finding(extra, "not installed", f"{use} needs it: pip install -e '.[{extra}]'")
        else:
            yield Finding(extra, "installed", use)


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("SLURM", "not on this machine")
        return
    elsewhere = "hydra/launcher=slurm works where sinfo answers"
    try:
        asked = ["sinfo", "--noheader", "--format=%P"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("SLURM", f"installed, does not answer ({_reason(error)})", elsewhere)
        return
    if done.returncode != 0:
        yield Finding("SLURM", f"installed, not reachable ({_reason(done.stderr)})", elsewhere)
        return
    partitions = ", ".join(done.stdout.split()[:5])
    yield Finding("SLURM", f"reachable: {partitions}", "hydra/launcher=slurm hydra.launcher.partition=NAME")


def _reason(error: object) -> str:
    """The first line of what went wrong, and of which kind it was."""
    kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
    text = (str(error).strip().splitlines() or ["no reason given"])[0]
    return "".join(letter if letter.isprintable() else "?" for letter in kind + text)[:200]


def _print(findings: Sequence[Finding]) -> None:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except Exception:  # it is one of the required packages, and said to be broken
        for finding in findings:
            print(finding.what, finding.found, finding.advice, sep=": ")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("what", "found", "for rift"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        table.add_row(Text(finding.what), Text(finding.found), Text(finding.advice))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
