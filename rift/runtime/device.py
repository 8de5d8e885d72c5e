"""Where and in what precision things are computed, decided once per job."""

from __future__ import annotations

import gc
import os
import platform
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from rift.errors import UserError
from rift.randomness import derive_seed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Runtime:
    """The machine as the stages see it.

    Attributes:
        device: where tensors live.
        precision: of crafting during training and of the training step.
        evaluation_precision: of crafting for accuracies that are reported or chosen by, and of the scan's
            adversarial examples. Verdicts and MRC values are always computed in float32.
        channels_last: memory format of images and convolutions.
        fold_batchnorm: craft through a twin with BatchNorm folded into the convolutions.
        cuda_graphs: replay the whole attack, and the passes of a training step, as one CUDA graph each.
        compile: compile the crafting network and the training step with `torch.compile`.
        batch_size: images per batch wherever no weights are updated (evaluation, crafting for the scan).
        cache_mib: bound of the MRC scan's activation cache in MiB; None is a third of what the GPU has free
            at the time, and 4096 on a CPU.
        fallbacks: what could not be done as asked, one sentence each; stored with every result.
    """

    device: torch.device
    precision: torch.dtype = torch.float32
    evaluation_precision: torch.dtype = torch.float32
    channels_last: bool = True
    fold_batchnorm: bool = True
    cuda_graphs: bool = True
    compile: bool = False
    batch_size: int = 512
    cache_mib: int | None = None
    fallbacks: list[str] = field(default_factory=list)

    def place(self, network: nn.Module) -> nn.Module:
        """Moves a network to the device and into the memory format; in place."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        for module in network.to(self.device).modules():
            if isinstance(module, nn.Conv2d):  # a whole network may hold 5-D buffers, which torch refuses
                module.to(memory_format=memory_format)
        return network

    def autocast(self) -> AbstractContextManager[object]:
        """The training step's precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def compiled(self, module: nn.Module) -> Callable[..., Tensor]:
        """The module, compiled if that is wanted; to be called in one mode only, which is compiled along."""
        return torch.compile(module) if self.compile else module

    def cache_bound(self) -> int:
        """The bound of the activation cache, in MiB."""
        if self.cache_mib is not None:
            return self.cache_mib
        if self.device.type == "cuda":
            gc.collect()  # what earlier stages have left behind does not count as taken
            torch.cuda.empty_cache()
            return torch.cuda.mem_get_info(self.device)[0] // 3 // 2**20
        return 4096

    def fall_back(self, sentence: str) -> None:
        """Records, once, that something was not done as asked."""
        if sentence not in self.fallbacks:
            self.fallbacks.append(sentence)

    def describe(self) -> dict[str, object]:
        """Device and software facts for a result file."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else _cpu_name()
        return {
            "type": self.device.type,
            "name": name,
            "threads": torch.get_num_threads(),
            "precision": str(self.precision).removeprefix("torch."),
            "evaluation_precision": str(self.evaluation_precision).removeprefix("torch."),
            "channels_last": self.channels_last,
            "fold_batchnorm": self.fold_batchnorm,
            "cuda_graphs": self.cuda_graphs and self.device.type == "cuda",
            "compile": self.compile,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }


def choose_device(wanted: str) -> torch.device:
    """`auto` takes the GPU if there is one.

    Raises:
        UserError: a device that this machine does not have.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(f"runtime.device={wanted} is no device: use auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        found = torch.cuda.device_count() if torch.cuda.is_available() else "none"
        raise UserError(
            f"runtime.device={wanted}: CUDA devices found here: {found}; use runtime.device=auto."
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"runtime.device={wanted} is not supported: use auto, cpu or cuda.")
    return device


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes it natively and fast (CUDA), float32 elsewhere."""
    if wanted == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return DTYPES[wanted]


def set_global_switches(*, tf32: bool, deterministic: bool, threads: int | None) -> None:
    """Process-wide switches of torch."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    if threads is not None:
        torch.set_num_threads(threads)


def seed_everything(*key: int | str) -> None:
    """Seeds the global generators: initialisation and dropout draw from them, nothing else of ours does."""
    seed = derive_seed(*key) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{names[0]} ({os.cpu_count()} cores)" if names else platform.processor()
    except OSError:
        return platform.processor() or platform.machine()
