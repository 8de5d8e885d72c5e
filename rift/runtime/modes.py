"""Train/eval mode, gradients and BatchNorm statistics of a network: borrowed, and given back as found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorm_layers(network: nn.Module) -> list[_BatchNorm]:
    """Every layer that keeps running statistics."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def borrowed(network: nn.Module, *, training: bool, gradients: bool = False) -> Iterator[nn.Module]:
    """Puts a whole network into one mode for a while.

    On exit every module's `training` flag, every parameter's `requires_grad` and, if the network was in
    train mode meanwhile, every BatchNorm statistic is exactly what it was, whatever happened inside.

    Args:
        network: changed in place.
        training: the mode of every module.
        gradients: whether parameters require gradients.
    """
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    statistics = [
        (buffer, buffer.clone())
        for layer in (batchnorm_layers(network) if training else [])
        for buffer in layer.buffers(recurse=False)
    ]
    try:
        network.train(training)
        for parameter, _ in flags:
            parameter.requires_grad_(gradients)
        yield network
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for buffer, saved in statistics:
                buffer.copy_(saved)
