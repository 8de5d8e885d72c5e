"""Is RiFT better than AT? Over seeds (trainings), and over the images of all seeds together (networks)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from scipy import stats

from rift.report.cells import MISSING, number, p_value
from rift.report.study import SETTING, metric_text, settings_of
from rift.report.verdicts import LEAST_SEEDS, LEAST_STD, interval_of_mean
from rift.sign_test import sign_test

# The metrics of a jobs' frame, and where a summary counts the images on which the two networks differ.
_METRICS = {
    "clean": "clean",
    "robust": None,
    "robust_per_image": "robust",
    "ood": None,
    "ood_generated": None,
    "auto_attack": None,
}
CAPTION = (
    "95 % interval, p seeds: t interval of the mean difference (points) and the paired t test over the "
    "seeds' trainings, from three on. Only right: images that one of the two networks has right, added up "
    "over seeds; p images: the exact McNemar test on their sum, which is the test stratified by seed; it "
    "speaks of these trained networks, not of others. p seeds agree: a χ² test that the seeds share one "
    "ratio; a small p says that their sum hides differences."
)


def significance_frame(jobs: pd.DataFrame) -> pd.DataFrame:
    """One row of numbers per setting and metric; what cannot be told is missing.

    Args:
        jobs: as `one_job_per_seed` returns them.

    Returns:
        The setting, `metric`, `n`, `delta`, `low`, `high` (points), `p_seeds`, `only_at`, `only_rift`
        (images), `p_images`, `p_seeds_agree`.
    """
    rows = []
    for setting, group in settings_of(jobs):
        for metric, paired in _METRICS.items():
            deltas = list(group[f"{metric}_delta"].dropna())
            if not deltas:
                continue
            row = dict(setting) | {
                "metric": metric,
                "n": len(deltas),
                "delta": math.fsum(deltas) / len(deltas),
            }
            if len(deltas) >= LEAST_SEEDS:
                row["low"], row["high"] = interval_of_mean(deltas, LEAST_STD)
                row["p_seeds"] = seeds_test(deltas)
            if paired is not None:
                row |= pooled([(job.summary.get("paired") or {}).get(paired) for job in group["job"]])
            rows.append(row)
    numbers = ["delta", "low", "high", "p_seeds", "only_at", "only_rift", "p_images", "p_seeds_agree"]
    names = [name for name in (rows[0] if rows else {}) if name not in numbers]
    return pd.DataFrame(rows, columns=[*names, *numbers])


def seeds_test(deltas: Sequence[float]) -> float | None:
    """p-value of the paired t test over seeds; a spread below five of 10 000 images counts as that much."""
    std = max(pd.Series(deltas).std(ddof=1), LEAST_STD)
    statistic = math.fsum(deltas) / len(deltas) / (std / math.sqrt(len(deltas)))
    return 2 * float(stats.t.sf(abs(statistic), len(deltas) - 1))


def pooled(tests: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """McNemar's test on the images of several seeds; nothing if one of them did not count its images."""
    counts = [(test or {}).get(name) for test in tests for name in ("only_at", "only_rift")]
    if not counts or not all(isinstance(count, int) and count >= 0 for count in counts):
        return {}
    only_at, only_rift = counts[::2], counts[1::2]
    found = {"only_at": sum(only_at), "only_rift": sum(only_rift)}
    found["p_images"] = sign_test(found["only_at"], found["only_rift"])
    strata = [pair for pair in zip(only_at, only_rift, strict=True) if sum(pair)]
    if len(strata) > 1 and found["only_at"] and found["only_rift"]:
        found["p_seeds_agree"] = float(stats.chi2_contingency(strata, correction=False).pvalue)
    return found


def significance_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """`significance_frame` as finished cells; a setting is told by what the rows do not share."""
    settings = [name for name in SETTING if name in frame]
    told = [name for name in settings if frame[name].nunique() > 1] or settings[:3]
    rows = []
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        low, high = (number(row[end], signed=True) for end in ("low", "high"))
        counted = row["only_at"] is not None
        rows.append(
            {
                "setting": " ".join(str(row[name]) for name in told if row[name]),
                "accuracy (%)": metric_text(row["metric"]),
                "seeds": str(row["n"]),
                "Δ (points)": number(row["delta"], signed=True),
                "95 % interval": MISSING if row["low"] is None else f"{low} … {high}",
                "p seeds": _p(row["p_seeds"]),
                "only AT right": str(int(row["only_at"])) if counted else MISSING,
                "only RiFT right": str(int(row["only_rift"])) if counted else MISSING,
                "p images": _p(row["p_images"]),
                "p seeds agree": _p(row["p_seeds_agree"]),
            }
        )
    return pd.DataFrame(rows)


def _p(value: float | None) -> str:
    return MISSING if value is None else p_value(value)
