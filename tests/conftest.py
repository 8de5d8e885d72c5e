"""What several files of tests need: a small real data set and a small network trained on it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import textbook
import torch
from torch import nn

from rift.attacks import Attack, random_start
from rift.data import Dataset, batches, load_dataset
from rift.models import build_model

# One thread: the networks of the tests are too small for more, and sums come out the same on any machine's.
torch.set_num_threads(1)

DIGITS_MEAN, DIGITS_STD = [0.305], [0.376]


def _shake(network: nn.Module) -> nn.Module:
    """The network with BatchNorms that are not the identity; in place."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.track_running_stats:
                    module.running_mean.normal_(0, 0.3, generator=generator)
                    module.running_var.uniform_(0.5, 2, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.3, generator=generator)
    return network


@pytest.fixture
def shaken() -> Callable[[nn.Module], nn.Module]:
    """Gives a network BatchNorms that are not the identity, as if it had been trained."""
    return _shake


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Dataset:
    root = tmp_path_factory.mktemp("digits")
    return load_dataset("digits", root=str(root), mean=DIGITS_MEAN, std=DIGITS_STD)


@pytest.fixture(scope="session")
def _trained(digits) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(
        "resnet_small",
        num_classes=10,
        in_channels=1,
        image_size=8,
        mean=DIGITS_MEAN,
        std=DIGITS_STD,
        width=8,
    ).double()  # so that the last bits of a machine's float32 do not decide what it becomes
    attack = Attack("linf", epsilon=0.1, step_size=0.05, steps=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(3):
        for images, labels, indices in batches(digits.train, 64, epoch=epoch, shuffle=True):
            start = random_start(images, indices, ("training start", epoch), attack)
            textbook.at_step(
                network, optimizer, images, labels, start, attack.epsilon, attack.step_size, attack.steps
            )
    optimizer.zero_grad()
    return network.float().eval()


@pytest.fixture
def trained(_trained) -> nn.Module:
    """A `resnet_small` of width 8, trained adversarially (linf, 0.1) on digits; float32, in eval mode."""
    return copy.deepcopy(_trained)
