"""One update of each training method against its textbook form; rows of the benchmark."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import method_twins
import textbook
import torch
from timing import ATTACK, Bench, Loop, in_both_precisions, make_at_step, make_network, named

from rift.attacks import Attack
from rift.methods import make_method
from rift.runtime.throughput import at_flops


def training_step(bench: Bench, loop: str) -> None:
    """One update of a training method: PGD-10 on `bench.sizes.attack` images, or the method's own attack."""
    count = bench.sizes.attack
    method, textbook_step = STEPS_OF[loop]
    x, y, nhwc = bench.images(count), bench.labels(count), bench.images(count, channels_last=True)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    plain = make_network("resnet18").to(x.device)
    plain_optimizer = torch.optim.SGD(plain.parameters(), **settings)
    # Where a divergence from the clean output is attacked, the image itself is no place to start from.
    offset = 0.001 if method.from_clean else 0.0

    def slow(attack: Attack) -> Loop:
        return partial(
            textbook_step,
            plain,
            plain_optimizer,
            x,
            y,
            x + offset,
            attack.epsilon,
            attack.step_size,
            attack.steps,
        )

    def fast(precision: torch.dtype, attack: Attack) -> Loop:
        network = bench.runtime.place(make_network("resnet18"))
        optimizer = torch.optim.SGD(network.parameters(), **settings, fused=True)
        runtime = replace(bench.runtime, precision=precision)
        return partial(make_at_step(network, optimizer, runtime, method, attack), nhwc, y, nhwc + offset)

    work = at_flops(bench.forward, method.attack(ATTACK).steps, method.passes)
    in_both_precisions(bench, loop, slow, fast, count * work)


STEPS_OF = {
    "at_step": (make_method("pgd_at", {}), textbook.at_step),
    "trades_step": (make_method("trades", {"beta": 6.0, "start_std": 0.0}), method_twins.trades_step),
    "awp_step": (
        make_method("awp", {"base": "pgd_at", "gamma": 0.01, "warmup": 0}),
        method_twins.awp_at_step,
    ),
    "n_fgsm_step": (
        make_method("n_fgsm", {"start_radius": 2.0, "step": 1.0}),
        method_twins.n_fgsm_step,
    ),
}

_LOOPS = {loop: partial(training_step, loop=loop) for loop in STEPS_OF}
TRAINING_LOOPS = {row: run for loop, run in _LOOPS.items() for row, _ in named(loop)}
"""By the name of the row; the two precisions of a loop are timed together."""
