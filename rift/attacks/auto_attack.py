"""AutoAttack (Croce & Hein 2020) through its kept library, batch by batch, so that it can stop and go on.

`pip install 'rift[autoattack]'` brings `pyautoattack`. Its own state file cannot be read back, and it works
on a whole set at a time; here each call attacks one batch with one attack, which gives the library's
verdicts, since it seeds every batch alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rift.errors import UserError
from rift.runtime import distributed

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "quick": ("apgd-ce", "apgd-t"),  # a screen: most of what falls, falls here; never the full figure
}
"""The attacks of each version, in order."""

_NORMS = {"linf": "Linf", "l2": "L2"}


@dataclass
class State:
    """How far an evaluation has come.

    Attributes:
        robust: (N,) bool, what has survived so far.
        attack: index of the present attack.
        targets: positions that were alive when it began; they are attacked in order.
        done: how many of them are done.
        fooled_by: (N,) int8, the attack that fooled an image, counted from 1; 0 is none of them.
    """

    robust: Tensor
    attack: int = 0
    targets: Tensor | None = None
    done: int = 0
    fooled_by: Tensor | None = None

    def __post_init__(self) -> None:
        if self.fooled_by is None:
            self.fooled_by = torch.zeros(len(self.robust), dtype=torch.int8)


def require_library() -> None:
    """Raises `UserError` unless the optional library is installed."""
    try:
        import pyautoattack  # noqa: F401
    except ImportError as error:
        raise UserError(
            "stage.evaluate.measure names auto_attack, which needs a library: pip install 'rift[autoattack]'."
        ) from error


def auto_attack(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    state: State,
    *,
    norm: str,
    epsilon: float,
    version: str,
    seed: int,
    batch_size: int,
    save: Callable[[State], None] = lambda state: None,
) -> Iterator[None]:
    """Attacks what is still robust, one attack after the other; yields after each batch.

    Of several processes each attacks a batch at a time, those that one process would cut.

    Args:
        network: in eval mode, images (B, C, H, W) in [0, 1] to logits (B, K).
        images: (N, C, H, W) float32, on the network's device.
        labels: (N,).
        state: where to begin, changed in place; at first `robust` says which images are worth attacking.
        norm, epsilon: threat model, `linf` or `l2`.
        version: a key of `VERSIONS`.
        seed: of every batch of every attack, as in the library.
        batch_size: images at a time; as in the library it decides which images share random numbers.
        save: called after each batch.
    """
    attacks = VERSIONS[version]
    while state.attack < len(attacks):
        name = attacks[state.attack]
        if state.targets is None:
            state.targets, state.done = state.robust.nonzero().squeeze(1), 0

        def fooled(chosen: Tensor, name: str = name) -> Tensor:
            positions = chosen.to(images.device)
            survives = _survivors(network, images[positions], labels[positions], name, norm, epsilon, seed)
            return chosen[~survives.cpu()]

        while state.done < len(state.targets):
            chosen = state.targets[state.done :].split(batch_size)[: distributed.world_size()]
            for batch, fallen in zip(chosen, distributed.each(chosen, fooled), strict=True):
                state.robust[fallen] = False
                state.fooled_by[fallen] = state.attack + 1
                state.done += len(batch)
                save(state)
                yield
        state.attack, state.targets = state.attack + 1, None
        save(state)


def _survivors(
    network: nn.Module, images: Tensor, labels: Tensor, name: str, norm: str, epsilon: float, seed: int
) -> Tensor:
    """Which images one attack of the standard version does not fool, (B,) bool."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)  # it tells each batch's story
    attacker = AutoAttack(network, norm=_NORMS[norm], eps=epsilon, seed=seed, device=images.device)
    with torch.no_grad():
        others = network(images[:1]).shape[1] - 1
    attacker.apgd_targeted.n_target_classes = min(attacker.apgd_targeted.n_target_classes, others)
    attacker.fab.n_target_classes = min(attacker.fab.n_target_classes, others)
    attacker.attacks_to_run = [name]
    adversarial, _ = attacker.run_standard_evaluation(images.contiguous(), labels, batch_size=len(images))
    with torch.no_grad():
        return network(adversarial).argmax(dim=1) == labels
