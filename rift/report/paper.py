"""What the paper reports for the same model, data set, method and fine-tuned modules as a run's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rift.stage_options import SETS

PAPER_EPSILON = 8 / 255
_METRICS = ("clean", "ood", "robust")


@dataclass(frozen=True)
class PaperRow:
    """One reported row; accuracies in percent under `clean`, `ood` and `robust`.

    `rift` is None where the paper reports the adversarially trained model, but no fine-tuning of the
    modules that the run fine-tuned.
    """

    source: str
    at: dict[str, float]
    rift: dict[str, float] | None

    def delta(self, metric: str) -> float | None:
        """RiFT minus AT in points."""
        return None if self.rift is None else self.rift[metric] - self.at[metric]


@cache
def paper() -> dict[str, Any]:
    """The contents of `paper.yaml`."""
    return yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


def canonical_target(summary: Mapping[str, Any]) -> str | None:
    """The fine-tuned modules as the paper's tables name them: `least_critical`, `all`, `top_3`, ...

    A module given by its exact name stays that name, as does any choice the paper does not have.
    """
    target = summary.get("target")
    if target not in SETS:
        return target
    count = len(summary.get("target_modules") or [])
    count = count or (summary.get("options") or {}).get("stage.finetune.top_k")
    return f"{target[:-2]}_{count}" if count else target


def paper_row(summary: dict[str, Any]) -> PaperRow | None:
    """The paper's row for a run, or None if it reports none (or for another threat model)."""
    if not _has_paper_threat_model(summary):
        return None
    reported = [row for row in paper()["rows"] if _same_setting(row, summary)]
    if not reported:
        return None
    target = paper_target(summary)
    for row in reported:
        if row["target"] == target:
            return PaperRow(f"Table {row['table']}", _triple(row["at"]), _triple(row["rift"]))
    base = reported[0]
    return PaperRow(f"Table {base['table']}, AT only", _triple(base["at"]), None)


def paper_scan(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Module name -> the MRC and robust accuracy drop (points) that Figure 3 prints; often empty."""
    if not _has_paper_threat_model(summary):
        return {}
    return next((scan["modules"] for scan in paper()["scans"] if _same_setting(scan, summary)), {})


def _same_setting(entry: dict[str, Any], summary: dict[str, Any]) -> bool:
    return all(entry[key] == summary.get(key) for key in ("model", "dataset", "method"))


def _has_paper_threat_model(summary: dict[str, Any]) -> bool:
    attack = summary.get("attack") or {}
    epsilon = attack.get("epsilon_value")
    if attack.get("norm") != "linf" or not isinstance(epsilon, int | float):
        return False
    return abs(epsilon - PAPER_EPSILON) < 1e-6


def paper_target(summary: Mapping[str, Any]) -> str | None:
    """What is fine-tuned, as the paper's tables tell it apart: the module that the authors found is the least
    critical one, also if it was given by its name.
    """
    target = canonical_target(summary)
    own = paper()["least_critical_module"].get(summary["model"], {}).get(summary["dataset"])
    return "least_critical" if target in (None, "top_1", own) else target


def _triple(values: list[float]) -> dict[str, float]:
    return dict(zip(_METRICS, values, strict=True))
