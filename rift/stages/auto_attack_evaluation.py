"""AutoAttack on the test split: what PGD's robust accuracy is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rift.attacks import Attack
from rift.attacks.auto_attack import VERSIONS, State, auto_attack
from rift.progress import measured
from rift.randomness import derive_seed
from rift.stages.session import Session
from rift.store import StageFolder


def auto_attack_evaluation(
    session: Session,
    folder: StageFolder,
    weights: dict[str, Tensor],
    attack: Attack,
    version: str,
    max_images: int | None,
    survivors: Tensor | None,
) -> dict[str, Any]:
    """Robust accuracy under AutoAttack, image by image. Resumable after every batch of every attack.

    An image is robust if neither PGD (where its verdicts are known) nor any attack of the version fools it;
    images that are fooled already are not attacked again, which changes no number.

    Args:
        session: data, machine, seed.
        folder: gets the verdicts as `verdicts`: `robust` (N,) and `fooled_by` (N,), the attack counted from
            1, 0 for none of them; and a metrics row per attack.
        weights: a state dict.
        attack: its norm and epsilon are the threat model.
        version: `standard`, or `quick`, a screen of two attacks.
        max_images: evenly spread over the test split; None is all.
        survivors: (N,) bool, which test images PGD left; None where PGD was not measured.

    Returns:
        The accuracies, as fractions: without an attack, after PGD, after each attack in order, at the end.
    """
    runtime, test = session.runtime, session.dataset.test
    count = len(test) if max_images is None else min(max_images, len(test))
    chosen = torch.linspace(0, len(test) - 1, count).long()
    split = test.subset(chosen)
    network = session.network(weights).requires_grad_(False)
    images = runtime.laid_out(split.images.float() / 255, torch.float32)
    clean = (
        torch.cat([network(part).argmax(dim=1) for part in images.split(runtime.batch_size)])
        .eq(split.labels)
        .cpu()
    )
    after_pgd = clean if survivors is None else clean & survivors[chosen].cpu().bool()
    state = _resumed(folder, after_pgd)
    attacks = VERSIONS[version]
    with measured(f"auto_attack ({version})", len(attacks) * count) as meter:
        steps = auto_attack(
            network,
            images,
            split.labels,
            state,
            norm=attack.norm,
            epsilon=attack.epsilon,
            version=version,
            seed=derive_seed("auto_attack", session.seed) % 2**31,
            batch_size=runtime.batch_size,
            save=lambda state: _save(folder, attacks, state),
        )
        for _ in steps:  # images that were fooled before an attack began are dealt with
            left = len(state.targets) - state.done
            meter.advance((state.attack + 1) * count - left - meter.done)
    after = {row["attack"]: row["robust_accuracy"] for row in folder.rows()}
    folder.save("verdicts", {"robust": state.robust.to(torch.uint8), "fooled_by": state.fooled_by})
    return {
        "version": version,
        "num_images": count,
        "clean_accuracy": clean.double().mean().item(),
        "pgd_accuracy": None if survivors is None else after_pgd.double().mean().item(),
        "after": after,
        "robust_accuracy": state.robust.double().mean().item(),
    }


def _save(folder: StageFolder, attacks: Sequence[str], state: State) -> None:
    if state.targets is None:  # an attack has ended
        name, accuracy = attacks[state.attack - 1], state.robust.double().mean().item()
        folder.add_row({"run": state.attack, "attack": name, "robust_accuracy": accuracy})
    tensors = {"robust": state.robust.to(torch.uint8), "fooled_by": state.fooled_by}
    if state.targets is not None:
        tensors["targets"] = state.targets
    folder.save_resume_point(tensors, {"attack": state.attack, "done": state.done})


def _resumed(folder: StageFolder, alive: Tensor) -> State:
    found = folder.load_resume_point()
    if found is None:
        return State(alive.clone())
    tensors, note = found
    return State(
        tensors["robust"].bool(),
        note["attack"],
        tensors.get("targets"),
        note["done"],
        tensors["fooled_by"],
    )
