"""What a training method consists of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from torch import Tensor, nn

from rift.attacks import Attack, Objective

Network = Callable[[Tensor], Tensor]
Loss = Callable[[Network, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(network, clean images, where crafting started, adversarial images, labels) -> (scalar loss, logits).

The network is in train mode and moves its BatchNorm statistics at each call, so the number and the order of
the calls belong to the method. Its logits are float32. Those that are returned are of the adversarial images.
"""


def the_users(attack: Attack) -> Attack:
    """The training attack as it was asked for."""
    return attack


def from_near_the_image(attack: Attack, *, start_std: float) -> Attack:
    """The attack, from the image plus normal noise of this standard deviation; with 0, as it was."""
    return attack if start_std == 0 else replace(attack, random_start=True, start_std=start_std)


def undisturbed(network: nn.Module, ascend: Callable[[], object], epoch: int) -> AbstractContextManager[None]:
    """An update at the weights as they are."""
    return nullcontext()


@dataclass(frozen=True)
class Method:
    """One way to train adversarially: what the attack increases, and what the optimiser decreases.

    Attributes:
        objective: per-image losses (B,) that crafting increases.
        loss: what the optimiser decreases; see `Loss`.
        from_clean: crafting compares with the logits of the clean images, not with the labels.
        attack: from the attack asked for to the one that training uses.
        passes: of the training loss through the network, forward and backward, for the count of FLOPs.
        around_update: (network, a call that fills the gradients at the present weights, epoch from 0) ->
            the surroundings of gradient and update; adversarial weight perturbation lives there.
        of_single_images: the loss is a mean over images, but for BatchNorm; then a batch can be shared out.
    """

    objective: Objective
    loss: Loss
    from_clean: bool = False
    attack: Callable[[Attack], Attack] = the_users
    passes: float = 1
    around_update: Callable[[nn.Module, Callable[[], object], int], AbstractContextManager[None]] = (
        undisturbed
    )
    of_single_images: bool = True
