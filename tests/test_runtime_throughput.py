"""The units of speed: counted operations, and a measured rate that they are compared with."""

from __future__ import annotations

import torch
from torch import nn

from rift.models import build_model
from rift.runtime.throughput import at_flops, forward_flops, matmul_rate


def test_flops_of_layers_are_counted_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16, 10))
    assert forward_flops(network, torch.zeros(1, 3, 4, 4)) == 2 * (16 * 8 * 27) + 2 * (128 * 10)
    assert network.training  # left as found


def test_resnet18_costs_what_the_field_says():
    network = build_model("resnet18", num_classes=10, mean=[0.5] * 3, std=[0.25] * 3)
    forward = forward_flops(network, torch.zeros(1, 3, 32, 32))
    assert round(forward / 1e9, 2) == 1.11
    # 50 000 images of PGD-10 AT: ten input gradients of two passes, one update of three.
    assert round(50_000 * at_flops(forward, 10) / 1e15, 2) == 1.28


def test_the_matmul_rate_is_a_rate():
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e16
    assert matmul_rate(torch.device("cpu"), torch.float32) == rate  # measured once
