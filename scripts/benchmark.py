#!/usr/bin/env python3
"""Times each inner loop against its plain textbook twin, in one process, interleaved; medians and ratios.

    python scripts/benchmark.py [--output outputs/benchmark.json] [--only NAME ...] [--rounds N]

On a CPU: full-width ResNet18 on few images, under five minutes on two cores. On a GPU: real sizes, and
beside the loops the seconds per AT epoch and the extrapolated time of a whole paper row for each backbone.
The images are random and the weights untrained: a loop's time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import textbook  # noqa: E402

from rift.attacks import Attack, pgd, robust_verdicts  # noqa: E402
from rift.checkpoint import save_json  # noqa: E402
from rift.criticality import Solver, robust_loss  # noqa: E402
from rift.data import Split, batches  # noqa: E402
from rift.methods import METHODS  # noqa: E402
from rift.models import build_model, scannable_modules  # noqa: E402
from rift.provenance import provenance  # noqa: E402
from rift.runtime import (  # noqa: E402
    CraftingNetwork,
    Runtime,
    choose_device,
    gradient_pass,
    graphed,
    set_global_switches,
)
from rift.runtime.throughput import at_flops, forward_flops, matmul_rate  # noqa: E402
from rift.stages.interpolation import interpolate  # noqa: E402
from rift.stages.mrc_scan import criticality_of  # noqa: E402
from rift.stages.scanned_network import ScannedNetwork  # noqa: E402

EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 10
ATTACK = Attack("linf", EPSILON, STEP, STEPS)
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


CPU = Sizes(
    attack=32, scan=96, scan_batch=96, scan_epochs=10, scan_every=5, evaluate=16, alphas=2, data=10_000
)
GPU = Sizes(
    attack=128, scan=2048, scan_batch=512, scan_epochs=2, scan_every=1, evaluate=2048, alphas=2, data=50_000
)


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
        count = max(sizes.attack, sizes.scan, sizes.evaluate)
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (count,), generator=generator)
        self.split = Split(pixels, labels, torch.arange(count)).to(device)
        self.plain = make_network("resnet18").to(device).eval()
        self.fast = self.runtime.place(make_network("resnet18")).eval()
        self.forward = forward_flops(self.plain, self.images(1))
        self.native_bf16 = device.type == "cuda" or cpu_has_bfloat16()

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
                self._wait()
                began = time.perf_counter()
                ended = next(iterator, None) is None
                self._wait()
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

    def _wait(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()

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


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products; torch emulates them slowly elsewhere."""
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def make_network(name: str, classes: int = 10) -> nn.Module:
    """A backbone with fixed weights."""
    torch.manual_seed(0)
    return build_model(name, num_classes=classes, mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26])


def data_path(bench: Bench) -> None:
    """Crop, flip and conversion of one epoch, against a two-worker DataLoader."""
    count, device = bench.sizes.data, bench.runtime.device
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    split = Split(pixels, labels, torch.arange(count)).to(device)
    loader = textbook.loader(pixels, labels, 128)

    def fast() -> None:
        for _ in batches(split, 128, shuffle=True, padding=4, flip=True, channels_last=True):
            pass

    def slow() -> None:
        for x, _ in loader:
            x.to(device)

    bench.compare(slow, {"data_path": fast}, images=count, flops=0)


def craft(bench: Bench) -> None:
    """PGD-10 on one batch."""
    count = bench.sizes.attack
    x, y, nhwc = bench.images(count), bench.labels(count), bench.images(count, channels_last=True)

    def fast(precision: torch.dtype) -> Callable[[], object]:
        crafting = CraftingNetwork(bench.fast, bench.runtime, precision)
        attack = graphed(lambda x, y, start: pgd(crafting, x, y, start, ATTACK), bench.runtime)
        return lambda: attack(nhwc, y, nhwc)

    bench.compare(
        lambda: textbook.pgd(bench.plain, x, y, x, EPSILON, STEP, STEPS),
        {name: fast(dtype) for name, dtype in named("craft") if bench.can(name, dtype)},
        images=count,
        flops=count * STEPS * 2 * bench.forward,
    )


def named(loop: str) -> list[tuple[str, torch.dtype]]:
    """The rows of a loop that is timed in both precisions."""
    return [(f"{loop}_fp32", torch.float32), (f"{loop}_bf16", torch.bfloat16)]


