"""Normalisation as the first layer of a network, which keeps every name in the network as it was."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rift.errors import UserError


class Normalize(nn.Module):
    """(x − mean) / std for each channel.

    The buffers are not persistent: mean and std belong to the data set's description, so a state dict
    holds the backbone's own entries and nothing else.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        mean, std = ([round(v, 4) for v in values.flatten().tolist()] for values in (self.mean, self.std))
        return f"mean={mean}, std={std}"


# A wrapper module or nn.Sequential would put a prefix before every name, and the names are the paper's
# (`layer2.1.conv2`) and everybody's checkpoints'. A forward pre-hook keeps the names, but is skipped by
# torch.fx at the root. So the instance gets a subclass of its own class whose forward normalises first;
# torch.nn.utils.parametrize goes the same way. One subclass per backbone class.
@functools.cache
def _normalised_class(backbone: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.normalize(x)
        if backbone.forward is not nn.Sequential.forward:
            return backbone.forward(self, x)
        for name, module in self.named_children():  # it would call the normalisation once more, at its end
            x = x if name == "normalize" else module(x)
        return x

    def reduce(self: nn.Module, protocol: int) -> tuple[Callable[..., nn.Module], tuple[Any, ...], Any]:
        # A class made at run time cannot be found by name; copies and pickles name its parent instead.
        return _empty_instance, (backbone,), self.__getstate__()

    members = {"forward": forward, "__reduce_ex__": reduce, "__module__": __name__}
    return type(f"Normalised{backbone.__name__}", (backbone,), members)


def _empty_instance(backbone: type[nn.Module]) -> nn.Module:
    cls = _normalised_class(backbone)
    return cls.__new__(cls)


def normalise_first(
    model: nn.Module, mean: Sequence[float], std: Sequence[float], in_channels: int
) -> nn.Module:
    """Makes `model` normalise its input, in place; names and state dict stay those of the backbone.

    Args:
        model: takes normalised images, (N, C, H, W).
        mean: one number per channel, for images in [0, 1].
        std: likewise, positive.
        in_channels: C.

    Returns:
        `model` itself, which from now on takes images in [0, 1]. Only calling the model normalises;
        other ways in, such as timm's `forward_features`, do not.

    Raises:
        UserError: mean or std has the wrong length or impossible values.
    """
    for what, values in (("mean", mean), ("std", std)):
        if len(values) != in_channels:
            raise UserError(
                f"The normalisation's {what} has {len(values)} values but the images have {in_channels} "
                f"channel(s): give dataset.{what} one number per channel."
            )
        if not all(math.isfinite(value) for value in values):
            raise UserError(f"The normalisation's {what} {tuple(values)} is not finite: mend dataset.{what}.")
    if min(std) <= 0:
        raise UserError(f"The normalisation's std {tuple(std)} is not positive: mend dataset.std.")
    assert not hasattr(model, "normalize"), f"{type(model).__name__} has a `normalize` of its own"
    model.__class__ = _normalised_class(type(model))
    model.normalize = Normalize(mean, std)
    return model
