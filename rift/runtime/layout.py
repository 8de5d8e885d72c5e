"""Memory formats: which one a device cannot use, and which one it is faster in."""

from __future__ import annotations

import functools
import logging
import time

import torch
import torch.nn.functional as F
from torch import nn

from rift.runtime.throughput import wait_for

# (channels, side) of the convolutions that stand for a ResNet on 32×32 images.
_SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))
_BATCH, _ROUNDS = 128, 5
_MARGIN = 0.9  # share of the other's time

log = logging.getLogger(__name__)


def overruns_in_channels_last(module: nn.Module) -> bool:
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


@functools.cache
def row_major_is_faster(device: torch.device) -> bool:
    """Whether float32 convolutions, forward and input gradient, take far less time in NCHW than in NHWC.

    Measured once in a process, the two in turn; a close race, which could end otherwise in a resumed run, is
    NHWC's.
    """
    totals = dict.fromkeys((torch.contiguous_format, torch.channels_last), 0.0)
    for channels, side in _SHAPES:
        for layout in totals:
            totals[layout] += _seconds(device, channels, side, layout)
    faster = totals[torch.contiguous_format] < _MARGIN * totals[torch.channels_last]
    log.info("float32 networks are laid out in %s", "NCHW" if faster else "NHWC")
    return faster


def _seconds(device: torch.device, channels: int, side: int, layout: torch.memory_format) -> float:
    """The fastest of a few calls of one convolution and its input gradient."""
    images = torch.rand(_BATCH, channels, side, side, device=device).contiguous(memory_format=layout)
    images.requires_grad_()
    weight = torch.rand(channels, channels, 3, 3, device=device).contiguous(memory_format=layout)
    best = float("inf")
    for _ in range(_ROUNDS):
        wait_for(device)
        began = time.perf_counter()
        torch.autograd.grad(F.conv2d(images, weight, padding=1).sum(), images)
        wait_for(device)
        best = min(best, time.perf_counter() - began)
    return best
