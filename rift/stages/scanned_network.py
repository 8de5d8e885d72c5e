"""A frozen network as the MRC scan sees it: the robust loss as a function of one or several weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from rift.criticality import Batch, Logits
from rift.randomness import permutation
from rift.runtime import Runtime
from rift.runtime.activations import ActivationCache, lowered
from rift.runtime.crafting import relative_difference
from rift.runtime.full_batches import filled
from rift.runtime.suffix import Cut, FrozenGraph, whole_network
from rift.runtime.switches import agreement, untuned

CHECKED = 4  # images by which a cut network is compared with the whole one


@dataclass(frozen=True)
class View:
    """What `module_robust_criticality` needs of one module, or of a set.

    Attributes:
        weights: of the modules.
        logits: (*weights, *boundary) -> logits (B, K), in the network's precision.
        batches: makes a pass over the adversarial examples for `logits`.
        search_logits, search_batches: the same for the search alone, perhaps in lower precision.
        cached: share of the images whose activations are kept from pass to pass.
        batch_size: images of a batch.
        runtime: takes what could not be done as asked.
    """

    weights: tuple[Tensor, ...]
    logits: Logits
    batches: Callable[[], Iterable[Batch]]
    search_logits: Logits
    search_batches: Callable[[], Iterable[Batch]]
    cached: float
    batch_size: int
    runtime: Runtime


class ScannedNetwork:
    """Cuts a frozen network at one module after the other and keeps what is constant.

    Every cut is compared with the network's own logits; a module where they differ, or where a network
    cannot be cut, is scanned through the whole network, and the fallback is recorded.

    Args:
        network: in eval mode, without gradients; not changed.
        images, labels: the adversarial examples, on the device.
        batch_size: of the scan.
        precision: of the search; values always come from the network's own.
        runtime: bound of the cache, memory format.
        orders: what the random orders of the search's batches derive from, new in each pass as in the
            published code; None for the order given, whose activations can be kept.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        precision: torch.dtype,
        runtime: Runtime,
        orders: tuple[int | str, ...] | None = None,
    ) -> None:
        self._network, self._runtime, self._precision = network, runtime, precision
        self._images, self._labels, self._batch_size, self._orders = images, labels, batch_size, orders
        self._sample = images[:CHECKED]
        with torch.no_grad(), untuned():
            self._reference = network(self._sample).float()
        self._graph = frozen_graph(network, runtime, precision)
        low = self._graph is not None and precision != torch.float32
        self._low_graph = self._graph.lowered(precision) if low else None
        self._cache = ActivationCache(
            self._graph, images, labels, batch_size, runtime.cache_bound(), runtime.full_batches
        )

    def at(self, *names: str, passed: int = 0) -> View:
        """The network cut at a module, or at the first of several. Earlier views are of no use afterwards.

        Args:
            names: of the modules.
            passed: search passes that were made already, before an interruption.
        """
        cut, boundary = checked_cut(
            self._graph, self._network, names, self._sample, self._reference, self._runtime
        )
        low = self._lowered_after(names, cut, boundary)
        precision = None if low is None else self._precision
        self._cache.enter(cut, precision)
        search_passes = self._cache.passes
        if self._orders is not None:
            numbers = count(passed)

            def search_passes() -> Iterator[Batch]:
                return self._shuffled_pass(cut, precision, (*self._orders, *names, next(numbers)))

        return View(
            cut.weights,
            cut.after,
            self._cache.exact_passes,
            low or cut.after,
            search_passes,
            self._cache.cached,
            self._batch_size,
            self._runtime,
        )

    def _shuffled_pass(
        self, cut: Cut, precision: torch.dtype | None, order: tuple[int | str, ...]
    ) -> Iterator[Batch]:
        """A pass over batches of another mixture, computed from the images: what is kept is of fixed ones."""
        for part in permutation(order, len(self._labels)).to(self._labels.device).split(self._batch_size):
            images = self._runtime.laid_out(self._images[part], self._precision)
            if self._runtime.full_batches:
                images = filled(images, min(self._batch_size, len(self._labels)))
            with torch.no_grad():
                boundary = lowered(cut.before(images), precision)
            yield boundary, self._labels[part]

    @torch.no_grad()
    def _lowered_after(self, names: Sequence[str], cut: Cut, boundary: tuple[Tensor, ...]) -> Logits | None:
        """The second half in the search's precision; None where it would be the same or does not serve."""
        if self._precision == torch.float32:
            return None
        reason = "it is run whole"
        if not cut.whole:
            try:
                after = self._low_graph.after(*names)
                with untuned():
                    found = after(*cut.weights, *lowered(boundary, self._precision))
                if relative_difference(found, self._reference) <= agreement(self._precision, found.device):
                    return after
                reason = "its logits are too far off"
            except (ValueError, RuntimeError) as error:  # no such cut, or an operation without that precision
                reason = str(error).splitlines()[0]
        self._runtime.fall_back(f"the scan searches {' + '.join(names)} in float32 ({reason})")
        return None


def frozen_graph(
    network: nn.Module, runtime: Runtime, precision: torch.dtype = torch.float32
) -> FrozenGraph | None:
    """The network traced and folded; None, and a recorded fallback, where that cannot be done."""
    try:
        return FrozenGraph(network, runtime, precision)
    except Exception as error:  # tracing runs arbitrary model code, which fails in any way it likes
        runtime.fall_back(
            f"{type(network).__name__} cannot be traced ({type(error).__name__}), "
            "so the scan runs the whole network"
        )
        return None


@torch.no_grad()
def checked_cut(
    graph: FrozenGraph | None,
    network: nn.Module,
    names: Sequence[str],
    images: Tensor,
    reference: Tensor,
    runtime: Runtime,
) -> tuple[Cut, tuple[Tensor, ...]]:
    """The network cut at the first module that moves; whole where that cannot be done or does not agree.

    Args:
        graph: the network, traced.
        network: the network itself.
        names: of the modules that will move.
        images: a few.
        reference: the network's logits of them.
        runtime: takes the fallback.

    Returns:
        The cut, and its boundary for these images.
    """
    whole = whole_network(network, *names), (images,)
    if graph is None:
        return whole
    try:
        cut = graph.cut(*names)
        with untuned():
            boundary, found, kept = _tried(cut, images)
    except Exception as error:  # see frozen_graph
        runtime.fall_back(
            f"the network cannot be cut at every module ({type(error).__name__}), "
            "so the scan runs the whole network there"
        )
        return whole
    if not (kept and relative_difference(found, reference) <= agreement(torch.float32, images.device)):
        runtime.fall_back(
            f"the network cut at {' + '.join(names)} gives other logits, so that module's scan runs it whole"
        )
        return whole
    return cut, boundary


def _tried(cut: Cut, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor, bool]:
    """Boundary, logits, and whether what is kept was left as it is: it must serve again and again."""
    entry = cut.reach(images)
    pairs = [(entry, entry.clone())]
    boundary = cut.inside(entry)
    pairs += [(value, value.clone()) for value in boundary if isinstance(value, Tensor)]
    found = cut.after(*cut.weights, *boundary)
    return boundary, found, all(torch.equal(*pair) for pair in pairs)
