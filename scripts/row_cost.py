"""What the paper's tables cost: operations counted on one image, and hours at a rate.

    python scripts/row_cost.py --tflops 100

Nothing is trained, so no hour here is measured: the rate is an assumption about a machine.
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch
from extrapolation import AT_EPOCHS, FINAL_RUNS, FINETUNE_EPOCHS, SCAN_EPOCHS, SETS, SWEEP_RUNS
from timing import make_network
from torch.utils.flop_counter import FlopCounterMode

from rift.models import scannable_modules

MODELS = ("resnet18", "resnet34", "wrn34_10")
STEPS = 10  # of PGD, each a pass forward and one back to the input: two passes
UPDATE = 3  # passes of forward, and back to input and weights
VERSIONS = 95  # corrupted test sets


def forward_flops(model: str, dataset: str) -> tuple[float, int]:
    """Of one image, and the number of modules that are scanned."""
    side, _, _, classes = SETS[dataset]
    network, counter = make_network(model, classes).eval(), FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, 3, side, side))
    return float(counter.get_total_flops()), len(scannable_modules(network))


def row_cost(model: str, dataset: str) -> dict[str, float]:
    """PFLOP of a row's training, and of everything after it.

    A scanned module's search runs what follows the module, forward and back: on average half of the network.
    """
    flops, modules = forward_flops(model, dataset)
    _, train, test, _ = SETS[dataset]
    attack = 2 * STEPS + 1
    at = AT_EPOCHS * (train * (2 * STEPS + UPDATE) + test * attack)
    scan = train * 2 * STEPS + modules * SCAN_EPOCHS * train * UPDATE / 2
    after = FINETUNE_EPOCHS * (train * UPDATE / 2 + test)
    after += (SWEEP_RUNS + FINAL_RUNS) * test * attack + 2 * VERSIONS * test
    return {"at": at * flops / 1e15, "scan": scan * flops / 1e15, "after": after * flops / 1e15}


def tables(costs: dict[tuple[str, str], dict[str, float]], seeds: int = 3) -> dict[str, float]:
    """PFLOP of each experiment with an empty store; what jobs share is counted once."""

    def of(model: str, dataset: str, tuned: int = 1, trained: int = 1) -> float:
        cost = costs[model, dataset]
        return trained * (cost["at"] + cost["scan"]) + tuned * cost["after"]

    main = "resnet18", "cifar10"
    methods = 4
    return {
        "table1": seeds * sum(of(*row) for row in costs),
        "table2": seeds * methods * sum(of("resnet18", name) for name in ("cifar10", "cifar100")),
        "table3": seeds * of(*main, tuned=5),
        "table4": seeds * of(*main, tuned=4),
        "figure1": seeds * of(*main, tuned=4),
        "figure3": seeds * of(*main, tuned=0),
        "bn_ablation": seeds * of(*main, tuned=4),
        "protocol_gap": seeds * of(*main, tuned=3, trained=3),  # other steps, other training images
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=100, help="assumed rate of the machine, TFLOP/s")
    rate = parser.parse_args().tflops
    costs = {(model, dataset): row_cost(model, dataset) for model in MODELS for dataset in SETS}

    def hours(petaflop: float) -> float:
        return petaflop * 1e15 / (rate * 1e12) / 3600

    rows = [
        {"row": f"{model} {dataset}", **{name: hours(cost) for name, cost in cost_of.items()}}
        for (model, dataset), cost_of in costs.items()
    ]
    print(pd.DataFrame(rows).round(2).to_markdown(index=False))
    print()
    totals = [
        {"experiment": name, "PFLOP": round(cost), "hours": round(hours(cost), 1)}
        for name, cost in tables(costs).items()
    ]
    print(pd.DataFrame(totals).to_markdown(index=False))
    print(f"\nHours, computed at {rate:g} TFLOP/s; not measured.")


if __name__ == "__main__":
    main()
