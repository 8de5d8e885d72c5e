"""Borrowing a network: everything is given back as it was found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rift.attacks import Attack, pgd
from rift.runtime import batchnorm_layers, borrowed


def everything(network):
    """All that an attack could disturb."""
    return (
        {name: module.training for name, module in network.named_modules()},
        {name: parameter.requires_grad for name, parameter in network.named_parameters()},
        {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()},
        {name: value.clone() for name, value in network.state_dict().items()},
    )


def assert_same(first, second):
    assert first[0] == second[0]
    assert first[1] == second[1]
    for before, after in zip(first[2:], second[2:], strict=True):
        assert before.keys() == after.keys()
        for name, value in before.items():
            same = after[name] is None if value is None else torch.equal(value, after[name])
            assert same, name


@pytest.fixture
def network(trained):
    """Modes and flags in a mixture that no single switch would restore."""
    trained.train()
    trained.bn1.eval()
    trained.layer2.eval()
    trained.fc.requires_grad_(False)
    trained.conv1.weight.grad = torch.ones_like(trained.conv1.weight)
    return trained


def images():
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_inside_the_whole_network_is_in_the_mode_asked_for(network, training, gradients):
    with borrowed(network, training=training, gradients=gradients) as same:
        assert same is network
        assert all(module.training == training for module in network.modules())
        assert all(parameter.requires_grad == gradients for parameter in network.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_all_is_given_back(network, training, gradients):
    before = everything(network)
    with borrowed(network, training=training, gradients=gradients):
        network(images())
        network(images() * 3)
    assert_same(before, everything(network))


@pytest.mark.parametrize("training", [False, True])
def test_all_is_given_back_after_an_exception(network, training):
    before = everything(network)
    with pytest.raises(RuntimeError, match="inside"), borrowed(network, training=training):
        network(images())
        raise RuntimeError("inside")
    assert_same(before, everything(network))


def test_train_mode_statistics_do_move_inside(network):
    mean = network.layer1[0].bn1.running_mean.clone()
    with borrowed(network, training=True):
        network(images())
        assert not torch.equal(network.layer1[0].bn1.running_mean, mean)
    assert torch.equal(network.layer1[0].bn1.running_mean, mean)


def test_borrowing_nests(network):
    before = everything(network)
    with borrowed(network, training=True, gradients=True):
        outer = everything(network)
        with borrowed(network, training=False):
            network(images())
        assert_same(outer, everything(network))
    assert_same(before, everything(network))


@pytest.mark.parametrize("training", [False, True])
def test_an_attack_on_a_borrowed_network_leaves_no_trace(network, training):
    before, x = everything(network), images()
    with borrowed(network, training=training):
        adversarial = pgd(network, x, torch.arange(8), x, Attack("linf", 0.1, 0.05, steps=3))
    assert (adversarial != x).any()
    assert_same(before, everything(network))


def test_crafting_in_train_mode_sees_the_statistics_of_the_batch(network):
    """With batch statistics the loss of an image depends on its neighbours; with running ones it does not."""
    x, y, attack = images(), torch.arange(8), Attack("linf", 0.1, 0.05, steps=1)
    for training in (True, False):
        with borrowed(network, training=training):
            together = pgd(network, x, y, x, attack)[:2]
            apart = pgd(network, x[:2], y[:2], x[:2], attack)
        assert torch.equal(together, apart) is not training


def test_batchnorm_layers_are_all_that_keep_statistics():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(3)), nn.GroupNorm(1, 2)
    )
    assert batchnorm_layers(network) == [network[1], network[2][0]]
