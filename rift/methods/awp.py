"""Adversarial weight perturbation (Wu et al. 2020), around any method that has a loss.

Source: github.com/csdongxian/AWP, `AT_AWP/utils_awp.py` and `trades_AWP/utils_awp.py`. The published code
takes the direction from a second network, so that the search moves no statistics of the first; here the same
network gives it and its statistics are put back, which is the same and needs no copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from rift.methods.types import Method
from rift.runtime.modes import kept

_TINY = 1e-20  # as published


def awp(base: Method, *, gamma: float, warmup: int) -> Method:
    """`base`, its gradient taken where the weights, moved by γ‖w‖ per tensor, make the loss larger.

    Args:
        base: the method whose loss is ascended and then descended; its images are crafted as ever.
        gamma: relative length of the perturbation; published defaults are 0.01 for AT and 0.005 for TRADES
            (the paper, and most who cite it, say 0.005 for both).
        warmup: epochs without it; published are 0 for AT on CIFAR, 5 on SVHN, and 9 for TRADES, whose script
            counts from 1 and begins with the tenth. MART with it has no published code.
    """

    @contextmanager
    def around(network: nn.Module, ascend: Callable[[], object], epoch: int) -> Iterator[None]:
        if epoch < warmup:
            yield
            return
        with kept(network.buffers()):
            ascend()
        with perturbed(perturbed_weights(network), gamma):
            yield

    return replace(base, around_update=around, passes=2 * base.passes)


def perturbed_weights(network: nn.Module) -> list[nn.Parameter]:
    """What is perturbed: weights of more than one dimension, so neither biases nor BatchNorm's."""
    return [weight for name, weight in network.named_parameters() if weight.dim() > 1 and "weight" in name]


@contextmanager
def perturbed(weights: list[nn.Parameter], gamma: float) -> Iterator[None]:
    """Moves each weight along its gradient by γ‖w‖ (Frobenius norms), and back.

    What happens to the weights meanwhile stays: an optimiser's step on the perturbed weights is carried over
    to the unperturbed ones. A weight that nothing changes comes back bit for bit.

    Args:
        weights: whose `grad` is the loss's; moved in place.
        gamma: relative length.
    """
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        torch._foreach_add_(weights, _directions(before, [weight.grad for weight in weights], gamma))
    moved = [weight.detach().clone() for weight in weights]
    yield
    with torch.no_grad():
        steps = torch._foreach_sub(weights, moved)
        torch._foreach_copy_(weights, before)
        torch._foreach_add_(weights, steps)


def _directions(weights: list[Tensor], gradients: list[Tensor], gamma: float) -> tuple[Tensor, ...]:
    """γ‖w‖·g/‖g‖ for each pair; many small tensors at once, nothing waits for the device."""
    lengths = torch._foreach_mul(torch._foreach_norm(weights), gamma)
    reach = torch._foreach_add(torch._foreach_norm(gradients), _TINY)
    return torch._foreach_mul(gradients, torch._foreach_div(lengths, reach))
