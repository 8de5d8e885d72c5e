"""CUDA graphs: off a GPU nothing changes; on one, replay equals the plain call, and trouble falls back."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rift.runtime import Runtime, gradient_pass, graphed
from rift.runtime.graphs import _Graphed, _GraphedPass

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
        self._inputs = tuple(x.clone() for x in inputs)
        self._output, self._graph = torch.zeros(3), Stale()

    monkeypatch.setattr(_Graphed, "_capture", capture)
    runtime = Runtime(torch.device("cpu"))
    x = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(_Graphed(lambda x: x * 2, runtime)(x), x * 2)
    assert "only 0% of the result agree" in runtime.fallbacks[0]


def chaotic(monkeypatch, noise, deaf=False):
    """An "attack" whose replay lands elsewhere by `noise`, or that reads nothing of its inputs."""

    class Elsewhere:
        def __init__(self, calls):
            self.calls = calls

        def replay(self):
            held = self.calls._inputs if not deaf else self.calls.first
            draw = torch.Generator().manual_seed(1)
            moved = self.calls._function(*held) + noise * torch.randn(64, 5, generator=draw)
            self.calls._output.copy_(moved)

    def capture(self, inputs):
        self._inputs = tuple(x.clone() for x in inputs)
        self.first = tuple(x.clone() for x in inputs)
        self._output, self._graph = self._function(*self._inputs).clone(), Elsewhere(self)

    monkeypatch.setattr(_Graphed, "_capture", capture)
    runtime = Runtime(torch.device("cpu"))
    calls = _Graphed(lambda x: x + 1, runtime, lambda out, x: (out[:32] - 0.1 * out[32:]).mean())
    calls(torch.arange(64.0)[:, None].expand(64, 5))
    return runtime.fallbacks


@pytest.mark.parametrize(
    ("noise", "deaf", "refused"),
    [
        (0.0, False, False),
        (0.02, False, False),  # no element is the same, and the strength is
        (5.0, False, True),
        (0.0, True, True),  # the inputs come in another order in the check
    ],
)
def test_a_chaotic_result_is_judged_by_its_strength(monkeypatch, noise, deaf, refused):
    """Rounding turns an attack's pixels: a right capture has the plain call's loss, not its pixels."""
    found = chaotic(monkeypatch, noise, deaf)
    assert bool(found) is refused
    if refused:
        assert "it reaches a loss of" in found[0]


class Replayed:
    """Stands in for a CUDA graph: computes again from the held inputs into the held outputs."""

    def __init__(self, calls):
        self.calls, self.replays = calls, 0

    def replay(self):
        self.replays += 1
        self.calls._output.copy_(self.calls._function(*self.calls._inputs))


def test_a_smaller_batch_is_the_first_rows_of_a_full_one(monkeypatch):
    def capture(self, inputs):
        self._inputs = tuple(x.clone() for x in inputs)
        self._output, self._graph = self._function(*self._inputs), Replayed(self)

    monkeypatch.setattr(_Graphed, "_capture", capture)
    runtime = Runtime(torch.device("cpu"))
    calls = _Graphed(lambda x, y: x * y[:, None], runtime)
    x, y = torch.rand(5, 3), torch.rand(5)
    first = calls(x, y)
    assert torch.equal(calls(x[:2] + 1, y[:2]), (x[:2] + 1) * y[:2, None])
    assert calls._graph.replays == 3  # the check, and one for each call
    assert torch.equal(first, x * y[:, None])  # not written over
    larger = torch.rand(6, 3), torch.rand(6)
    assert torch.equal(calls(*larger), larger[0] * larger[1][:, None])
    assert calls._graph.replays == 2  # captured anew
    assert torch.equal(calls(x, y), x * y[:, None])
    assert calls._graph.replays == 3
    assert runtime.fallbacks == []


# -- the passes of a training step -------------------------------------------------------------------


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).train()


def loss_of(network, x, y):
    logits = network(x)
    return F.cross_entropy(logits, y), logits


class ReplayedPass:
    """Stands in for the graph of both passes: writes into the gradients that the capture made."""

    def __init__(self, step, factor):
        self.step, self.factor = step, factor

    def replay(self):
        step = self.step
        loss, logits = step._plain(*step._inputs)
        step._loss.copy_(loss)
        step._logits.copy_(logits)
        for parameter, held in zip(step._parameters, step._gradients, strict=True):
            held.copy_(parameter.grad * self.factor)
            parameter.grad = held


def fake_capture(factor=1.0):
    def capture(self, inputs):
        self._inputs = tuple(x.clone() for x in inputs)
        for _ in range(3):
            self._loss, self._logits = self._plain(*self._inputs)
        self._gradients = [p.grad for p in self._parameters]
        self._graph = ReplayedPass(self, factor)

    return capture


def train(network, step, batches):
    """Losses of an SGD over the batches; the weights and statistics stay in the network."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(3)
    losses = []
    for x, y in batches:
        losses.append(step(x, y)[0].item())
        optimizer.step()
    return losses


