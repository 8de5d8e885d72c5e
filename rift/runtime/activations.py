"""The constant part of a frozen network, kept for many passes over the same images, within a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rift.criticality import Batch
from rift.runtime.full_batches import filled
from rift.runtime.suffix import Cut, FrozenGraph


class ActivationCache:
    """Passes over fixed images that start behind what a frozen network makes constant.

    Two things are kept for as many of the first batches as fit: the tensor at the present module's entry,
    which is carried on from module to module, and, in what space is left, the module's boundary. A batch
    whose boundary does not fit is computed from its entry in each pass: a part of one block. Only a batch
    whose entry does not fit either begins at the image.

    Args:
        graph: what the modules are cut from, for the way from one entry to the next; None where a network
            cannot be cut.
        images: (N, C, H, W) float32, on the device.
        labels: (N,).
        batch_size: of every batch but the last.
        limit_mib: bound of what is kept, in MiB.
        full_batches: the last batch's images are filled by repetition, so that all batches have one size; the
            labels say how many rows count.
    """

    def __init__(
        self,
        graph: FrozenGraph | None,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        limit_mib: int,
        full_batches: bool = False,
    ) -> None:
        self._graph = graph
        size = min(batch_size, len(images)) if full_batches else 0
        parts = [filled(part, size) for part in images.split(batch_size)]
        self._batches = list(zip(parts, labels.split(batch_size), strict=True))
        self._limit = limit_mib * 2**20
        self._entry: str | None = None
        self._entries: list[Tensor] = []
        self._boundaries: list[tuple[Tensor, ...]] = []

    @torch.no_grad()
    def enter(self, cut: Cut, precision: torch.dtype | None = None) -> None:
        """Moves on to a module; in network order what is kept is carried on.

        Args:
            cut: the network, cut at the module.
            precision: in which the boundary is kept; None for the network's own.
        """
        self._boundaries.clear()
        self._advance(cut)
        self._cut, self._precision = cut, precision
        known = _storages([*self._entries, *(images for images, _ in self._batches)])
        spare = self._limit - _held(self._entries)
        for index in range(len(self._batches)):
            boundary = lowered(self._computed(index), precision)
            new = {at: size for at, size in _storages(boundary).items() if at not in known}
            spare -= sum(new.values())
            if spare < 0 or (self._entry is None and not new):  # the images themselves are no boundary
                break
            self._boundaries.append(boundary)

    @property
    def kept_bytes(self) -> int:
        """What is held at present, the images themselves not counted."""
        images = _storages([images for images, _ in self._batches])
        held = _storages([*self._entries, *self._boundaries])
        return sum(size for at, size in held.items() if at not in images)

    @property
    def cached(self) -> float:
        """The share of the images whose boundary is kept."""
        kept = self._batches[: len(self._boundaries)]
        return sum(len(labels) for _, labels in kept) / sum(len(labels) for _, labels in self._batches)

    def passes(self) -> Iterator[Batch]:
        """One pass, in the precision that the boundary is kept in."""
        for index, (_, labels) in enumerate(self._batches):
            if index < len(self._boundaries):
                yield self._boundaries[index], labels
            else:
                yield lowered(self._computed(index), self._precision), labels

    def exact_passes(self) -> Iterator[Batch]:
        """One pass in the network's own precision."""
        if self._precision is None:
            yield from self.passes()
        else:
            for index, (_, labels) in enumerate(self._batches):
                yield self._computed(index), labels

    @torch.no_grad()
    def _computed(self, index: int) -> tuple[Tensor, ...]:
        return self._cut.inside(self._at_entry(index))

    def _at_entry(self, index: int) -> Tensor:
        if index < len(self._entries):
            return self._entries[index]
        return self._cut.reach(self._batches[index][0])

    def _advance(self, cut: Cut) -> None:
        """Takes the kept tensors from the last entry to this one, batch by batch."""
        if cut.entry == self._entry:
            return
        earlier, self._entries = deque(self._entries), []
        if cut.entry is None or not self._graph.follows(self._entry, cut.entry):
            earlier.clear()
        onward = self._graph.path(self._entry, cut.entry) if earlier else None
        self._entry = cut.entry
        for images, _ in self._batches if cut.entry is not None else ():
            tensor = onward(earlier.popleft()) if earlier else cut.reach(images)
            while earlier and _held(self._entries, tensor, earlier) > self._limit:
                earlier.pop()
            if _held(self._entries, tensor) > self._limit:
                break
            self._entries.append(tensor)


def _held(*values: Any) -> int:
    return sum(_storages(list(values)).values())


def lowered(value: Any, precision: torch.dtype | None) -> Any:
    """Boundary values with their floating-point tensors in another precision; None leaves all as it is."""
    if precision is None:
        return value
    if isinstance(value, Tensor):
        return value.to(precision) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(lowered(part, precision) for part in value)
    return value


def _storages(value: Any) -> dict[int, int]:
    """Address and size of the memory behind the tensors among boundary values; a view holds all of its."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    parts = value if isinstance(value, (tuple, list, deque)) else ()
    return {at: size for part in parts for at, size in _storages(part).items()}
