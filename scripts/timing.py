"""Times loops against each other on one device: in turn, medians, peak memory."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rift.attacks import Attack, pgd
from rift.data import Split
from rift.methods import Method
from rift.models import build_model
from rift.runtime import CraftingNetwork, Runtime, computes_bfloat16, gradient_pass
from rift.runtime.throughput import forward_flops, wait_for
from rift.stages.adversarial_training import crafter

ATTACK = Attack("linf", 8 / 255, 2 / 255, 10)
ONE_STEP = replace(ATTACK, steps=1)  # makes every kernel that the whole attack needs
NOT_NATIVE = "this CPU does not compute bfloat16 natively"


@dataclass(frozen=True)
class Sizes:
    """How many images each loop gets."""

    attack: int
    scan: int
    scan_batch: int
    scan_epochs: int
    scan_every: int  # one module in so many is scanned
    evaluate: int
    alphas: int
    data: int
    corrupted: int


Loop = Callable[[], object]


def parts(loop: Loop) -> Iterator[object]:
    """A generator's parts; a plain call is one."""
    result = loop()
    if isinstance(result, Iterator):
        yield from result


class Bench:
    """One device, one network, and the rows measured so far."""

    def __init__(self, device: torch.device, sizes: Sizes, rounds: int, wanted: Sequence[str]) -> None:
        self.sizes, self.rounds, self.wanted = sizes, rounds, wanted
        self.runtime = Runtime(device)
        self.rows: list[dict[str, Any]] = []
        generator = torch.Generator().manual_seed(0)
        count = max(sizes.attack, sizes.scan, sizes.evaluate, sizes.corrupted)
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (count,), generator=generator)
        self.split = Split(pixels, labels, torch.arange(count)).to(device)
        self.plain = make_network("resnet18").to(device).eval()
        self.fast = self.runtime.place(make_network("resnet18")).eval()
        self.forward = forward_flops(self.plain, self.images(1))
        self.native_bf16 = computes_bfloat16(device)

    def images(self, count: int, channels_last: bool = False) -> Tensor:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return (self.split.images[:count].float() / 255).contiguous(memory_format=memory_format)

    def labels(self, count: int) -> Tensor:
        return self.split.labels[:count]

    def compare(
        self,
        slow: Loop,
        fast: dict[str, Loop],
        *,
        images: int,
        flops: float,
        once: bool = False,
    ) -> None:
        """Times the textbook and its fast forms in turn and stores a row for each of them.

        A loop that is a generator is timed part by part, in turn with the others: a machine's speed drifts.

        Args:
            slow: the textbook.
            fast: by the name of the row; those not asked for are left out.
            images: that one call works on.
            flops: the work that the textbook does in one call.
            once: one round without a warm-up, for what takes long on a CPU.

        `peak_mib` is the process's (on a GPU, torch's) while the loop runs: what other loops keep for their
        next part counts too.
        """
        loops = {"": slow} | {name: loop for name, loop in fast.items() if name in self.wanted}
        if len(loops) == 1:
            return
        once = once and self.runtime.device.type == "cpu"
        times: dict[str, list[float]] = {name: [] for name in loops}
        peaks = dict.fromkeys(loops, 0.0)
        if not once:
            self._round(loops, peaks)
        for _ in range(1 if once else self.rounds):
            for name, seconds in self._round(loops, peaks).items():
                times[name].append(seconds)
        textbook_seconds = statistics.median(times.pop(""))
        for name, taken in times.items():
            seconds = statistics.median(taken)
            self.rows.append(
                {
                    "name": name,
                    "ratio": textbook_seconds / seconds,
                    "seconds": seconds,
                    "textbook_seconds": textbook_seconds,
                    "images": images,
                    "images_per_s": images / seconds,
                    "tflops": flops / seconds / 1e12,
                    "textbook_tflops": flops / textbook_seconds / 1e12,
                    "peak_mib": peaks[name],
                    "textbook_peak_mib": peaks[""],
                    "rounds": len(taken),
                }
            )
            print(f"{name}: {textbook_seconds / seconds:.2f}x", file=sys.stderr)

    def _round(self, loops: dict[str, Loop], peaks: dict[str, float]) -> dict[str, float]:
        """Every loop once: the seconds of each."""
        seconds = dict.fromkeys(loops, 0.0)
        unfinished = {name: parts(loop) for name, loop in loops.items()}
        while unfinished:
            for name, iterator in list(unfinished.items()):
                self._reset_peak()
                wait_for(self.runtime.device)
                began = time.perf_counter()
                ended = next(iterator, None) is None
                wait_for(self.runtime.device)
                seconds[name] += time.perf_counter() - began
                peaks[name] = max(peaks[name], self._peak_mib())
                if ended:
                    del unfinished[name]
        return seconds

    def can(self, name: str, precision: torch.dtype) -> bool:
        """Whether a row is asked for and this machine computes in its precision; stores why not."""
        if name in self.wanted and precision != torch.float32 and not self.native_bf16:
            self.rows.append({"name": name, "ratio": None, "not_measured": NOT_NATIVE})
            print(f"{name}: not measured, {NOT_NATIVE}", file=sys.stderr)
            return False
        return name in self.wanted

    def _reset_peak(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:  # Linux: the process's high-water mark starts anew
            Path("/proc/self/clear_refs").write_text("5")

    def _peak_mib(self) -> float:
        if self.runtime.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def make_network(name: str, classes: int = 10) -> nn.Module:
    """A backbone with fixed weights."""
    torch.manual_seed(0)
    return build_model(name, num_classes=classes, mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26])


def crafting_loop(
    network: nn.Module, runtime: Runtime, precision: torch.dtype, attack: Attack
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(images, labels, start) -> adversarial images of a network whose weights stay."""
    crafting = CraftingNetwork(network, runtime, precision)
    return crafting.captured("timed", lambda x, y, start: pgd(crafting, x, y, start, attack))


def make_at_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime, method: Method, attack: Attack
) -> Callable[[Tensor, Tensor, Tensor], None]:
    """(images, labels, start) -> one update of adversarial training, by the stage's own parts."""
    attack = method.attack(attack)
    crafting = CraftingNetwork(network, runtime, runtime.precision)
    craft = crafter(network, crafting, method, attack, runtime)
    gradients = gradient_pass(method.loss, network, runtime)

    def step(x: Tensor, y: Tensor, start: Tensor) -> None:
        adversarial = craft(x, y, start)
        network.train()
        inputs = x, start, adversarial, y
        with method.around_update(network, partial(gradients, *inputs), 0):
            gradients(*inputs)
            optimizer.step()

    return step


def in_both_precisions(
    bench: Bench,
    loop: str,
    slow: Callable[[Attack], Loop],
    fast: Callable[[torch.dtype, Attack], Loop],
    flops: float,
) -> None:
    """Times a loop that attacks one batch, after one step of it has made the kernels."""
    wanted = [(name, dtype) for name, dtype in named(loop) if bench.can(name, dtype)]
    for warm_up in (slow(ONE_STEP), *(fast(dtype, ONE_STEP) for _, dtype in wanted)):
        warm_up()
    rows = {name: fast(dtype, ATTACK) for name, dtype in wanted}
    bench.compare(slow(ATTACK), rows, images=bench.sizes.attack, flops=flops, once=True)


def named(loop: str) -> list[tuple[str, torch.dtype]]:
    """The rows of a loop that is timed in both precisions."""
    return [(f"{loop}_fp32", torch.float32), (f"{loop}_bf16", torch.bfloat16)]
