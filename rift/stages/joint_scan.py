"""MRC of sets of modules: which set does robustness need least? Beyond the paper.

The paper ranks modules one by one and fine-tunes the k lowest together (its Table 4), where robustness is
lost; how critical they are *together* is left open. Here all modules of a set move at once.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from rift.attacks import Attack
from rift.errors import UserError
from rift.models import scannable_modules
from rift.progress import measured
from rift.runtime import distributed
from rift.stage_options import MRCConfig
from rift.stages.mrc_scan import (
    adversarial_examples,
    criticality_of,
    make_solver,
    robustness,
    scanned_network,
)
from rift.stages.session import Session
from rift.store import StageFolder


def joint_scan(
    session: Session,
    folder: StageFolder,
    options: MRCConfig,
    size: int,
    ranking: list[str],
    theta_at: dict[str, Tensor],
    attack: Attack,
) -> dict[str, Any]:
    """Grows a set greedily: each step adds the module with which the set's joint MRC is least.

    The joint MRC of the scan's k lowest modules is measured too, by the same solver, so that the two choices
    stand side by side. Each set is resumable.

    Args:
        session: data, machine, seed.
        folder: gets a metrics row per set that was tried.
        options: data, radius, solver.
        size: of the largest set, at most the number of scanned modules.
        ranking: of the scan of single modules, least critical first.
        theta_at: a state dict on the device.
        attack: that makes the adversarial examples, the same ones as the scan's.

    Returns:
        The stage's result: `greedy` and `top_k`, each a list over k = 1 … size of the set's modules (network
        order), its MRC and robust accuracy drop; and every set tried, `sets`.

    Raises:
        UserError: the search diverged.
    """
    folder.load_resume_point()
    network = session.network(theta_at).requires_grad_(False)
    names = [name for name in scannable_modules(network) if name in ranking]
    images, labels = adversarial_examples(session, network, options, attack)
    solver, baseline = make_solver(options), robustness(session, network, options, images, labels)
    known = {_key(row["modules"]): row for row in folder.rows()}

    def measure(sets: list[list[str]]) -> None:
        """Of the sets that are not known yet; in the order of their first module, as the cache wants it."""
        missing = [names_of for names_of in sets if _key(names_of) not in known]
        if not missing:
            return
        missing.sort(key=lambda modules: names.index(modules[0]))
        scanned = scanned_network(session, network, options, images, labels)

        def scan(modules: list[str]) -> dict[str, Any]:
            found = criticality_of(scanned.at(*modules), baseline, solver)
            if not found.finite:
                raise UserError(
                    f"The joint scan of {', '.join(modules)} diverged: set stage.joint.solver=projected "
                    "or stage.mrc.project=step."
                )
            return {"modules": modules, **asdict(found)}

        at_once = distributed.world_size()
        with measured(f"joint MRC of {len(sets[0])}", len(missing), "sets") as meter:
            for start in range(0, len(missing), at_once):
                for row in distributed.each(missing[start : start + at_once], scan):
                    row = {"index": len(folder.rows()), **row}
                    folder.add_row(row)
                    folder.save_resume_point({}, {})
                    known[_key(row["modules"])] = row
                    meter.advance(1)

    def in_order(modules: set[str]) -> list[str]:
        return [name for name in names if name in modules]

    chosen: list[dict[str, Any]] = []
    for _ in range(size):
        grown = set(chosen[-1]["modules"]) if chosen else set()
        candidates = [in_order({*grown, name}) for name in names if name not in grown]
        measure(candidates)
        chosen.append(min((known[_key(modules)] for modules in candidates), key=lambda row: row["mrc"]))
    lowest = [in_order(set(ranking[:k])) for k in range(1, size + 1)]
    for modules in lowest:
        measure([modules])
    return {
        "greedy": [_told(row) for row in chosen],
        "top_k": [_told(known[_key(modules)]) for modules in lowest],
        "sets": [_told(row) for row in folder.rows()],
    }


def _key(modules: list[str]) -> frozenset[str]:
    return frozenset(modules)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("modules", "mrc", "robust_accuracy_drop", "relative_norm")}
