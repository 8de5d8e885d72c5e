"""How fast a loop runs, in the units that machines are compared in."""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rift.runtime.modes import borrowed


def forward_flops(network: nn.Module, image: Tensor) -> int:
    """Floating-point operations of one image's forward pass, 2 per multiply-add.

    Args:
        network: left as found.
        image: (1, C, H, W) on the network's device.
    """
    with borrowed(network, training=False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def at_flops(forward: int, steps: int, passes: float = 1) -> float:
    """Of one image in adversarial training: an input gradient costs two passes, a weight gradient three.

    Args:
        forward: of one image.
        steps: input gradients.
        passes: weight gradients in one update.
    """
    return (2 * steps + 3 * passes) * forward


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The device's measured matrix-multiply rate in FLOP/s: the best of a few products, some 50 ms in all."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        wait_for(device)
        began = time.perf_counter()
        a @ b
        wait_for(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
