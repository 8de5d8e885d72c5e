"""A frozen twin of a network with each BatchNorm folded into the convolution before it.

In eval mode BatchNorm is a fixed affine map, so a convolution followed by one is a single convolution.
Attacks run through the twin ten times for each weight update: it has no BatchNorm to compute, no weight
gradients, and may live in lower precision.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rift.models.normalisation import Normalize


class _Tracer(fx.Tracer):
    """Keeps the normalisation as one call, so that it can be told from the rest."""

    # What is computed from a buffer stays computed; by default it becomes a constant that `refresh` misses.
    proxy_buffer_attributes = True

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, Normalize) or super().is_leaf_module(module, module_qualified_name)


@dataclass(frozen=True)
class Pair:
    """Names of a convolution and of the BatchNorm that alone uses its output."""

    convolution: str
    batchnorm: str


def trace(network: nn.Module) -> fx.GraphModule:
    """The network's eval-mode graph over a copy of its modules.

    Raises:
        torch.fx.proxy.TraceError, TypeError, ...: the network's Python cannot be traced.
    """
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    return fx.GraphModule(twin, _Tracer().trace(twin))


def foldable_pairs(graph_module: fx.GraphModule) -> list[Pair]:
    """Convolution–BatchNorm pairs where nothing else sees the convolution's output."""
    modules = dict(graph_module.named_modules())
    calls = [node.target for node in graph_module.graph.nodes if node.op == "call_module"]
    pairs = []
    for node in graph_module.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0] if node.args else None
        if (
            isinstance(before, fx.Node)
            and before.op == "call_module"
            and type(modules[before.target]) is nn.Conv2d
            and len(before.users) == 1
            and modules[node.target].track_running_stats
            and calls.count(before.target) == 1  # a shared layer keeps its own weights
            and calls.count(node.target) == 1
        ):
            pairs.append(Pair(before.target, node.target))
    return pairs


def scale_and_shift(batchnorm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The affine map that eval-mode BatchNorm is: y = scale * x + shift, each (C,)."""
    scale = torch.rsqrt(batchnorm.running_var + batchnorm.eps)
    if batchnorm.affine:
        scale = scale * batchnorm.weight
    shift = -batchnorm.running_mean * scale
    if batchnorm.affine:
        shift = shift + batchnorm.bias
    return scale, shift


def scales_and_shifts(batchnorms: list[nn.BatchNorm2d]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """`scale_and_shift` of many layers, the same numbers, each operation for all of them at once."""
    if not all(layer.affine for layer in batchnorms):
        pairs = [scale_and_shift(layer) for layer in batchnorms]
        return [scale for scale, _ in pairs], [shift for _, shift in pairs]
    scales = torch._foreach_add(
        [layer.running_var for layer in batchnorms], [layer.eps for layer in batchnorms]
    )
    torch._foreach_rsqrt_(scales)
    torch._foreach_mul_(scales, [layer.weight for layer in batchnorms])
    shifts = torch._foreach_mul([layer.running_mean for layer in batchnorms], scales)
    torch._foreach_neg_(shifts)
    torch._foreach_add_(shifts, [layer.bias for layer in batchnorms])
    return scales, shifts


def fold(graph_module: fx.GraphModule, pairs: list[Pair]) -> None:
    """Removes the pairs' BatchNorms from the graph and gives their convolutions a bias; in place.

    The weights are not yet right: `refresh` computes them.
    """
    by_name = {pair.batchnorm for pair in pairs}
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module" and node.target in by_name:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    for pair in pairs:
        convolution = graph_module.get_submodule(pair.convolution)
        if convolution.bias is None:
            convolution.bias = nn.Parameter(
                torch.zeros_like(convolution.weight[:, 0, 0, 0]), requires_grad=False
            )
        graph_module.delete_submodule(pair.batchnorm)
    graph_module.graph.lint()
    graph_module.recompile()


@torch.no_grad()
def refresh(folded: nn.Module, network: nn.Module, pairs: list[Pair]) -> None:
    """Copies the network's present weights and statistics into its folded twin, in place.

    Storage is kept, so whatever captured the twin's addresses (a CUDA graph) sees the new weights.
    """
    # Every name of a tied weight: the copy may have come upon another one of them first.
    source = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    folded_names = {f"{pair.convolution}.{kind}" for pair in pairs for kind in ("weight", "bias")}
    targets = {**dict(folded.named_parameters()), **dict(folded.named_buffers())}
    # What has no source is a constant of the traced code.
    plain = [name for name in targets if name not in folded_names and name in source]
    found = [(targets[name], source[name]) for name in plain]
    found += _folded_tensors(targets, network, pairs)
    # Channels that were added to a target stay zero.
    torch._foreach_copy_(
        [target[tuple(slice(size) for size in value.shape)] for target, value in found],
        [value for _, value in found],
    )


def _folded_tensors(
    targets: Mapping[str, Tensor], network: nn.Module, pairs: list[Pair]
) -> list[tuple[Tensor, Tensor]]:
    """(target, value) of every folded weight and bias, all pairs together where torch has such a kernel."""
    if not pairs:
        return []
    convolutions = [network.get_submodule(pair.convolution) for pair in pairs]
    scales, shifts = scales_and_shifts([network.get_submodule(pair.batchnorm) for pair in pairs])
    weights = torch._foreach_mul(
        [convolution.weight for convolution in convolutions],
        [scale.view(-1, 1, 1, 1) for scale in scales],
    )
    biases = [
        shift if convolution.bias is None else shift + convolution.bias * scale
        for convolution, scale, shift in zip(convolutions, scales, shifts, strict=True)
    ]
    names = [f"{pair.convolution}.{kind}" for kind in ("weight", "bias") for pair in pairs]
    return [(targets[name], value) for name, value in zip(names, [*weights, *biases], strict=True)]


def pad_channels(graph_module: fx.GraphModule, images: fx.Node, multiple: int = 8) -> None:
    """Gives the first convolution zero channels up to a multiple, and its input too; in place.

    The input gradient of a convolution of three channels is very slow in half precision on a GPU, whose
    tensor cores work on eight at a time. Left alone if anything but one convolution reads the images.

    Args:
        graph_module: a frozen twin, before `refresh`; to be recompiled.
        images: the node of the normalised images.
    """
    (user, *others) = images.users
    layer = graph_module.get_submodule(user.target) if user.op == "call_module" else None
    calls = [node.target for node in graph_module.graph.nodes if node.op == "call_module"]
    if others or type(layer) is not nn.Conv2d or layer.groups > 1 or calls.count(user.target) > 1:
        return
    extra = -layer.in_channels % multiple
    shape = (layer.out_channels, layer.in_channels + extra, *layer.kernel_size)
    layer.weight = nn.Parameter(layer.weight.new_zeros(shape), requires_grad=False)
    layer.in_channels += extra
    with graph_module.graph.inserting_after(images):
        padded = graph_module.graph.call_function(F.pad, (images, (0, 0, 0, 0, 0, extra)))
    user.replace_input_with(images, padded)