def at_step(bench: Bench) -> None:
    """One update of PGD-10 adversarial training."""
    count = bench.sizes.attack
    x, y, nhwc = bench.images(count), bench.labels(count), bench.images(count, channels_last=True)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    plain = make_network("resnet18").to(x.device)
    plain_optimizer = torch.optim.SGD(plain.parameters(), **settings)

    def fast(precision: torch.dtype) -> Callable[[], None]:
        network = bench.runtime.place(make_network("resnet18"))
        optimizer = torch.optim.SGD(network.parameters(), **settings, fused=True)
        return make_at_step(network, optimizer, bench.runtime, precision, nhwc, y)

    bench.compare(
        lambda: textbook.at_step(plain, plain_optimizer, x, y, x, EPSILON, STEP, STEPS),
        {name: fast(dtype) for name, dtype in named("at_step") if bench.can(name, dtype)},
        images=count,
        flops=count * at_flops(bench.forward, STEPS),
    )


def make_at_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    precision: torch.dtype,
    x: Tensor,
    y: Tensor,
) -> Callable[[], None]:
    """The update as the stage makes it."""
    crafting = CraftingNetwork(network, runtime, precision)

    def attack(x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        crafting.refresh()
        return pgd(crafting, x, y, start, ATTACK)

    def loss_and_logits(x: Tensor, adversarial: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision != torch.float32):
            return METHODS["pgd_at"].loss(network, x, adversarial, y)

    attack = graphed(attack, runtime)
    gradients = gradient_pass(loss_and_logits, network, runtime)

    def step() -> None:
        adversarial = attack(x, y, x)
        network.train()
        gradients(x, adversarial, y)
        optimizer.step()

    return step


def mrc_scan(bench: Bench) -> None:
    """The published scan, SGD and the worst of its epochs; the projected solver makes one epoch."""
    sizes, runtime = bench.sizes, bench.runtime
    y, names = (
        bench.labels(sizes.scan),
        list(scannable_modules(bench.fast))[sizes.scan_every // 2 :: sizes.scan_every],
    )
    nhwc = bench.images(sizes.scan, channels_last=True)
    fixed = list(textbook.fixed_batches(bench.images(sizes.scan), y, sizes.scan_batch))

    def fast(precision: torch.dtype, solver: str, epochs: int, modules: list[str]) -> Iterator[object]:
        options = Solver(
            solver, 0.1, "l2", epochs, "epoch", "continue", "worst", partial(torch.optim.SGD, lr=1.0)
        )
        whole = textbook.fixed_batches(nhwc, y, sizes.scan_batch)
        baseline = robust_loss(lambda _, x: bench.fast(x), nhwc.new_empty(0), (((x,), y) for x, y in whole))
        scanned = ScannedNetwork(bench.fast, nhwc, y, sizes.scan_batch, precision, runtime)
        for module in modules:
            yield criticality_of(scanned.at(module), baseline, options)

    def slow(epochs: int, modules: list[str]) -> Iterator[object]:
        options = {"lr": 1.0, "epsilon_w": 0.1, "epochs": epochs, "stop": False, "worst": True}
        for module in modules:
            yield textbook.mrc(bench.plain, module, fixed, **options)
        bench.plain.requires_grad_(True)

    kinds = {name: (dtype, "sgd", sizes.scan_epochs) for name, dtype in named("mrc_scan")}
    kinds = {name: kind for name, kind in kinds.items() if bench.can(name, kind[0])}
    kinds["mrc_projected"] = torch.float32, "projected", 1
    for warm_up in (
        slow(1, names[:1]),
        *(fast(dtype, kind, 1, names[:1]) for dtype, kind, _ in kinds.values()),
    ):
        list(warm_up)  # kernels are made at their first use
    loops = {name: partial(fast, *kind, names) for name, kind in kinds.items()}
    # The textbook's own work: a baseline pass, and per epoch a pass with gradients and one without.
    flops = len(names) * sizes.scan * bench.forward * (1 + sizes.scan_epochs * 3)
    bench.compare(partial(slow, sizes.scan_epochs, names), loops, images=sizes.scan, flops=flops, once=True)


def half_robust(bench: Bench) -> tuple[Tensor, float]:
    """Labels and a budget by which four fifths of the images are right and about half stay so under attack.

    The loops' time depends on these shares alone, so an untrained network can stand for a robust one.
    """
    count = bench.sizes.evaluate
    x = bench.images(count)
    with torch.no_grad():
        logits = bench.plain(x)
    labels = logits.argmax(dim=1)
    labels[::5] = logits[::5].argmin(dim=1)
    crafting = CraftingNetwork(bench.fast, bench.runtime, torch.float32)
    low, high = 0.0, EPSILON
    for _ in range(8):
        middle = (low + high) / 2
        attack = Attack("linf", middle, middle / 4, 3)
        adversarial = pgd(crafting, x, labels, x, attack)
        robust = (bench.plain(adversarial).argmax(dim=1) == labels).double().mean().item()
        low, high = (middle, high) if robust > 0.5 else (low, middle)
    return labels, low


def worst_of_3(bench: Bench, name: str, alphas: int = 1) -> None:
    """PGD-10 three times on a half-robust network; at several α, the sweep."""
    count = bench.sizes.evaluate
    labels, epsilon = half_robust(bench)
    split = Split(bench.split.images[:count], labels, bench.split.indices[:count])
    attack = Attack("linf", epsilon, epsilon / 4, STEPS)
    size = min(count, bench.runtime.batch_size)
    fixed = list(textbook.fixed_batches(bench.images(count), labels, size))
    starts = [[x for x, _ in fixed]] * 3
    theta = {key: value.clone() for key, value in bench.fast.state_dict().items()}
    crafting = CraftingNetwork(bench.fast, bench.runtime, torch.float32)

    def fast() -> None:
        for index in range(alphas):
            bench.fast.load_state_dict(interpolate(index / max(alphas - 1, 1), theta, theta))
            crafting.refresh()
            robust_verdicts(
                bench.fast,
                crafting,
                split,
                attack,
                runs=3,
                batch_size=size,
                channels_last=True,
                accelerate=lambda craft: graphed(craft, bench.runtime),
            )

    def slow() -> None:
        for _ in range(alphas):
            textbook.worst_of_k(bench.plain, fixed, starts, epsilon, epsilon / 4, STEPS)

    flops = alphas * count * bench.forward * (3 * 2 * STEPS + 4)
    bench.compare(slow, {name: fast}, images=alphas * count, flops=flops, once=True)


LOOPS: dict[str, Callable[[Bench], None]] = {
    "data_path": data_path,
    "craft_fp32": craft,
    "craft_bf16": craft,
    "at_step_fp32": at_step,
    "at_step_bf16": at_step,
    "mrc_scan_fp32": mrc_scan,
    "mrc_scan_bf16": mrc_scan,
    "mrc_projected": mrc_scan,
    "worst_of_3": lambda bench: worst_of_3(bench, "worst_of_3"),
    "alpha_sweep": lambda bench: worst_of_3(bench, "alpha_sweep", alphas=bench.sizes.alphas),
}


def extrapolate(device: torch.device) -> list[dict[str, Any]]:
    """Seconds per AT epoch and hours of a paper row (110 epochs) for each backbone and data set; GPU only."""
    rows = []
    sets = (("cifar10", 32, 50_000, 10), ("cifar100", 32, 50_000, 100), ("tiny_imagenet", 64, 100_000, 200))
    for model in ("resnet18", "resnet34", "wrn34_10"):
        for dataset, side, images, classes in sets:
            runtime = Runtime(device, precision=torch.bfloat16)
            network = runtime.place(make_network(model, classes))
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
            x = torch.rand(128, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
            y = torch.randint(0, classes, (128,), device=device)
            step = make_at_step(network, optimizer, runtime, torch.bfloat16, x, y)
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(10):
                step()
            torch.cuda.synchronize()
            seconds = (time.perf_counter() - began) / 10
            epoch = seconds * images / 128
            rows.append(
                {
                    "model": model,
                    "dataset": dataset,
                    "seconds_per_epoch": epoch,
                    "paper_row_hours": 110 * epoch / 3600,
                    "fallbacks": runtime.fallbacks,
                }
            )
            print(f"{model} {dataset}: {epoch:.1f} s per epoch", file=sys.stderr)
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The rows as a table."""
    heads = ("loop", "ratio", "images/s", "TFLOP/s", "textbook TFLOP/s", "peak MiB")
    table = Table(*heads)
    for row in rows:
        if row["ratio"] is None:
            table.add_row(row["name"], "–", row["not_measured"], "", "", "")
            continue
        numbers = (row["images_per_s"], row["tflops"], row["textbook_tflops"], row["peak_mib"])
        table.add_row(row["name"], f"{row['ratio']:.2f}", *(f"{number:,.3g}" for number in numbers))
    console.print(table)


def main() -> None:
    """Parses the command line, measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "benchmark.json")
    parser.add_argument("--only", nargs="+", choices=list(LOOPS), default=list(LOOPS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    set_global_switches(tf32=True, deterministic=False, threads=None)
    device = choose_device("auto")
    bench = Bench(device, CPU if device.type == "cpu" else GPU, arguments.rounds, arguments.only)
    for loop in dict.fromkeys(LOOPS[name] for name in arguments.only):
        loop(bench)
    extra = extrapolate(device) if device.type == "cuda" else []
    show(bench.rows, Console())
    rate = matmul_rate(device, torch.float32) / 1e12
    circumstances = bench.runtime.describe() | {"matmul_tflops": rate, "fallbacks": bench.runtime.fallbacks}
    circumstances |= provenance()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_json(arguments.output, bench.rows)
    save_json(arguments.output.with_suffix(".machine.json"), {"machine": circumstances, "paper_rows": extra})
    print(json.dumps({"matmul_tflops": round(rate, 3), "written": str(arguments.output)}))


if __name__ == "__main__":
    main()
