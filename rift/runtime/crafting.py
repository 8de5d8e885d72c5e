"""The form of a network that attacks differentiate: frozen, folded, in the precision asked for."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from rift.runtime import folding
from rift.runtime.device import Runtime


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
        self._pairs: list[folding.Pair] = []
        self._autocast = False
        body = self._folded(network, runtime, precision) if runtime.fold_batchnorm else None
        if body is None:
            body = copy.deepcopy(network).eval().requires_grad_(False)
            self._autocast = precision != torch.float32
        self.body = runtime.place(body)
        self._precision = precision
        self._device_type = runtime.device.type
        self.refresh()
        # Compiled as this one function in this one mode; a compiled module whose mode is switched later
        # would not do what the switch says.
        self._call = torch.compile(self.body) if runtime.compile else self.body

    def _folded(self, network: nn.Module, runtime: Runtime, precision: torch.dtype) -> fx.GraphModule | None:
        try:
            graph_module = folding.trace(network)
        except Exception as error:  # tracing runs arbitrary model code, which fails in any way it likes
            runtime.fall_back(
                f"{type(network).__name__} cannot be traced ({type(error).__name__}), "
                "so its BatchNorm is not folded while crafting"
            )
            return None
        self._pairs = folding.foldable_pairs(graph_module)
        folding.fold(graph_module, self._pairs)
        if precision != torch.float32:
            _lower(graph_module, precision)
        return graph_module

    def refresh(self) -> None:
        """Takes over the network's present weights and BatchNorm statistics."""
        folding.refresh(self.body, self._source[0], self._pairs)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 in [0, 1] to logits (B, K) float32."""
        with torch.autocast(self._device_type, dtype=self._precision, enabled=self._autocast):
            return self._call(images).float()


def _lower(graph_module: fx.GraphModule, precision: torch.dtype) -> None:
    """Stores everything behind the normalisation in `precision`; pixels are still normalised in float32."""
    normalize = next(node for node in graph_module.graph.nodes if node.target == "normalize")
    with graph_module.graph.inserting_after(normalize):
        cast = graph_module.graph.call_method("to", (normalize, precision))
    normalize.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    graph_module.recompile()
    for name, module in graph_module.named_children():
        if name != "normalize":
            module.to(precision)
