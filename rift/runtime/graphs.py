"""A whole attack as one CUDA graph: at batch 128 its two thousand small kernels wait for launches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rift.runtime.device import Runtime

WARM_UP = 3  # calls before the capture: cuDNN chooses its algorithms in them
AGREEMENT = (
    0.95  # share of the output that must equal an uncaptured call's to 1e-3; rounding may turn a few signs
)


def graphed(function: Callable[..., Tensor], runtime: Runtime) -> Callable[..., Tensor]:
    """Captures a function of tensors at its first call and replays it for inputs of the same form.

    The function must wait for nothing on the host and keep to the same memory: weights may change between
    calls, in place. Inputs of another form, such as the last batch of an epoch, go through the function
    itself. The captured result is checked against the function's own once; where capture fails or
    disagrees, the function is used as it is and the fallback is recorded.

    Args:
        function: tensors on the device to a tensor.
        runtime: says whether graphs are wanted; off a GPU the function itself is returned.
    """
    if runtime.device.type != "cuda" or not runtime.cuda_graphs:
        return function
    return _Graphed(function, runtime)


def _form(inputs: tuple[Tensor, ...]) -> list[tuple[object, ...]]:
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs]


class _Graphed:
    def __init__(self, function: Callable[..., Tensor], runtime: Runtime) -> None:
        self._function = function
        self._runtime = runtime
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given_up = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._graph is None and not self._given_up:
            self._try_to_capture(inputs)
        if self._graph is None or _form(inputs) != self._captured_form:
            return self._function(*inputs)
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._graph.replay()
        return self._output.clone()  # the next replay writes over it

    def _try_to_capture(self, inputs: tuple[Tensor, ...]) -> None:
        try:
            self._capture(inputs)
            expected, output = self._function(*inputs), self(*inputs)
            agreement = torch.isclose(expected, output, rtol=0, atol=1e-3).double().mean().item()
            if agreement < AGREEMENT:
                raise RuntimeError(f"only {agreement:.0%} of the result agree")
        except RuntimeError as error:  # torch's for everything that CUDA refuses
            self._graph, self._given_up = None, True
            reason = str(error).splitlines()[0]
            self._runtime.fall_back(f"the attack runs without a CUDA graph ({reason})")

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._captured_form = _form(inputs)
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._function(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self._function(*self._inputs)
        self._graph = graph
