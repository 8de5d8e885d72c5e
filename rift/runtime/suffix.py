"""Cuts a frozen network at one module: what comes before is computed once, what follows again and again.

While the MRC scan moves the weight of one module, everything before that module is constant. `cut` returns
the two halves. Between them lie the *boundary* tensors: the module's input and whatever else the second half
needs from the first, such as the other branch of a residual block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rift.runtime import folding
from rift.runtime.device import Runtime


@dataclass(frozen=True)
class Cut:
    """A network cut at one module.

    Attributes:
        before: images (B, C, H, W) -> what the second half needs: tensors, and sizes read from tensors.
        after: (weight, *boundary) -> logits (B, K); differentiable in the weight alone.
        weight: the module's weight in the network itself (not folded).
        cached: whether `before` does any work that is worth keeping.
    """

    before: Callable[[Tensor], tuple[Tensor, ...]]
    after: Callable[..., Tensor]
    weight: Tensor
    cached: bool


class _Layer(nn.Module):
    """A convolution or linear layer whose weight is an argument, scaled by the BatchNorm folded behind it."""

    def __init__(self, layer: nn.Module, scale: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = [layer]  # settings only; its weight is not used
        self.register_buffer("bias", bias)
        shape = (-1,) + (1,) * (layer.weight.dim() - 1)
        self.register_buffer("scale", None if scale is None else scale.view(shape))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        weight = weight if self.scale is None else weight * self.scale
        layer = self.layer[0]
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, self.bias)
        return layer._conv_forward(x, weight, self.bias)


class FrozenGraph:
    """A network in eval mode, traced and folded once, that can be cut at any of its modules.

    Args:
        network: any network that `torch.fx` can trace; it is copied, not changed.
        runtime: memory format of the copy.

    Raises:
        whatever tracing raises, for a network that cannot be traced.
    """

    def __init__(self, network: nn.Module, runtime: Runtime) -> None:
        self._network = network
        self._graph = folding.trace(network)
        self._pairs = folding.foldable_pairs(self._graph)
        folding.fold(self._graph, self._pairs)
        runtime.place(self._graph)
        folding.refresh(self._graph, network, self._pairs)

    def cut(self, name: str) -> Cut:
        """Cuts at the module of this exact name.

        Raises:
            ValueError: the graph does not call that module exactly once.
        """
        graph = self._graph.graph
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
        if len(calls) != 1:
            raise ValueError(f"{name} is called {len(calls)} times")
        dependent = _dependent_on(graph, calls[0])
        boundary = [
            node
            for node in graph.nodes
            if node not in dependent and node.op != "get_attr" and any(u in dependent for u in node.users)
        ]
        before = fx.GraphModule(self._graph, _before(graph, boundary))
        # A traced network also reads parameters directly (a class token, a norm written as a function).
        targets = {
            **dict(self._graph.named_modules()),
            **dict(self._graph.named_parameters(remove_duplicate=False)),
            **dict(self._graph.named_buffers(remove_duplicate=False)),
            "moved": self._moved_layer(name),
        }
        after = fx.GraphModule(targets, _after(graph, dependent, boundary, calls[0]))
        weight = self._network.get_submodule(name).weight.detach()
        return Cut(before, after, weight, cached=any(node.op != "placeholder" for node in boundary))

    def _moved_layer(self, name: str) -> _Layer:
        layer = copy.deepcopy(self._graph.get_submodule(name))
        batchnorm = next((pair.batchnorm for pair in self._pairs if pair.convolution == name), None)
        scale = None
        if batchnorm is not None:
            scale = folding.scale_and_shift(self._network.get_submodule(batchnorm))[0].detach()
        bias = None if layer.bias is None else layer.bias.detach()
        return _Layer(layer, scale, bias)


def _dependent_on(graph: fx.Graph, first: fx.Node) -> set[fx.Node]:
    dependent = {first}
    for node in graph.nodes:  # topological order
        if any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
    return dependent


def _before(graph: fx.Graph, boundary: list[fx.Node]) -> fx.Graph:
    """The part of the graph that the boundary tensors are computed by."""
    needed, waiting = set(), list(boundary)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    half, made = fx.Graph(), {}
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            made[node] = half.node_copy(node, made.__getitem__)
    half.output(tuple(made[node] for node in boundary))
    return half


def _after(graph: fx.Graph, dependent: set[fx.Node], boundary: list[fx.Node], moved: fx.Node) -> fx.Graph:
    """The part that follows the moved module; its weight and the boundary tensors are arguments."""
    half, made = fx.Graph(), {}
    weight = half.placeholder("weight")
    for position, node in enumerate(boundary):
        made[node] = half.placeholder(f"boundary_{position}")
    for node in graph.nodes:
        constant = node.op == "get_attr" and any(user in dependent for user in node.users)
        if node is moved:
            made[node] = half.call_module("moved", (made[node.args[0]], weight))
        elif node in dependent or constant:
            made[node] = half.node_copy(node, made.__getitem__)
    return half


def whole_network(network: nn.Module, name: str) -> Cut:
    """The fallback where a network cannot be cut: nothing is computed once, everything each time."""
    weight_name = f"{name}.weight"

    def after(weight: Tensor, images: Tensor) -> Tensor:
        return torch.func.functional_call(network, {weight_name: weight}, (images,))

    return Cut(lambda images: (images,), after, network.get_submodule(name).weight.detach(), cached=False)
