"""The form of a network that attacks differentiate: frozen, folded, in the precision asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rift.models.normalisation import Normalize
from rift.runtime import folding
from rift.runtime.device import Runtime
from rift.runtime.graphs import graphed
from rift.runtime.modes import borrowed
from rift.runtime.switches import agreement, untuned


class CraftingNetwork(nn.Module):
    """The eval-mode function of a network, for input gradients only.

    A copy, so the network itself is never touched. `refresh()` takes over the network's present weights.

    Args:
        network: what is attacked.
        runtime: folding, memory format, compilation; records a fallback where a network cannot be traced.
        precision: dtype of the weights and activations after the normalisation; logits are float32.
    """

    def __init__(self, network: nn.Module, runtime: Runtime, precision: torch.dtype) -> None:
        super().__init__()
        self._source = [network]  # in a list, so that it is not a submodule
        self._runtime = runtime
        self._precision = precision
        self._pairs: list[folding.Pair] = []
        self._captured: dict[Hashable, Callable[..., Tensor]] = {}
        folded = self._folded() if runtime.fold_batchnorm else None
        # Pixels are normalised in float32, so where nobody can tell the normalisation, torch's autocast says
        # what is computed in lower precision.
        lowered = folded is not None and self._lowers(folded)
        self._adopt(self._copy() if folded is None else folded, autocast=not lowered)
        self._checked = folded is None

    def _copy(self) -> nn.Module:
        return copy.deepcopy(self._source[0]).eval().requires_grad_(False)

    def _adopt(self, body: nn.Module, autocast: bool) -> None:
        self.body = self._runtime.place(body, self._precision)
        self._autocast = autocast and self._precision != torch.float32
        self.refresh()
        self._call = self._runtime.compiled(self.body)

    def _folded(self) -> fx.GraphModule | None:
        network = self._source[0]
        try:
            graph_module = folding.trace(network)
        except Exception as error:  # tracing runs arbitrary model code, which fails in any way it likes
            self._runtime.fall_back(
                f"{type(network).__name__} cannot be traced ({type(error).__name__}), "
                "so its BatchNorm is not folded while crafting"
            )
            return None
        self._pairs = folding.foldable_pairs(graph_module)
        folding.fold(graph_module, self._pairs)
        if self._lowers(graph_module):
            _lower(graph_module, self._precision)
        return graph_module

    def _lowers(self, graph_module: fx.GraphModule) -> bool:
        """Whether the folded twin is stored in lower precision."""
        return self._precision != torch.float32 and _normalisation(graph_module) is not None

    def captured(
        self,
        key: Hashable,
        craft: Callable[..., Tensor],
        strength: Callable[..., Tensor] | None = None,
    ) -> Callable[..., Tensor]:
        """An attack through this network as a CUDA graph, kept under a key: weights change in place.

        Args:
            key: of the attack.
            craft: (images, labels, start) -> adversarial images.
            strength: (adversarial images, images, labels, start) -> what the attack increased, by which two
                batches are as good as each other; the mean cross-entropy if not given.
        """
        if key not in self._captured:
            self._captured[key] = graphed(craft, self._runtime, strength or self._cross_entropy)
        return self._captured[key]

    def _cross_entropy(self, adversarial: Tensor, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        return F.cross_entropy(self(adversarial), labels)

    def refresh(self) -> None:
        """Takes over the network's present weights and BatchNorm statistics."""
        folding.refresh(self.body, self._source[0], self._pairs)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 in [0, 1] to logits (B, K) float32."""
        if not self._checked:
            self.check(images.detach()[:8])
        images = self._runtime.laid_out(images, self._precision)
        with self._autocasting():
            return self._call(images).float()

    def _autocasting(self) -> AbstractContextManager[object]:
        return torch.autocast(self._runtime.device.type, dtype=self._precision, enabled=self._autocast)

    @torch.no_grad()
    def check(self, images: Tensor) -> None:
        """Compares with the network's own logits: done at the first call, and worth doing after training.

        The folded twin computes what the network does; a wrong one would weaken attacks unseen.
        """
        self._checked = True
        with untuned():
            with borrowed(self._source[0], training=False) as network:
                expected = network(images).float()
            with self._autocasting():
                found = self.body(self._runtime.laid_out(images, self._precision))
        # What is no number agrees with nothing.
        if not relative_difference(found, expected) <= agreement(self._precision, images.device):
            self._runtime.fall_back(
                "the network with its BatchNorm folded gives other logits, so it is crafted through unfolded"
            )
            self._pairs, self._captured = [], {}
            self._adopt(self._copy(), autocast=True)


def traceable(network: nn.Module) -> bool:
    """Whether the network's Python can be traced, so that no part of it depends on the data."""
    try:
        folding.trace(network)
    except Exception:  # see `CraftingNetwork._folded`
        return False
    return True


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two logits, as a share of the largest logit expected."""
    return float((found.float() - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


def _normalisation(graph_module: fx.GraphModule) -> fx.Node | None:
    """Where a network of ours normalises its images; None for anybody else's."""
    calls = [n for n in graph_module.graph.nodes if n.op == "call_module" and n.target == "normalize"]
    ours = bool(calls) and isinstance(graph_module.get_submodule("normalize"), Normalize)
    return calls[0] if ours else None


def _lower(graph_module: fx.GraphModule, precision: torch.dtype) -> None:
    """Stores everything behind the normalisation in `precision`; pixels are still normalised in float32."""
    normalize = _normalisation(graph_module)
    with graph_module.graph.inserting_after(normalize):
        cast = graph_module.graph.call_method("to", (normalize, precision))
    normalize.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    folding.pad_channels(graph_module, cast)
    graph_module.recompile()
    for name, module in graph_module.named_children():
        if name != "normalize":
            module.to(precision)
    for tensor in (*graph_module.parameters(recurse=False), *graph_module.buffers(recurse=False)):
        if tensor.is_floating_point():  # a class token, a position embedding
            tensor.data = tensor.data.to(precision)
