"""Cuts a frozen network at one module: what comes before is computed once, what follows again and again.

While the MRC scan moves the weight of one module, everything before that module is constant. Between the
two halves lie the *boundary* tensors: the module's input and whatever else the second half needs from the
first, such as the other branch of a residual block. Where several modules move at once, the cut is at the
first of them.

A *waist* is a point where everything that follows depends on one tensor alone: the input of a residual
block, say. The last waist before a module is its *entry*. Modules of one block share their entry, and the
entry of the next block is computed from it: what is kept need not be computed from the image again.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
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
        entry: name of the waist before the (first) module; None stands for the images themselves.
        reach: images (B, C, H, W) -> the tensor at the entry.
        inside: that tensor -> the boundary, what the second half needs: tensors, and sizes read from tensors.
        after: (*weights, *boundary) -> logits (B, K); differentiable in the weights alone.
        weights: the modules' weights in the network itself (not folded).
        whole: nothing is cut off, the second half is the network.
    """

    entry: str | None
    reach: Callable[[Tensor], Tensor]
    inside: Callable[[Tensor], tuple[Tensor, ...]]
    after: Callable[..., Tensor]
    weights: tuple[Tensor, ...]
    whole: bool = False

    def before(self, images: Tensor) -> tuple[Tensor, ...]:
        """The whole first half: images to boundary."""
        return self.inside(self.reach(images))


