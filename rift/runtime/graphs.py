"""An attack, or a training step's passes, as one CUDA graph: small kernels by the thousand wait for launches.

Weights may change between calls, in place; what is captured reads and writes fixed addresses. Each capture
is checked once against the plain call, which is made first, so that the two never hold memory at the same
time; where it fails or disagrees, the plain call is used and the fallback is recorded. Each has a stream of
its own, as far as torch's pool of 32 goes: 2.12 to 2.14 drop a stream's cuBLAS workspaces with its graphs.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rift.runtime import distributed
from rift.runtime.data_parallel import in_parallel
from rift.runtime.device import Runtime
from rift.runtime.switches import untuned

WARM_UP = 3  # calls before the capture: cuDNN chooses its algorithms in them
SAME_PIXELS = 0.95  # share of the output that agrees to 1e-3 where nothing is chaotic
SAME = 0.02  # relative distance that bfloat16 and another order of summation may make

Loss = Callable[..., tuple[Tensor, Tensor]]
"""(network, *inputs) -> (scalar loss, logits (B, K)); the network's logits are float32."""
Pass = Callable[..., tuple[Tensor, Tensor]]
"""(*inputs) -> (scalar loss, logits (B, K))."""


def graphed(
    function: Callable[..., Tensor],
    runtime: Runtime,
    strength: Callable[..., Tensor] | None = None,
    whole: bool = False,
) -> Callable[..., Tensor]:
    """Captures a function of tensors at its first call and replays it for inputs of the same form.

    The function must wait for nothing on the host and treat every image by itself: a smaller batch, such as
    the last one of a pass, is replayed as the first rows of a full one. A larger one is captured anew. A
    function of whole batches (one that normalises by them) is replayed for batches of the first one's size
    alone, and called for others.

    Args:
        function: tensors on the device, each with the batch first, to a tensor.
        runtime: says whether graphs are wanted; off a GPU the function itself is returned.
        strength: (output, *inputs) -> a scalar that two right outputs share though their elements do not. A
            few steps of an attack turn one rounding error into other pixels; the loss stays the same.
        whole: whether an image's result depends on the others of its batch.
    """
    if runtime.device.type != "cuda" or not runtime.cuda_graphs:
        return function
    return _Graphed(function, runtime, strength, whole)


def gradient_pass(loss: Loss, network: nn.Module, runtime: Runtime) -> Pass:
    """Forward and backward pass of a training step: fills the `grad` of the network's parameters anew.

    On a GPU both passes are one CUDA graph for batches of the form of the first one. The optimiser's step
    stays outside, so that its rate can change. Several processes give each its share of a batch, and get the
    gradients of the whole; their passes are neither compiled nor captured.

    Args:
        loss: of the network, which it is given, on inputs on the device.
        network: in the mode that it trains in; its parameters get gradients, its buffers may move.
        runtime: precision; whether compilation and graphs are wanted.

    Returns:
        A function of the inputs alone, with detached outputs that are good until the next call.
    """
    if distributed.active():
        return _PlainPass(in_parallel(loss, network, in_full), network, runtime)
    if runtime.device.type != "cuda" or not runtime.cuda_graphs:
        return _PlainPass(loss, network, runtime)
    return _GraphedPass(loss, network, runtime)


class _Graphed:
    def __init__(
        self,
        function: Callable[..., Tensor],
        runtime: Runtime,
        strength: Callable[..., Tensor] | None = None,
        whole: bool = False,
    ) -> None:
        self._function = function
        self._runtime = runtime
        self._strength, self._whole = strength, whole
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given_up = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._is_worth_a_capture(inputs):
            self._try_to_capture(inputs)
        return self._replayed(*inputs) if self._fits(inputs) else self._function(*inputs)

    def _replayed(self, *inputs: Tensor) -> Tensor:
        rows = len(inputs[0])
        for held, given in zip(self._inputs, inputs, strict=True):
            held[:rows].copy_(given)
        self._graph.replay()
        return self._output[:rows].clone()  # the next replay writes over it

    def _is_worth_a_capture(self, inputs: tuple[Tensor, ...]) -> bool:
        if self._given_up or (self._whole and self._graph is not None):
            return False
        return not self._fits(inputs)

    def _fits(self, inputs: tuple[Tensor, ...]) -> bool:
        if self._graph is None or (self._whole and len(inputs[0]) != len(self._inputs[0])):
            return False
        return all(
            given.dtype == held.dtype and given.shape[1:] == held.shape[1:] and len(given) <= len(held)
            for held, given in zip(self._inputs, inputs, strict=True)
        )

    def _try_to_capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._graph = self._inputs = self._output = None  # a smaller batch's
        self._stream = _new_stream(inputs[0].device)
        try:
            with _within(self._stream):
                for _ in range(WARM_UP):
                    expected = self._function(*inputs)
            self._capture(inputs)
            # In another order, so that a graph that read nothing of its inputs would be found out.
            output = self._replayed(*(tensor.flip(0) for tensor in inputs)).flip(0)
            self._compare(expected, output, inputs)
        except RuntimeError as error:  # torch's for everything that CUDA refuses
            self._graph = self._inputs = self._output = None
            self._given_up = True
            reason = str(error).splitlines()[0]
            self._runtime.fall_back(f"the attack runs without a CUDA graph ({reason})")

    def _compare(self, expected: Tensor, output: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """Raises RuntimeError if the two differ by more than rounding can explain."""
        agreement = torch.isclose(expected, output, rtol=0, atol=1e-3).double().mean().item()
        if agreement >= SAME_PIXELS:
            return
        if self._strength is None:
            raise RuntimeError(f"only {agreement:.0%} of the result agree")
        with torch.no_grad():
            right, found = (float(self._strength(result, *inputs)) for result in (expected, output))
        if not abs(found - right) <= SAME * abs(right) + 1e-3:
            raise RuntimeError(f"it reaches a loss of {found:.3g} instead of {right:.3g}")

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._output = self._function(*self._inputs)
        self._graph = graph


def in_full(logits: Tensor) -> Tensor:
    """Logits in float32 whatever they were computed in, unless that was float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


class _PlainPass:
    def __init__(self, loss: Loss, network: nn.Module, runtime: Runtime) -> None:
        self._loss_of = loss
        self._network, self._called = network, runtime.compiled(network)
        self._runtime = runtime
        self._parameters = [p for p in network.parameters() if p.requires_grad]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self._plain(*inputs)

    def _in_full(self, images: Tensor) -> Tensor:
        return in_full(self._called(images))

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
        if self._graph is None:
            return self._plain(*inputs)
        if _form(inputs) != _form(self._inputs):
            with untuned():  # one odd batch in a pass cannot repay a trial of algorithms
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
            self._stream = _new_stream(inputs[0].device)
            try:
                with _within(self._stream):
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
        with torch.cuda.graph(graph, stream=self._stream):
            self._loss, self._logits = self._plain(*self._inputs)
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._graph = graph


def _form(inputs: tuple[Tensor, ...]) -> list[tuple[object, ...]]:
    return [(tensor.shape, tensor.dtype) for tensor in inputs]


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for one graph; off a GPU there is none."""
    if device.type != "cuda":
        return None
    gc.collect()  # graphs of earlier stages give their memory back before there is a new one
    return torch.cuda.Stream(device)


@contextmanager
def _within(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """On this stream, as CUDA demands of what is captured next; with none, nothing."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


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
