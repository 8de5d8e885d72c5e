"""Sentences and phrases of a report, from a job's summary alone."""

from __future__ import annotations

from typing import Any

from rift.report.cells import MISSING, number

SMOKE_MARK = "smoke run: not a result"


def attack_text(summary: dict[str, Any]) -> str:
    """`pgd10, linf, 8/255, step 2/255`, as far as the summary says."""
    attack = summary.get("attack") or {}
    parts = [attack.get("name"), attack.get("norm"), attack.get("epsilon")]
    parts += [f"step {attack['step_size']}"] if attack.get("step_size") is not None else []
    return ", ".join(str(part) for part in parts if part is not None) or MISSING


def ood_text(summary: dict[str, Any]) -> str:
    """What the OOD accuracy is the mean of: `paper15, severities 1–3`."""
    about = summary["corruptions"]
    return mean_text(about["ood"], about["severities"])


def mean_text(corruptions: str, severities: list[int]) -> str:
    """A mean over corruptions and severities in words."""
    ordered = sorted(set(severities))
    shown = ", ".join(map(str, ordered))
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        shown = f"{ordered[0]}–{ordered[-1]}"
    return f"{corruptions}, severities {shown}"


def leak_text(summary: dict[str, Any]) -> str:
    """How far fine-tuning moved what it should not, and whether α = 0 is θ_AT."""
    leak, exact = summary["leak"], summary.get("starts_at_theta_at")
    text = f"Outside of that ‖Δθ‖ = {leak['parameters']:.3g} over {leak['num_parameters']} parameters"
    text += f", {leak['statistics']:.3g} over BatchNorm's running statistics"
    starts = {None: "", True: "; α = 0 is θ_AT bit for bit", False: "; α = 0 is NOT θ_AT: a fault"}[exact]
    return f"{text}{starts}."


def training_text(summary: dict[str, Any]) -> str | None:
    """How good θ_AT looked when its epoch was chosen; None if the summary does not say."""
    training = summary.get("training") or {}
    best = training.get("best") or {}
    if "robust_accuracy" not in best:
        return None
    epoch = f"epoch {best['epoch']} of {training['epochs']}" if training.get("epochs") else "as given"
    clean, robust = (number(100 * best[f"{kind}_accuracy"]) for kind in ("clean", "robust"))
    how = f"{training['attack']}, one run, {training['selection_split']} split"
    return f"θ_AT ({epoch}): clean {clean} %, robust {robust} % ({how})."


def seconds_text(summary: dict[str, Any]) -> str | None:
    """`Seconds: at 312.4, mrc 45.1`; reused results tell what they once took."""
    seconds = {
        name: value for name, value in (summary.get("wall_seconds") or {}).items() if value is not None
    }
    listing = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return f"Seconds: {listing}." if listing else None


def device_hours(summary: dict[str, Any]) -> float | None:
    """How long its stages took together, in hours; reused results count what they once took."""
    seconds = [
        value for value in (summary.get("wall_seconds") or {}).values() if isinstance(value, int | float)
    ]
    return sum(seconds) / 3600 if seconds else None


def corruption_text(summary: dict[str, Any]) -> str:
    """What the images are, in a sentence: whose, and how many."""
    about = summary["corruptions"]
    images = about["images"]
    if about["kind"] == "generated":
        source = f"Generated here, CIFAR-10-C style, with the constants of the {images['constants']} script"
        source += "; not the published images, so not to be compared with published numbers"
    else:
        source = f"The published {images['set']}"
    clean = "" if about["paired"] else "; other crops than the clean test images"
    return f"{source}{clean}. {about['num_images']} images in each version."
