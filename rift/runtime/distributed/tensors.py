"""Numbers and tensors, through torch's process group; it must be answered within `group.TIMEOUT`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rift.runtime.distributed.group import active, is_writer
from rift.runtime.distributed.values import from_writer


def largest(*numbers: int) -> tuple[int, ...]:
    """The largest of everybody's numbers, one by one. A GPU is not waited for."""
    if not active():
        return numbers
    found = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(found.tolist())


def total(number: int) -> int:
    """The sum of everybody's number. A GPU is not waited for."""
    if not active():
        return number
    found = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(found)
    return int(found)


def summed(tensor: Tensor) -> Tensor:
    """The sum of everybody's tensor; alone, the tensor itself."""
    if not active():
        return tensor
    found = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(found)
    return found


def merged(marks: Tensor) -> Tensor:
    """What is marked in anybody's tensor of bools; alone, the tensor itself."""
    if not active():
        return marks
    found = marks.to(torch.uint8)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.bool()


def handed_on(tensor: Tensor, source: int) -> Tensor:
    """A tensor of process `source`, on all, in place: the others give one to be filled."""
    if active():
        plain = tensor.contiguous()  # their memory formats may differ
        dist.broadcast(plain, source)
        if plain is not tensor:
            tensor.copy_(plain)
    return tensor


def tensors_from_writer(
    load: Callable[[], tuple[dict[str, Tensor], Any] | None], device: torch.device | str
) -> tuple[dict[str, Tensor], Any] | None:
    """Tensors and a note that the writer reads, on all; the others do not call `load`.

    Args:
        load: gives the tensors on the device, or None.
        device: where the others want theirs.
    """
    if not active():
        return load()
    found = load() if is_writer() else None

    def about() -> Any:
        forms = {name: (value.dtype, value.shape) for name, value in found[0].items()} if found else {}
        return None if found is None else (forms, found[1])

    told = from_writer(about)
    if told is None:
        return None
    tensors = {}
    for name, (dtype, shape) in told[0].items():
        if is_writer():
            value = found[0][name]
            handed_on(_bytes(value.detach().cpu().contiguous()), 0)
        else:
            value = torch.empty(shape, dtype=dtype)
            handed_on(_bytes(value), 0)  # shares the tensor's memory
        tensors[name] = value.to(device)
    return tensors, told[1]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
