"""Batches of one size: cuDNN tries its algorithms anew for each other one, for seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def filled(tensor: Tensor, size: int) -> Tensor:
    """The tensor, its first dimension brought up to `size` by repetition; a view where nothing is missing."""
    if len(tensor) >= size:
        return tensor
    return torch.cat([tensor] * -(-size // len(tensor)))[:size]


def in_full_batches(function: Callable[..., Tensor], size: int) -> Callable[..., Tensor]:
    """The function on batches of `size` rows; what it says of the rows that were added is dropped.

    Args:
        function: tensors, each with the batch first, to a tensor with the batch first; it must treat every
            row by itself, as a network in eval mode does.
        size: of a full batch; larger ones go through as they are.
    """

    def call(*tensors: Tensor) -> Tensor:
        return function(*(filled(tensor, size) for tensor in tensors))[: len(tensors[0])]

    return call
