"""Where and in what precision things are computed, decided once per job."""

from __future__ import annotations

import gc
import logging
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

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Runtime:
    """The machine as the stages see it.

    Attributes:
        device: where tensors live.
        precision: of crafting during training and of the training step.
        evaluation_precision: of crafting for accuracies that are reported or chosen by, and of the scan's
            adversarial examples. Verdicts and MRC values are always computed in float32.
        channels_last: memory format of images and convolutions; off from the first network on that a CPU
            cannot train in it, see `place`.
        fold_batchnorm: craft through a twin with BatchNorm folded into the convolutions.
        cuda_graphs: replay the whole attack, and the passes of a training step, as one CUDA graph each.
        compile: compile the crafting network and the training step with `torch.compile`.
        batch_size: images per batch wherever no weights are updated (evaluation, crafting for the scan).
        cache_mib: bound of the MRC scan's activation cache in MiB; None is a third of what the GPU has free
            at the time, and 4096 on a CPU.
        fallbacks: what the present stage could not do as asked, one sentence each; stored with its result.
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
    _said: set[str] = field(default_factory=set, repr=False)

    def place(self, network: nn.Module) -> nn.Module:
        """Moves a network to the device and into the memory format; in place.

        On a CPU a network with narrow strided 1×1 convolutions, and so its images, stay row-major.
        """
        if self.device.type == "cpu" and any(map(_overruns_in_channels_last, network.modules())):
            self.channels_last = False
        for module in network.to(self.device).modules():
            if isinstance(module, nn.Conv2d):  # a whole network may hold 5-D buffers, which torch refuses
                module.to(memory_format=self._memory_format)
        return network

    def laid_out(self, images: Tensor) -> Tensor:
        """The images in the memory format."""
        return images.contiguous(memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

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
        """Records that something was not done as asked, and says it the first time."""
        if sentence not in self.fallbacks:
            self.fallbacks.append(sentence)
        if sentence not in self._said:
            self._said.add(sentence)
            log.warning("%s", sentence)

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


def _overruns_in_channels_last(module: nn.Module) -> bool:
    """Whether torch would write beyond the weight's gradient, and abort, on a CPU with AVX2 alone.

    A fault of torch 2.10 to 2.15 (oneDNN issue 6035), with weight or input in channels-last; other CPUs are
    spared, but their results should not be another layout's.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < 8
    )


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
        fast = device.type == "cuda" and computes_bfloat16(device)
        return torch.bfloat16 if fast else torch.float32
    return DTYPES[wanted]


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is far slower than float32.

    True where it cannot be told, which is on CPUs other than x86.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # What oneDNN was told to leave alone it does not use; its names for what knows bfloat16 end so.
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "DEFAULT")).upper()
    if allowed != "DEFAULT" and not allowed.endswith(("_BF16", "_FP16", "_AMX")):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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
