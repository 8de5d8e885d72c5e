"""CUDA graphs: off a GPU nothing changes; on one, replay equals the plain call, and trouble falls back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rift.runtime import Runtime, graphed
from rift.runtime.graphs import _Graphed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for a CUDA device")


def test_off_a_gpu_the_function_itself_is_used():
    def function(x):
        return x + 1

    assert graphed(function, Runtime(torch.device("cpu"))) is function


def test_a_capture_that_fails_falls_back_and_says_so(monkeypatch):
    def refuse(self, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(_Graphed, "_capture", refuse)
    runtime = Runtime(torch.device("cpu"))
    calls = _Graphed(lambda x: x * 2, runtime)
    x = torch.arange(3.0)
    assert torch.equal(calls(x), x * 2)
    assert torch.equal(calls(x + 1), (x + 1) * 2)
    assert runtime.fallbacks == [
        "the attack runs without a CUDA graph (operation not permitted when stream is capturing)"
    ]


def test_a_capture_that_disagrees_is_not_used(monkeypatch):
    class Stale:
        def replay(self):
            pass

    def capture(self, inputs):
        self._captured_form = [(x.shape, x.stride(), x.dtype) for x in inputs]
        self._inputs = tuple(x.clone() for x in inputs)
        self._output, self._graph = torch.zeros(3), Stale()

    monkeypatch.setattr(_Graphed, "_capture", capture)
    runtime = Runtime(torch.device("cpu"))
    x = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(_Graphed(lambda x: x * 2, runtime)(x), x * 2)
    assert "only 0% of the result agree" in runtime.fallbacks[0]


@needs_gpu
def test_a_replay_equals_the_plain_call_and_follows_the_weights():
    device = torch.device("cuda")
    torch.manual_seed(0)
    layer = nn.Linear(8, 4).to(device)

    def function(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layer(x).logsumexp(1).sum(), x)[0]

    runtime = Runtime(device)
    calls = graphed(function, runtime)
    for seed in range(4):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)).to(device)
        torch.testing.assert_close(calls(x), function(x))
        with torch.no_grad():
            layer.weight.mul_(1.5)
    odd = torch.randn(3, 8, device=device)
    torch.testing.assert_close(calls(odd), function(odd))
    assert runtime.fallbacks == []
