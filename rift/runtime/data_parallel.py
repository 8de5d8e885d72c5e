"""A training step shared by several processes: the same step as one process takes on the whole batch.

Gradients are averaged by torch's DistributedDataParallel. BatchNorm normalises by the whole batch, not by a
process's share of it: torch's SyncBatchNorm on a GPU, the same by plain sums on a CPU, where torch has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from rift.runtime import distributed

Loss = Callable[..., tuple[Tensor, Tensor]]
"""(network, *inputs) -> (scalar loss, logits (B, K)); the loss is a mean over the images."""


def in_parallel(loss: Loss, network: nn.Module, in_full: Callable[[Tensor], Tensor]) -> Loss:
    """The loss of this process's share of a batch, with the gradient of the whole batch's.

    Args:
        loss: a mean over images that do not see each other, but in BatchNorm.
        network: in the mode that it trains in, with the parameters' `requires_grad` as it will be. From here
            on all processes have the writer's weights.
        in_full: what is done to the network's logits.

    Returns:
        A loss that ignores the network that it is given. Its value is of the share; `backward` fills the
        gradients of the whole batch, the same in each process.
    """
    step: nn.Module = _Step(loss, network, in_full)
    if any(parameter.requires_grad for parameter in network.parameters()):
        place = next(network.parameters()).device
        step = DistributedDataParallel(step, device_ids=[place.index] if place.type == "cuda" else None)

    def parallel(_: Callable[[Tensor], Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor]:
        count, processes = len(inputs[0]), distributed.world_size()
        with synchronised_batchnorm():
            value, logits = step(*inputs)
        # The processes' gradients are averaged alike, though their shares may differ by an image.
        weighted = value * (count * processes / distributed.total(count))
        return value.detach() + (weighted - weighted.detach()), logits

    return parallel


class _Step(nn.Module):
    """A loss as a module: DDP wants one forward pass for each backward pass, and some methods make three."""

    def __init__(self, loss: Loss, network: nn.Module, in_full: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self._loss, self._in_full = loss, in_full

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self._loss(lambda images: self._in_full(self.network(images)), *inputs)


def synchronised_batchnorm() -> AbstractContextManager[object]:
    """Within it, BatchNorm in train mode takes its statistics over the batches of all processes."""
    return _Synchronised() if distributed.active() else nullcontext()


class _Synchronised(TorchFunctionMode):
    """Takes the place of the function behind every BatchNorm layer, whatever the layer adds to it."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`, in training over all processes."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if input.is_cuda:
        # What torch.nn.SyncBatchNorm calls; the layers stay what they are, so that folding knows them.
        from torch.nn.modules._functions import SyncBatchNorm

        everybody, processes = dist.group.WORLD, distributed.world_size()
        return SyncBatchNorm.apply(
            input, weight, bias, running_mean, running_var, eps, momentum, everybody, processes
        )
    return _by_sums(input, running_mean, running_var, weight, bias, momentum, eps)


def _by_sums(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Mean and variance of each channel over the images of all processes, in two passes as torch does it."""
    x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    others = [dim for dim in range(x.dim()) if dim != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    count = distributed.total(x.numel() // x.shape[1])
    mean = _Sum.apply(x.sum(others)) / count
    centred = x - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(others)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * unbiased)
    found = centred * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        found = found * weight.view(shape)
    if bias is not None:
        found = found + bias.view(shape)
    return found.to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum of everybody's tensor: what each of them does with it comes back to all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return distributed.summed(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return distributed.summed(gradient)