def batches_of(*sizes):
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 6, generator=draw), torch.randint(3, (n,), generator=draw)) for n in sizes]


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_captured_step_trains_as_the_plain_one(monkeypatch, factor):
    """Warm-up, capture and check leave no trace in statistics, random numbers or gradients."""
    monkeypatch.setattr(_GraphedPass, "_capture", fake_capture(factor))
    batches = batches_of(8, 8, 5, 8)  # the odd one is not what was captured
    plain = make_network()
    right = train(plain, gradient_pass(loss_of, plain, Runtime(torch.device("cpu"))), batches)
    runtime, network = Runtime(torch.device("cpu")), make_network()
    step = _GraphedPass(loss_of, network, runtime)
    assert train(network, step, batches) == right
    assert network[1].num_batches_tracked == 4
    for name, value in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    # Wrong gradients are noticed, and the step goes on without them.
    if factor == 1.0:
        assert runtime.fallbacks == []
    else:
        assert runtime.fallbacks == [
            "the training step runs without a CUDA graph (its gradients differ by 50%)"
        ]


def test_a_step_that_cannot_be_captured_is_the_plain_one(monkeypatch):
    def refuse(self, inputs):
        self._plain(*inputs)  # as a warm-up does
        raise RuntimeError("CUDA error: operation not permitted\nmore")

    monkeypatch.setattr(_GraphedPass, "_capture", refuse)
    batches, plain = batches_of(8, 8), make_network()
    right = train(plain, gradient_pass(loss_of, plain, Runtime(torch.device("cpu"))), batches)
    runtime, network = Runtime(torch.device("cpu")), make_network()
    assert train(network, _GraphedPass(loss_of, network, runtime), batches) == right
    assert runtime.fallbacks == [
        "the training step runs without a CUDA graph (CUDA error: operation not permitted)"
    ]


def test_where_nothing_is_trained_only_statistics_move():
    network = make_network().requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    loss, logits = gradient_pass(loss_of, network, Runtime(torch.device("cpu")))(*batches_of(8)[0])
    assert not loss.requires_grad and logits.shape == (8, 3)
    moved = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


@needs_gpu
def test_a_step_captured_on_a_gpu_trains_as_the_plain_one():
    device = torch.device("cuda")
    batches = [(x.to(device), y.to(device)) for x, y in batches_of(8, 8, 5, 8)]
    ends = []
    for cuda_graphs in (False, True):
        runtime, network = Runtime(device, cuda_graphs=cuda_graphs), make_network().to(device)
        network[2].p = 0.0
        losses = train(network, gradient_pass(loss_of, network, runtime), batches)
        assert runtime.fallbacks == []
        ends.append((losses, network.state_dict()))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    for name, value in ends[0][1].items():
        torch.testing.assert_close(ends[1][1][name], value, rtol=1e-4, atol=1e-5)


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
