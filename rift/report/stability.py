"""Is the ranking of modules stable, and does a low MRC tell a module that is worth fine-tuning?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd
from scipy import stats

from rift.report.cells import mean_and_std, number, p_value
from rift.report.experiments import Cell, arm_about
from rift.report.verdicts import interval_of_mean

REFERENCE = "scan"
_RELATIONS = {
    "delta_clean": "Δ clean to α*, test split",
    "end_delta_clean": "Δ clean to α = 1",
    "end_delta_robust": "Δ robust to α = 1",
    "alpha": "α*",
}


def agreement(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """How alike two scans of the same modules are.

    Args:
        first, second: MRC by module name.

    Returns:
        Spearman's ρ and Kendall's τ over the modules, whether the least critical one is the same (0 or 1),
        the share of the three least critical that both have, and the median of |ΔMRC| / MRC.
    """
    names = sorted(first.keys() & second.keys())
    one, two = ([scan[name] for name in names] for scan in (first, second))
    lowest = [sorted(names, key=scan.__getitem__) for scan in (first, second)]
    top = min(3, len(names))
    changes = [abs(b - a) / abs(a) for a, b in zip(one, two, strict=True) if a]
    return {
        "spearman": _correlation(stats.spearmanr, one, two),
        "kendall": _correlation(stats.kendalltau, one, two),
        "same_least": float(lowest[0][0] == lowest[1][0]),
        "shared_lowest": len(set(lowest[0][:top]) & set(lowest[1][:top])) / top,
        "change": float(pd.Series(changes).median()),
    }


def stability_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per kind of change: each arm against the reference of the same seed, and seed against seed.

    Numbers; the columns of `agreement`, each row over all its pairs. Columns `change_of`, `pair`.
    """
    rows = []
    for setting, arms in _by_setting(cells).items():
        reference = arms.get(REFERENCE, {})
        pairs = [("another seed", f"{a}–{b}", reference[a], reference[b]) for a, b in _pairs(reference)]
        for arm, scans in arms.items():
            if arm != REFERENCE:
                shared = sorted(scans.keys() & reference.keys())
                pairs += [(arm_about(arm), str(seed), reference[seed], scans[seed]) for seed in shared]
        rows += [
            {"setting": setting, "change_of": change, "pair": pair, **agreement(first, second)}
            for change, pair, first, second in pairs
        ]
    return pd.DataFrame(rows)


def stability_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """`stability_frame` as finished cells: mean ± standard deviation over the pairs."""
    rows = []
    for (setting, change), group in frame.groupby(["setting", "change_of"], sort=False):
        count = len(group)
        rows.append(
            {
                "of": setting,
                "what is changed": change,
                "pairs": str(count),
                "Spearman ρ": mean_and_std(group["spearman"], expected=count),
                "Kendall τ": mean_and_std(group["kendall"], expected=count),
                "same least critical": f"{int(group['same_least'].sum())} of {count}",
                "of the 3 lowest, shared": number(3 * group["shared_lowest"].mean(), 1),
                "median change of MRC": f"{number(100 * group['change'].median(), 0)} %",
            }
        )
    return pd.DataFrame(rows)


def relation_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Spearman's ρ between MRC and what fine-tuning each module alone brings; one row per job with gains."""
    rows = []
    for cell in cells:
        for job in cell.jobs["job"]:
            gains = job.summary.get("gains")
            if not gains:
                continue
            best = max(gains, key=lambda row: row["delta_clean"])
            least = min(gains, key=lambda row: row["mrc"])
            mrcs = [row["mrc"] for row in gains]
            row: dict[str, Any] = {"setting": _setting(cell), "seed": job.summary["seed"]}
            for name in _RELATIONS:
                gained = [entry[name] for entry in gains]
                row[name] = _correlation(stats.spearmanr, mrcs, gained)
                row[f"{name}_p"] = _correlation(stats.spearmanr, mrcs, gained, part="pvalue")
            row |= {
                "modules": len(gains),
                "least_gain": 100 * least["delta_clean"],
                "mean_gain": 100 * sum(entry["delta_clean"] for entry in gains) / len(gains),
                "best_gain": 100 * best["delta_clean"],
                "best_rank": best["rank"],
            }
            rows.append(row)
    return pd.DataFrame(rows)


def relation_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """`relation_frame` as finished cells over seeds, each correlation with a verdict."""
    rows = []
    for setting, group in frame.groupby("setting", sort=False):
        count = len(group)
        for name, text in _RELATIONS.items():
            rows.append(
                {
                    "of": setting,
                    "MRC against": text,
                    "networks": str(count),
                    "Spearman ρ": mean_and_std(group[name], expected=count, signed=True),
                    "seen": _relation_verdict(list(group[name].dropna())),
                }
            )
            if count == 1 and not math.isnan(p := group[f"{name}_p"].iloc[0]):
                modules = int(group["modules"].iloc[0])
                rows[-1]["seen"] += f"; in this network {p_value(p)} over {modules} modules"
    return pd.DataFrame(rows)


def choice_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """What choosing by MRC brought, against the average module and the best one in hindsight; points."""
    rows = []
    for setting, group in frame.groupby("setting", sort=False):
        count = len(group)
        row = {"of": setting, "networks": str(count)}
        for name, text in (
            ("least_gain", "Δ clean of the least critical"),
            ("mean_gain", "mean of all modules"),
            ("best_gain", "best module, in hindsight"),
        ):
            row[text] = mean_and_std(group[name], expected=count, signed=True)
        ranks = ", ".join(str(int(rank)) for rank in group["best_rank"])
        rows.append(row | {"MRC rank of the best": ranks, "modules": str(int(group["modules"].iloc[0]))})
    return pd.DataFrame(rows)


CAPTION = (
    "Each change against the reference scan of the same θ_AT, seeds against each other's. ρ and τ over all "
    "modules, mean ± standard deviation over pairs."
)
RELATION_CAPTION = (
    "Over all modules, each fine-tuned alone; mean ± standard deviation over the trained networks, "
    "verdict by the 95 % t interval of ρ over three or more. If a low MRC tells a module that is worth "
    "fine-tuning, its ρ with Δ is negative where a gain is good and robustness is kept. Several modules "
    "with the same gain are a tie."
)


def _relation_verdict(values: list[float]) -> str:
    if len(values) < 3:
        return "too few seeds"
    low, high = interval_of_mean(values)
    if low <= 0 <= high:
        return "no relation seen"
    return "rises with MRC" if low > 0 else "falls with MRC"


def _by_setting(cells: Sequence[Cell]) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """Scans by setting, arm and seed: MRC by module."""
    found: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for cell in cells:
        scans = {
            job.summary["seed"]: {row["module"]: row["mrc"] for row in job.summary["mrc"]}
            for job in cell.jobs["job"]
            if job.summary.get("mrc")
        }
        if scans:
            found.setdefault(_setting(cell), {})[cell.arm or REFERENCE] = scans
    return found


def _pairs(scans: Mapping[int, Any]) -> list[tuple[int, int]]:
    return list(combinations(sorted(scans), 2))


def _setting(cell: Cell) -> str:
    return " ".join(cell.setting.values())


def _correlation(function: Any, one: Sequence[float], two: Sequence[float], part: str = "statistic") -> float:
    """NaN where one side is constant, as for modules that all stay at α* = 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        value = float(getattr(function(one, two), part))
    return value if math.isfinite(value) else math.nan
