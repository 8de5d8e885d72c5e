"""An attack, or a training step's passes, as one CUDA graph: small kernels by the thousand wait for launches.

Weights may change between calls, in place; what is captured reads and writes fixed addresses. Each capture
is checked once against the plain call, which is made first, so that the two never hold memory at the same
time; where it fails or disagrees, the plain call is used and the fallback is recorded.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rift.runtime.device import Runtime

WARM_UP = 3  # calls before the capture: cuDNN chooses its algorithms in them
SAME_PIXELS = 0.95  # share of the output that must agree to 1e-3; rounding may turn a few gradients' signs
SAME = 0.02  # relative distance that bfloat16 and another order of summation may make

Loss = Callable[..., tuple[Tensor, Tensor]]
"""(network, *inputs) -> (scalar loss, logits (B, K)); the network's logits are float32."""
Pass = Callable[..., tuple[Tensor, Tensor]]
"""(*inputs) -> (scalar loss, logits (B, K))."""


def graphed(function: Callable[..., Tensor], runtime: Runtime) -> Callable[..., Tensor]:
    """Captures a function of tensors at its first call and replays it for inputs of the same form.

    The function must wait for nothing on the host and treat every image by itself: a smaller batch, such as
    the last one of a pass, is replayed as the first rows of a full one. A larger one is captured anew.

    Args:
        function: tensors on the device, each with the batch first, to a tensor.
        runtime: says whether graphs are wanted; off a GPU the function itself is returned.
    """
    if runtime.device.type != "cuda" or not runtime.cuda_graphs:
        return function
    return _Graphed(function, runtime)


def gradient_pass(loss: Loss, network: nn.Module, runtime: Runtime) -> Pass:
    """Forward and backward pass of a training step: fills the `grad` of the network's parameters anew.

    On a GPU both passes are one CUDA graph for batches of the form of the first one. The optimiser's step
    stays outside, so that its rate can change.

    Args:
        loss: of the network, which it is given, on inputs on the device.
        network: in the mode that it trains in; its parameters get gradients, its buffers may move.
        runtime: precision; whether compilation and graphs are wanted.

    Returns:
        A function of the inputs alone, with detached outputs that are good until the next call.
    """
    if runtime.device.type != "cuda" or not runtime.cuda_graphs:
        return _PlainPass(loss, network, runtime)
    return _GraphedPass(loss, network, runtime)


class _Graphed:
    def __init__(self, function: Callable[..., Tensor], runtime: Runtime) -> None:
        self._function = function
        self._runtime = runtime
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given_up = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not self._fits(inputs) and not self._given_up:
            self._try_to_capture(inputs)
        return self._replayed(*inputs) if self._fits(inputs) else self._function(*inputs)

    def _replayed(self, *inputs: Tensor) -> Tensor:
        rows = len(inputs[0])
        for held, given in zip(self._inputs, inputs, strict=True):
            held[:rows].copy_(given)
        self._graph.replay()
        return self._output[:rows].clone()  # the next replay writes over it

    def _fits(self, inputs: tuple[Tensor, ...]) -> bool:
        return self._graph is not None and all(
            given.dtype == held.dtype and given.shape[1:] == held.shape[1:] and len(given) <= len(held)
            for held, given in zip(self._inputs, inputs, strict=True)
        )

    def _try_to_capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._graph = self._inputs = self._output = None  # a smaller batch's
        try:
            with _side_stream(inputs[0].device):
                for _ in range(WARM_UP):
                    expected = self._function(*inputs)
            self._capture(inputs)
            output = self._replayed(*inputs)
            agreement = torch.isclose(expected, output, rtol=0, atol=1e-3).double().mean().item()
            if agreement < SAME_PIXELS:
                raise RuntimeError(f"only {agreement:.0%} of the result agree")
        except RuntimeError as error:  # torch's for everything that CUDA refuses
            self._graph = self._inputs = self._output = None
            self._given_up = True
            reason = str(error).splitlines()[0]
            self._runtime.fall_back(f"the attack runs without a CUDA graph ({reason})")

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self._function(*self._inputs)
        self._graph = graph


class _PlainPass:
    def __init__(self, loss: Loss, network: nn.Module, runtime: Runtime) -> None:
        self._loss_of = loss
        self._network, self._called = network, runtime.compiled(network)
        self._runtime = runtime
        self._parameters = [p for p in network.parameters() if p.requires_grad]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self._plain(*inputs)

    def _in_full(self, images: Tensor) -> Tensor:
        """In float32 whatever they were computed in, unless that was float64."""
        logits = self._called(images)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _plain(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        for parameter in self._parameters:
            parameter.grad = None
        with self._runtime.autocast():
            loss, logits = self._loss_of(self._in_full, *inputs)
        if loss.requires_grad:  # nothing is trained where only statistics move
            loss.backward()
        return loss.detach(), logits.detach()


class _GraphedPass(_PlainPass):
    def __init__(self, loss: Loss, network: nn.Module, runtime: Runtime) -> None:
        super().__init__(loss, network, runtime)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given_up = False

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self._graph is None and not self._given_up:
            self._try_to_capture(inputs)
        if self._graph is None or _form(inputs) != _form(self._inputs):
            return self._plain(*inputs)
        return self._replayed(*inputs)

    def _replayed(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._graph.replay()
        return self._loss, self._logits

    def _try_to_capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Captures and checks; statistics and random numbers are then as if nothing had happened."""
        buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()]

        def checked(call: Pass) -> tuple[list[Tensor], list[Tensor]]:
            _restore(buffers)
            torch.manual_seed(0)  # the same dropout in both
            loss, _ = call(*inputs)
            return [loss.clone()], [p.grad.clone() for p in self._parameters if p.grad is not None]

        with torch.random.fork_rng(devices=[inputs[0].device.index] if inputs[0].is_cuda else []):
            try:
                with _side_stream(inputs[0].device):
                    for _ in range(WARM_UP):
                        expected = checked(self._plain)
                self._capture(inputs)
                found = checked(self._replayed)
                for what, *pair in zip(("losses", "gradients"), expected, found, strict=True):
                    distance = _relative_distance(*pair)
                    if not distance < SAME:
                        raise RuntimeError(f"its {what} differ by {distance:.0%}")
            except RuntimeError as error:  # see _Graphed
                self._graph = self._inputs = self._loss = self._logits = self._gradients = None
                self._given_up = True
                reason = str(error).splitlines()[0]
                self._runtime.fall_back(f"the training step runs without a CUDA graph ({reason})")
        _restore(buffers)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        for parameter in self._parameters:
            parameter.grad = None  # so that the gradients are made in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss, self._logits = self._plain(*self._inputs)
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._graph = graph


def _form(inputs: tuple[Tensor, ...]) -> list[tuple[object, ...]]:
    return [(tensor.shape, tensor.dtype) for tensor in inputs]


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Outside the default stream, as CUDA demands of what is captured next; anywhere else, nothing."""
    if device.type != "cuda":
        yield
        return
    gc.collect()  # graphs of earlier stages give their memory back before there is a new one
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


@torch.no_grad()
def _restore(buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
    for buffer, saved in buffers:
        buffer.copy_(saved)


def _relative_distance(expected: list[Tensor], found: list[Tensor]) -> float:
    if len(expected) != len(found):
        return float("inf")
    square = sum((a - b).double().square().sum() for a, b in zip(expected, found, strict=True))
    length = sum(a.double().square().sum() for a in expected)
    return math.sqrt(float(square) / max(float(length), 1e-30))
