"""What a job comes to, in words: its last printed lines, from its own paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from rift.report.cells import interval_ends, number, p_value
from rift.report.texts import SMOKE_MARK

COMPARED = {"clean": "clean", "robust": "robust", "auto_attack": "AutoAttack", "ood": "OOD"}
UNSEEN = "no difference seen"


def conclusion_lines(summary: dict[str, Any]) -> list[str]:
    """A line for each accuracy on which RiFT and AT were compared, then one that says what they come to.

    The verdicts are those of the job's intervals (`rift.comparison`): one trained network, judged by its
    test images. Empty where nothing was compared.
    """
    intervals = summary.get("intervals") or {}
    compared = {name: intervals[key] for key, name in COMPARED.items() if key in intervals}
    if not compared:
        return []
    lines = [f"{name} {difference_text(found)}: {_seen(found)}" for name, found in compared.items()]
    return [*lines, f"Verdict: {_verdict(summary, compared)}."]


def conclusion_in_brief(summary: dict[str, Any]) -> str:
    """What the job comes to, as part of a line; empty where nothing was compared."""
    lines = conclusion_lines(summary)
    return lines[-1].removeprefix("Verdict: ").removesuffix(".") if lines else ""


def print_conclusion(console: Console, summary: dict[str, Any]) -> None:
    """Prints these lines, the last of them bold."""
    lines = conclusion_lines(summary)
    for line in lines:
        console.print(Text(line, style="bold" if line is lines[-1] else ""), soft_wrap=True)


def difference_text(interval: dict[str, Any]) -> str:
    """`+1.11 points (+0.28 … +2.23, n = 359 images)`: the difference, its 95 % interval, the test images."""
    delta = number(100 * interval["delta"], signed=True)
    return f"{delta} points ({interval_ends(interval)}, n = {interval['images']} images)"


def _seen(interval: dict[str, Any]) -> str:
    """The verdict; where few images differ the interval alone would say more than the sign test bears out."""
    verdict, p = interval["verdict"], interval.get("p_value")
    if verdict != UNSEEN or p is None or interval["low"] <= 0 <= interval["high"]:
        return verdict
    return f"{verdict} (sign test: {p_value(p)})"


def _verdict(summary: dict[str, Any], compared: dict[str, dict[str, Any]]) -> str:
    if summary.get("smoke"):
        return SMOKE_MARK
    if summary.get("alpha") == 0:
        return "RiFT is AT itself (α* = 0): no step towards the fine-tuned weights gained anything allowed"
    of = {
        said: [name for name, found in compared.items() if found["verdict"] == said]
        for said in ("better", "worse", UNSEEN)
    }
    if not of["better"] and not of["worse"]:
        return "within noise; these test images do not tell RiFT from AT"
    parts = [f"{said} in {_listed(of[said])} accuracy" for said in ("better", "worse") if of[said]]
    parts += [f"no difference seen in {_listed(of[UNSEEN])} accuracy"] if of[UNSEEN] else []
    sentence = f"RiFT is {', '.join(parts)}"
    if _chosen_on_test(summary):
        sentence += "; its α* was chosen on the same images, which flatters it"
    return sentence


def _chosen_on_test(summary: dict[str, Any]) -> bool:
    return (summary.get("options") or {}).get("stage.interpolate.selection_split") == "test"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
