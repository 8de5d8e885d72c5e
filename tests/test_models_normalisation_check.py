"""Imported weights under the wrong normalisation are refused, with the option that mends it."""

from __future__ import annotations

import pytest
import torch
from tiny_jobs import restored_process, tiny_config
from torch import nn

from rift.assembly import make_runtime, new_network
from rift.errors import UserError
from rift.models import check_normalisation
from rift.models.normalisation import normalise_first
from rift.models.normalisation_check import FAR_BETTER


class Brightness(nn.Module):
    """Tells images brighter than a half from darker ones, if it is given them as it was trained on."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        excess = x.mean((1, 2, 3)) - self.threshold
        return torch.stack([-excess, excess], dim=1)


IMAGES = torch.linspace(0.4, 0.6, 200).view(-1, 1, 1, 1).expand(200, 3, 4, 4).contiguous()
LABELS = (IMAGES[:, 0, 0, 0] > 0.5).long()


def model(threshold, mean=(0.45,) * 3, std=(0.25,) * 3):
    return normalise_first(Brightness(threshold), mean, std, 3).eval()


def test_weights_that_fit_are_said_to():
    network = model((0.5 - 0.45) / 0.25)
    note = check_normalisation(network, IMAGES, LABELS, "The checkpoint w.pt")
    assert note.startswith(
        "Normalises with mean [0.45, 0.45, 0.45] and std [0.25, 0.25, 0.25]: right on 100.0%"
    )
    assert note.endswith("without normalisation on 50.0%.")


def test_weights_that_know_nothing_are_doubted():
    note = check_normalisation(model(1e3), IMAGES, LABELS, "The checkpoint w.pt")
    assert note.endswith("so the network may have another activation or padding than theirs.")


@pytest.mark.parametrize(
    ("threshold", "remedy"),
    [
        (0.5, "model.normalise=false"),  # trained on [0, 1]
        (0.0, "'dataset.mean=[0.5, 0.5, 0.5]' 'dataset.std=[0.5, 0.5, 0.5]'"),  # trained on [-1, 1]
    ],
)
def test_weights_that_expect_another_one_are_refused(threshold, remedy):
    network = model(threshold)
    before = network.normalize.mean.clone(), network.normalize.std.clone()
    with pytest.raises(UserError) as error:
        check_normalisation(network, IMAGES, LABELS, "The checkpoint w.pt")
    said = str(error.value)
    assert said.startswith("The checkpoint w.pt is right on ") and "\n" not in said
    assert said.endswith(f"set {remedy}.")
    assert torch.equal(network.normalize.mean, before[0]) and torch.equal(network.normalize.std, before[1])


def test_a_small_difference_is_no_reason_to_refuse():
    """`FAR_BETTER` of the images and less may be chance."""
    wrong = int(FAR_BETTER * 200) - 1  # images between the two thresholds
    threshold = (0.5 + 0.2 * wrong / 199 - 0.45) / 0.25
    assert "right on" in check_normalisation(model(threshold), IMAGES, LABELS, "w")


def test_a_network_can_leave_images_as_they_are():
    config = tiny_config("model.normalise=false")
    network = new_network(config, make_runtime(config), (1, 8, 8), 10)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(network.normalize(images), images)
    with restored_process():
        usual = new_network(tiny_config(), make_runtime(config), (1, 8, 8), 10)
    assert not torch.equal(usual.normalize(images), images)