class _Layer(nn.Module):
    """A convolution or linear layer whose weight is an argument, scaled by the BatchNorm folded behind it."""

    def __init__(self, layer: nn.Module, scale: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = [layer]  # settings only; of its weight, the precision
        self.register_buffer("bias", bias)
        shape = (-1,) + (1,) * (layer.weight.dim() - 1)
        self.register_buffer("scale", None if scale is None else scale.view(shape))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        layer = self.layer[0]
        weight = (weight if self.scale is None else weight * self.scale).to(layer.weight.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, self.bias)
        return layer._conv_forward(x, weight, self.bias)


class FrozenGraph:
    """A network in eval mode, traced and folded once, that can be cut at any of its modules.

    Args:
        network: any network that `torch.fx` can trace; it is copied, not changed.
        runtime: memory format of the copy.
        precision: that most will be computed in.

    Raises:
        whatever tracing raises, for a network that cannot be traced.
    """

    def __init__(self, network: nn.Module, runtime: Runtime, precision: torch.dtype = torch.float32) -> None:
        self._network = network
        self._graph = folding.trace(network)
        self._pairs = folding.foldable_pairs(self._graph)
        folding.fold(self._graph, self._pairs)
        runtime.place(self._graph, precision)
        folding.refresh(self._graph, network, self._pairs)
        self._nodes = {node.name: node for node in self._graph.graph.nodes}
        self._waists = _waists(self._graph)

    def lowered(self, precision: torch.dtype) -> FrozenGraph:
        """The same graph with everything in lower precision, for `Cut.after` on a boundary lowered alike."""
        twin = copy.copy(self)
        twin._graph = copy.deepcopy(self._graph).to(precision)
        twin._nodes = {node.name: node for node in twin._graph.graph.nodes}
        return twin

    def cut(self, *names: str) -> Cut:
        """Cuts at the module of this exact name, or at the first of several.

        Raises:
            ValueError: the graph does not call each module exactly once.
        """
        moved = [self._call_of(name) for name in names]
        order = list(self._nodes)
        earlier = order[: min(order.index(node.name) for node in moved)]
        entry = next((waist for waist in reversed(self._waists) if waist in earlier), None)
        inside = self._between(entry, self._boundary(moved))
        weights = tuple(self._network.get_submodule(name).weight.detach() for name in names)
        return Cut(entry, self.path(None, entry), inside, self.after(*names), weights)

    def after(self, *names: str) -> fx.GraphModule:
        """The second half alone, see `Cut.after`.

        Raises:
            ValueError: the graph does not call each module exactly once.
        """
        moved = [self._call_of(name) for name in names]
        # A traced network also reads parameters directly (a class token, a norm written as a function).
        targets = {
            **dict(self._graph.named_modules()),
            **dict(self._graph.named_parameters(remove_duplicate=False)),
            **dict(self._graph.named_buffers(remove_duplicate=False)),
            **{_moved(position): self._moved_layer(name) for position, name in enumerate(names)},
        }
        return fx.GraphModule(targets, _after(self._graph.graph, self._boundary(moved), moved))

    def path(self, start: str | None, end: str | None) -> Callable[[Tensor], Tensor]:
        """From one entry, or the images, to a later one: a function of the one tensor."""
        if start == end:
            return lambda tensor: tensor
        half = self._between(start, [self._nodes[end]])
        return lambda tensor: half(tensor)[0]

    def follows(self, start: str | None, end: str | None) -> bool:
        """Whether the second entry can be computed from the first."""
        order = [None, *self._waists]
        return order.index(start) <= order.index(end)

    def _call_of(self, name: str) -> fx.Node:
        calls = [node for node in self._nodes.values() if node.op == "call_module" and node.target == name]
        if len(calls) != 1:
            raise ValueError(f"{name} is called {len(calls)} times")
        return calls[0]

    def _boundary(self, moved: list[fx.Node]) -> list[fx.Node]:
        dependent = _dependent_on(moved)
        return [
            node
            for node in self._nodes.values()
            if node not in dependent and node.op != "get_attr" and any(u in dependent for u in node.users)
        ]

    def _between(self, start: str | None, ends: Iterable[fx.Node]) -> fx.GraphModule:
        first = None if start is None else self._nodes[start]
        return fx.GraphModule(self._graph, _before(self._graph.graph, first, list(ends)))

    def _moved_layer(self, name: str) -> _Layer:
        layer = copy.deepcopy(self._graph.get_submodule(name))
        batchnorm = next((pair.batchnorm for pair in self._pairs if pair.convolution == name), None)
        scale = None
        if batchnorm is not None:
            scale = folding.scale_and_shift(self._network.get_submodule(batchnorm))[0].detach()
        bias = None if layer.bias is None else layer.bias.detach()
        return _Layer(layer, scale, bias)


def _waists(graph_module: fx.GraphModule) -> list[str]:
    """Names of tensors that alone carry everything on, in order; not those that something writes over."""
    modules = dict(graph_module.named_modules())
    nodes = [node for node in graph_module.graph.nodes if node.op not in ("get_attr", "output")]
    position = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    waiting: set[fx.Node] = set()  # computed so far and still needed
    found = []
    for node in nodes:
        waiting = {n for n in waiting | {node} if any(position[user] > position[node] for user in n.users)}
        alone = waiting == {node} and node.op != "placeholder"
        is_tensor = all(user.target is not operator.getitem for user in node.users)  # no tuple of them
        if alone and is_tensor and not any(_writes(user, modules) for user in node.users):
            found.append(node.name)
    return found


def _writes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether an operation may change its input in place."""
    if node.op == "call_module":
        return getattr(modules[node.target], "inplace", False)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    by_name = name.endswith("_") and not name.endswith("__")
    return by_name or bool(node.kwargs.get("inplace")) or node.target is operator.setitem


def _moved(position: int) -> str:
    return f"moved_{position}"


def _dependent_on(first: list[fx.Node]) -> set[fx.Node]:
    dependent = set(first)
    for node in first[0].graph.nodes:  # topological order
        if any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
    return dependent


def _before(graph: fx.Graph, start: fx.Node | None, ends: list[fx.Node]) -> fx.Graph:
    """The part of the graph that computes `ends` from one node, or from the images."""
    needed, waiting = set(), list(ends)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += [] if node is start else node.all_input_nodes
    half, made = fx.Graph(), {}
    for node in graph.nodes:
        if node is start:
            made[node] = half.placeholder("entry")
        elif node in needed or (start is None and node.op == "placeholder"):
            made[node] = half.node_copy(node, made.__getitem__)
    half.output(tuple(made[node] for node in ends))
    return half


def _after(graph: fx.Graph, boundary: list[fx.Node], moved: list[fx.Node]) -> fx.Graph:
    """The part that follows the moved modules; their weights and the boundary tensors are arguments."""
    dependent, half, made = _dependent_on(moved), fx.Graph(), {}
    weights = [half.placeholder(f"weight_{position}") for position in range(len(moved))]
    for position, node in enumerate(boundary):
        made[node] = half.placeholder(f"boundary_{position}")
    for node in graph.nodes:
        constant = node.op == "get_attr" and any(user in dependent for user in node.users)
        if node in moved:
            position = moved.index(node)
            made[node] = half.call_module(_moved(position), (made[node.args[0]], weights[position]))
        elif node in dependent or constant:
            made[node] = half.node_copy(node, made.__getitem__)
    return half


def whole_network(network: nn.Module, *names: str) -> Cut:
    """The fallback where a network cannot be cut: nothing is computed once, everything each time."""

    def after(*arguments: Tensor) -> Tensor:
        *weights, images = arguments
        moved = {f"{name}.weight": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(network, moved, (images,))

    weights = tuple(network.get_submodule(name).weight.detach() for name in names)
    return Cut(None, lambda images: images, lambda images: (images,), after, weights, whole=True)
