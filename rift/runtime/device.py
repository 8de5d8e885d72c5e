"""Where and in what precision things are computed, decided once per job."""

from __future__ import annotations

import gc
import logging
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from rift import torchrun
from rift.errors import UserError
from rift.runtime import distributed
from rift.runtime.full_batches import in_full_batches
from rift.runtime.layout import overruns_in_channels_last

log = logging.getLogger(__name__)

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Runtime:
    """The machine as the stages see it.

    Attributes:
        device: where tensors live.
        precision: of crafting during training and of the training step.
        selection_precision: of crafting for accuracies that something is chosen by, and of the scan's
            adversarial examples. Verdicts and MRC values are always computed in float32.
        evaluation_precision: of crafting for accuracies that are reported.
        channels_last: memory format of images and convolutions; off from the first network on that a CPU
            cannot train in it, see `place`.
        row_major_float32: networks that compute in float32 are row-major all the same.
        full_batches: no batch is smaller than the others where no weights are updated: the last one is filled
            by repetition, since cuDNN tries its algorithms anew for each size.
        fold_batchnorm: craft through a twin with BatchNorm folded into the convolutions.
        cuda_graphs: replay the whole attack, and the passes of a training step, as one CUDA graph each.
        compile: compile the crafting network and the training step with `torch.compile`.
        batch_size: images per batch wherever no weights are updated (evaluation, crafting for the scan).
        cache_mib: bound of the MRC scan's activation cache in MiB; None is a third of what the GPU has free
            at the time, and 4096 on a CPU.
        strict: what cannot be done as asked is an error.
        save_seconds: a training saves where to go on when so much time has passed, and at a new best.
        gradients_at_once: images whose gradient the scan computes at once; None is a whole batch. Set where
            the device had no room for that.
        fallbacks: what the present stage could not do as asked, one sentence each; stored with its result.
    """

    device: torch.device
    precision: torch.dtype = torch.float32
    selection_precision: torch.dtype = torch.float32
    evaluation_precision: torch.dtype = torch.float32
    channels_last: bool = True
    row_major_float32: bool = False
    full_batches: bool = False
    fold_batchnorm: bool = True
    cuda_graphs: bool = True
    compile: bool = False
    batch_size: int = 512
    cache_mib: int | None = None
    strict: bool = False
    save_seconds: float = 0.0
    gradients_at_once: int | None = None
    fallbacks: list[str] = field(default_factory=list)
    _said: set[str] = field(default_factory=set, repr=False)

    def place(self, network: nn.Module, precision: torch.dtype | None = None) -> nn.Module:
        """Moves a network to the device and into the memory format; in place.

        On a CPU a network with narrow strided 1×1 convolutions, and so its images, stay row-major.

        Args:
            network: any; its weights keep their dtype.
            precision: that it will compute in; the training step's if not given.
        """
        if self.device.type == "cpu" and any(map(overruns_in_channels_last, network.modules())):
            self.channels_last = False
        for module in network.to(self.device).modules():
            if isinstance(module, nn.Conv2d):  # a whole network may hold 5-D buffers, which torch refuses
                module.to(memory_format=self._memory_format(precision))
        return network

    def laid_out(self, images: Tensor, precision: torch.dtype | None = None) -> Tensor:
        """The images in the memory format of networks of this precision, see `place`."""
        return images.contiguous(memory_format=self._memory_format(precision))

    def channels_last_in(self, precision: torch.dtype) -> bool:
        """Whether networks that compute in this precision, and their images, are channels-last."""
        return self.channels_last and not (self.row_major_float32 and precision == torch.float32)

    def _memory_format(self, precision: torch.dtype | None) -> torch.memory_format:
        last = self.channels_last_in(precision or self.precision)
        return torch.channels_last if last else torch.contiguous_format

    def filled(
        self, function: Callable[..., Tensor], count: int, batch_size: int | None = None
    ) -> Callable[..., Tensor]:
        """The function in batches of one size where that is wanted, see `full_batches`.

        Args:
            function: see `in_full_batches`.
            count: images that it is called on in all.
            batch_size: images at a time; that of evaluation if not given.
        """
        size = min(batch_size or self.batch_size, count)
        return in_full_batches(function, size) if self.full_batches else function

    def in_smaller_batches(self, work: Callable[[], T]) -> T:
        """Does work in batches of `batch_size`, and again in halves where the device has no room for them.

        Raises:
            UserError: there is no room for a single image; of several processes, for a batch, since they all
                have to cut the same ones.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                if distributed.active():
                    raise UserError(
                        f"The device has no room for runtime.batch_size={self.batch_size} images: try "
                        f"{max(1, self.batch_size // 2)}."
                    ) from error
                if self.batch_size == 1:
                    raise UserError("The device has no room for a single image.") from error
            # Outside the handler, which keeps the tensors of the failed attempt alive.
            self.batch_size = (self.batch_size + 1) // 2
            self.fall_back(f"out of memory: evaluated in batches of {self.batch_size}")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def autocast(self) -> AbstractContextManager[object]:
        """The training step's precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def compiled(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """The module, compiled if that is wanted; to be called in one mode only, which is compiled along.

        For inputs of the first call's shape alone: any other, such as an odd last batch, takes the module
        itself, since compiling takes longer than it could bring.
        """
        return for_one_shape(torch.compile(module), module) if self.compile else module

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
        """Records that something was not done as asked, and says it the first time.

        Raises:
            UserError: the runtime is strict.
        """
        if self.strict:
            raise UserError(f"{sentence}; runtime.strict=false would go on without.")
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
            "instructions": torch.backends.cpu.get_cpu_capability(),  # AVX2, AVX512: they decide CPU kernels
            "threads": torch.get_num_threads(),
            "precision": str(self.precision).removeprefix("torch."),
            "selection_precision": str(self.selection_precision).removeprefix("torch."),
            "evaluation_precision": str(self.evaluation_precision).removeprefix("torch."),
            "channels_last": self.channels_last,
            "row_major_float32": self.row_major_float32,
            "fold_batchnorm": self.fold_batchnorm,
            "cuda_graphs": self.cuda_graphs and self.device.type == "cuda",
            "compile": self.compile,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }


def for_one_shape(
    special: Callable[[Tensor], Tensor], general: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """`special` for inputs of the first call's shape, `general` for all others."""
    shapes: list[torch.Size] = []

    def call(images: Tensor) -> Tensor:
        if not shapes:
            shapes.append(images.shape)
        return special(images) if images.shape == shapes[0] else general(images)

    return call


def choose_device(wanted: str) -> torch.device:
    """`auto` takes the GPU if there is one; of several processes on a machine each takes its own.

    Raises:
        UserError: a device that this machine does not have.
    """
    device = _present_device(wanted)
    if device.type != "cuda" or not torchrun.several():
        return device
    if device.index is not None:
        raise UserError(
            f"runtime.device={wanted} is one GPU, and torchrun gives each process its own: say "
            "runtime.device=cuda, and CUDA_VISIBLE_DEVICES for which ones."
        )
    if torchrun.local_rank() >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"There are more processes than GPUs here: say torchrun --nproc-per-node={found}.")
    return torch.device("cuda", torchrun.local_rank())


def _present_device(wanted: str) -> torch.device:
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


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{names[0]} ({os.cpu_count()} cores)" if names else platform.processor()
    except OSError:
        return platform.processor() or platform.machine()
