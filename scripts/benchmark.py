#!/usr/bin/env python3
"""Times each inner loop against its plain textbook twin, in one process, interleaved; medians and ratios.

    python scripts/benchmark.py [--output outputs/benchmark.json] [--only NAME ...] [--rounds N]
                                [--changes] [--rows] [--tf32]

On a CPU: full-width ResNet18 on few images, some eight minutes on two cores. On a GPU: real sizes. The images
are random and the weights untrained: a loop's time does not depend on them. `--changes` adds what each change
to crafting brings, one after the other; `--rows` the seconds per AT epoch and the extrapolated time of a
whole paper row for each backbone and data set (for a GPU). Results are written after each loop.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import textbook  # noqa: E402
from corruption_loops import corruption_eval, corruptions  # noqa: E402
from extrapolation import paper_rows  # noqa: E402
from method_loops import TRAINING_LOOPS  # noqa: E402
from timing import ATTACK, Bench, Loop, Sizes, crafting_loop, in_both_precisions, make_network, named  # noqa: E402

from rift.attacks import Attack, pgd, robust_verdicts  # noqa: E402
from rift.checkpoint import save_json  # noqa: E402
from rift.criticality import Solver, robust_loss  # noqa: E402
from rift.data import Split, batches  # noqa: E402
from rift.models import scannable_modules  # noqa: E402
from rift.provenance import provenance  # noqa: E402
from rift.runtime import (  # noqa: E402
    CraftingNetwork,
    Runtime,
    choose_device,
    set_global_switches,
)
from rift.runtime.throughput import matmul_rate  # noqa: E402
from rift.stages.interpolation import interpolate  # noqa: E402
from rift.stages.mrc_scan import criticality_of  # noqa: E402
from rift.stages.scanned_network import ScannedNetwork  # noqa: E402

EPSILON, STEP, STEPS = ATTACK.epsilon, ATTACK.step_size, ATTACK.steps

CPU = Sizes(
    attack=128,
    scan=160,
    scan_batch=160,
    scan_epochs=4,
    scan_every=5,
    evaluate=12,
    alphas=2,
    data=10_000,
    corrupted=500,
)
GPU = Sizes(
    attack=128,
    scan=2048,
    scan_batch=512,
    scan_epochs=2,
    scan_every=1,
    evaluate=2048,
    alphas=2,
    data=50_000,
    corrupted=500,
)


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

    def slow(attack: Attack) -> Loop:
        return partial(textbook.pgd, bench.plain, x, y, x, EPSILON, STEP, attack.steps)

    def fast(precision: torch.dtype, attack: Attack) -> Loop:
        return partial(crafting_loop(bench.fast, bench.runtime, precision, attack), nhwc, y, nhwc)

    in_both_precisions(bench, "craft", slow, fast, count * STEPS * 2 * bench.forward)


def changes(bench: Bench) -> None:
    """What each change to crafting brings, each on top of those before."""
    count = bench.sizes.attack
    x, y = bench.images(count), bench.labels(count)
    nhwc = bench.images(count, channels_last=True)
    plain = {"channels_last": False, "fold_batchnorm": False, "cuda_graphs": False}
    stack = [
        ("weights frozen", plain, torch.float32),
        ("channels last", plain | {"channels_last": True}, torch.float32),
        ("BatchNorm folded", {"cuda_graphs": False}, torch.float32),
        ("bfloat16", {"cuda_graphs": False}, torch.bfloat16),
        ("one CUDA graph", {}, torch.bfloat16),
    ]

    def fast(options: dict[str, bool], precision: torch.dtype) -> Loop:
        runtime = Runtime(bench.runtime.device, **options)
        given = nhwc if runtime.channels_last else x
        network = runtime.place(make_network("resnet18")).eval()
        return partial(crafting_loop(network, runtime, precision, ATTACK), given, y, given)

    wanted = {f"craft: {name}": (options, dtype) for name, options, dtype in stack}
    if bench.runtime.device.type != "cuda":
        del wanted["craft: one CUDA graph"]
    bench.wanted = list(wanted)
    bench.compare(
        lambda: textbook.pgd(bench.plain, x, y, x, EPSILON, STEP, STEPS),
        {name: fast(*how) for name, how in wanted.items() if bench.can(name, how[1])},
        images=count,
        flops=count * STEPS * 2 * bench.forward,
        once=True,
    )


def mrc_scan(bench: Bench) -> None:
    """The published scan, SGD and the worst of its epochs; the projected solver makes one epoch."""
    sizes, runtime = bench.sizes, bench.runtime
    names = list(scannable_modules(bench.fast))[sizes.scan_every // 2 :: sizes.scan_every]
    y = bench.labels(sizes.scan)
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
    one, two = (scan_flops(bench, names, epochs) for epochs in (1, 2))
    flops = sizes.scan * (one + (sizes.scan_epochs - 1) * (two - one))
    bench.compare(partial(slow, sizes.scan_epochs, names), loops, images=sizes.scan, flops=flops, once=True)


def scan_flops(bench: Bench, names: list[str], epochs: int) -> int:
    """What the textbook's scan of these modules computes for one image."""
    image = [(bench.images(1), bench.labels(1))]
    with FlopCounterMode(display=False) as counter:
        for name in names:
            textbook.mrc(
                bench.plain, name, image, lr=1.0, epsilon_w=0.1, epochs=epochs, stop=False, worst=True
            )
    bench.plain.requires_grad_(True)
    return counter.get_total_flops()


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
                accelerate=lambda craft: crafting.captured(attack, craft),
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
    **TRAINING_LOOPS,
    "mrc_scan_fp32": mrc_scan,
    "mrc_scan_bf16": mrc_scan,
    "mrc_projected": mrc_scan,
    "worst_of_3": lambda bench: worst_of_3(bench, "worst_of_3"),
    "corruptions": corruptions,
    "corruption_eval": corruption_eval,
    "alpha_sweep": lambda bench: worst_of_3(bench, "alpha_sweep", alphas=bench.sizes.alphas),
}


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
    parser.add_argument("--changes", action="store_true", help="also what each change to crafting brings")
    parser.add_argument(
        "--tf32", action="store_true", help="float32 products in TF32, in both forms of a loop"
    )
    parser.add_argument("--rows", action="store_true", help="also the extrapolated time of paper rows")
    arguments = parser.parse_args()
    set_global_switches(tf32=arguments.tf32, deterministic=False, threads=None)
    device = choose_device("auto")
    bench = Bench(device, CPU if device.type == "cpu" else GPU, arguments.rounds, arguments.only)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    loops = list(dict.fromkeys(LOOPS[name] for name in arguments.only))
    for loop in [*loops, changes] if arguments.changes else loops:
        loop(bench)
        save_json(arguments.output, bench.rows)  # what is measured is kept, whatever comes
    extra = paper_rows(device) if arguments.rows else []
    show(bench.rows, Console())
    rate = matmul_rate(device, torch.float32) / 1e12
    circumstances = bench.runtime.describe() | {"matmul_tflops": rate, "fallbacks": bench.runtime.fallbacks}
    circumstances |= provenance() | {"command": shlex.join(["python", *sys.argv])}
    save_json(arguments.output.with_suffix(".machine.json"), {"machine": circumstances, "paper_rows": extra})
    print(json.dumps({"matmul_tflops": round(rate, 3), "written": str(arguments.output)}))


if __name__ == "__main__":
    main()
