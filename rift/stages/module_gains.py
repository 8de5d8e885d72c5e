"""What fine-tuning each module alone brings: is the least critical one really the best choice?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rift.progress import measured
from rift.store import StageFolder

Results = Mapping[str, Mapping[str, Any]]
"""Result of each stage by its name: `interpolate`, `evaluate_at`, `evaluate_rift`."""


def module_gains(
    folder: StageFolder, scan: Mapping[str, Any], tuned: Callable[[str], Results], tolerance: float
) -> dict[str, Any]:
    """Fine-tunes, interpolates and evaluates every scanned module of one θ_AT.

    Args:
        folder: gets a metrics row per module; resumable after each.
        scan: the finished scan.
        tuned: runs or finds fine-tuning, interpolation and evaluation of the module of this name alone.
        tolerance: robust accuracy that α* may lose on the selection split, as a fraction.

    Returns:
        The stage's result: the modules in network order with their MRC and rank, α*, what changes from θ_AT
        to α* on the test split (`delta_clean`, `delta_robust`, fractions), and on the selection split, where
        α* was chosen, to α* and to α = 1.
    """
    folder.load_resume_point()
    rows = folder.rows()
    modules: Sequence[Mapping[str, Any]] = scan["modules"]
    with measured("gains", len(modules), "modules") as meter:
        meter.advance(len(rows))
        for index, scanned in enumerate(modules[len(rows) :], start=len(rows)):
            row = {
                "index": index,
                "module": scanned["module"],
                "mrc": scanned["mrc"],
                "rank": scanned["rank"],
                **gain(tuned(scanned["module"])),
            }
            folder.add_row(row)
            folder.save_resume_point({}, {})
            rows.append(row)
            meter.advance(1)
    return {"modules": rows, "tolerance": tolerance}


def gain(results: Results) -> dict[str, float]:
    """The differences of one module, see `module_gains`."""
    sweep, between = results["interpolate"]["sweep"], results["interpolate"]
    before, after = results["evaluate_at"], results["evaluate_rift"]
    start, end = sweep[0], sweep[-1]
    found = {"alpha": between["alpha"]}
    for name in ("clean", "robust"):
        metric = f"{name}_accuracy"
        found[f"delta_{name}"] = after[metric] - before[metric]
        found[f"selected_delta_{name}"] = between[metric] - start[metric]
        found[f"end_delta_{name}"] = end[metric] - start[metric]
    return found
