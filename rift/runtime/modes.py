"""Train/eval mode, gradients and BatchNorm statistics of a network: borrowed, and given back as found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorm_layers(network: nn.Module) -> list[_BatchNorm]:
    """Every layer that keeps running statistics."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Puts these tensors back as they are now, in place, whatever happens inside."""
    saved = [(tensor, tensor.clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)


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
    layers = batchnorm_layers(network) if training else []
    try:
        network.train(training)
        for parameter, _ in flags:
            parameter.requires_grad_(gradients)
        with kept(buffer for layer in layers for buffer in layer.buffers(recurse=False)):
            yield network
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
