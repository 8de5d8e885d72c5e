"""The table of many jobs: one row per setting, mean ± standard deviation over its seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from rift.report.paper import canonical_target, paper_row
from rift.report.results import Job
from rift.report.settings import settings_texts
from rift.report.texts import attack_text, mean_text
from rift.report.tradeoff import with_tradeoff
from rift.report.verdicts import against_paper, over_seeds

SETTING = ["model", "dataset", "method", "protocol", "target", "attack", "ood", "settings", "smoke"]
_METRICS = {
    "clean": "clean_accuracy",
    "robust": "robust_accuracy",
    "robust_per_image": "robust_accuracy_per_image",
    "auto_attack": "auto_attack_accuracy",
    "auto_attack_quick": "auto_attack_quick_accuracy",
    "harmonic": "harmonic_accuracy",  # of clean and robust, see `rift.report.tradeoff`
    "area": "dominated_area",
    "ood": "ood_accuracy",  # of the published images
    "ood_generated": "ood_accuracy_generated",  # of our own: another column, and never beside the paper's
}
# The metrics of a table, and the paper's name for them.
SHOWN = {
    "clean": "clean",
    "ood": "ood",
    "ood_generated": None,
    "robust": "robust",
    "auto_attack": None,
    "auto_attack_quick": None,
}
_INTERVAL_OF = {"ood_generated": "ood", "auto_attack_quick": "auto_attack"}
MEASURED = [f"{metric}_{part}" for metric in _METRICS for part in ("at", "rift", "delta")] + ["alpha"]
_PARTS = ("mrc", "joint", "gains", "sweep")  # of a summary, beside what was measured


def _ood_setting(options: dict[str, Any]) -> str:
    """What OOD is the mean of, whether or not it was measured yet: `paper15, severities 1, 2`."""
    severities = options.get("stage.evaluate.severities")
    if severities is None:
        return ""
    return mean_text(options["stage.evaluate.ood"], severities)


def jobs_frame(jobs: Iterable[Job]) -> pd.DataFrame:
    """One row per job: its setting, seed, accuracies in percent, differences in points, α, and its origin."""
    records = []
    for job in jobs:
        summary = job.summary
        at, rift = (with_tradeoff(summary, which) for which in ("at", "rift"))
        restarts = (summary.get("attack") or {}).get("restarts")
        runs = f", {restarts} run{'s' * (restarts != 1)}" if restarts else ""
        record = {
            key: summary.get(key) for key in ("model", "dataset", "method", "protocol", "seed", "name", "key")
        }
        record |= {
            "target": canonical_target(summary),
            "attack": attack_text(summary) + runs,
            "ood": _ood_setting(summary.get("options") or {}),
            "smoke": bool(summary.get("smoke")),
        }
        for metric, key in _METRICS.items():
            before, after = at.get(key), rift.get(key)
            both = before is not None and after is not None
            record[f"{metric}_at"] = None if before is None else 100 * before
            record[f"{metric}_rift"] = None if after is None else 100 * after
            record[f"{metric}_delta"] = 100 * (after - before) if both else None
        record |= {
            "alpha": summary.get("alpha"),
            "folder": str(job.folder),
            "written": job.written,
            "job": job,
        }
        records.append(record)
    others = [name for name in SETTING if name != "settings"]
    settings = [tuple(record[name] for name in others) for record in records]
    options = [record["job"].summary.get("options") or {} for record in records]
    for record, text in zip(records, settings_texts(settings, options), strict=True):
        record["settings"] = text
    columns = [*SETTING, "seed", *MEASURED, "name", "key", "folder", "written", "job"]
    frame = pd.DataFrame(records, columns=columns)
    frame[MEASURED] = frame[MEASURED].astype(float)
    frame[SETTING[:-1]] = frame[SETTING[:-1]].fillna("").astype(str)
    return frame


def one_job_per_seed(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keeps one job per setting and seed: of the most complete ones, the newest.

    Returns:
        The jobs kept, in the order of their settings and seeds, and one warning for each seed that had
        several jobs. The same job found in several places with the same numbers is no reason to warn.
    """
    parts = frame["job"].map(lambda job: sum(bool(job.summary.get(name)) for name in _PARTS))
    frame = frame.assign(complete=frame[MEASURED].notna().sum(axis=1) + parts.astype(int))
    newest_last = frame.sort_values(["complete", "written", "folder"], kind="stable")
    kept, warnings = [], []
    for _, same in newest_last.groupby([*SETTING, "seed"], sort=False):
        kept.append(same.index[-1])
        if len(same[["key", *MEASURED]].drop_duplicates()) > 1:
            used = same.iloc[-1]
            others = ", ".join(same["folder"].iloc[:-1])
            warnings.append(
                f"seed {used['seed']} of {used['name']} has {len(same)} jobs; "
                f"used {used['folder']}, not {others}"
            )
    ordered = frame.loc[sorted(kept)].sort_values([*SETTING, "seed"], kind="stable")
    return ordered.drop(columns="complete"), warnings


def study_frame(jobs: pd.DataFrame) -> pd.DataFrame:
    """One row of numbers per setting, for CSV and further work: mean, std (n-1) and the paper's values.

    Accuracies in percent, differences in points; a std over fewer than two seeds is missing.
    """
    rows = []
    for setting, group in settings_of(jobs):
        row = dict(setting) | {
            "n": len(group),
            "seeds": " ".join(str(seed) for seed in sorted(group["seed"])),
        }
        for column in MEASURED:
            row[f"{column}_mean"] = group[column].mean()
            row[f"{column}_std"] = group[column].std(ddof=1)
        row |= paper_numbers(group) | verdicts_of(group)
        rows.append(row)
    return pd.DataFrame(rows)


def settings_of(jobs: pd.DataFrame) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    """Each setting with its jobs, in the frame's order."""
    for values, group in jobs.groupby(SETTING, sort=False):
        yield dict(zip(SETTING, values, strict=True)), group


def paper_numbers(group: pd.DataFrame) -> dict[str, float | None]:
    row = paper_row(group["job"].iloc[0].summary)
    numbers: dict[str, float | None] = {}
    for metric in filter(None, SHOWN.values()):
        # Where nothing of ours was measured, the paper's number would stand beside nothing.
        told = row if metric != "ood" or group["ood_at"].notna().any() else None
        numbers[f"paper_{metric}_at"] = told.at[metric] if told else None
        numbers[f"paper_{metric}_rift"] = told.rift[metric] if told and told.rift else None
        numbers[f"paper_{metric}_delta"] = told.delta(metric) if told else None
    return numbers


def verdicts_of(group: pd.DataFrame) -> dict[str, str | None]:
    """Of each metric: RiFT against AT, and each of the two, and their difference, against the paper."""
    verdicts: dict[str, str | None] = {}
    reported = paper_numbers(group)
    for metric, in_paper in SHOWN.items():
        verdicts[f"{metric}_verdict"] = difference_seen(group, metric)
        for part in ("at", "rift", "delta") if in_paper else ():
            paper, values = reported[f"paper_{in_paper}_{part}"], group[f"{metric}_{part}"].dropna()
            known = paper is not None and len(values) > 0
            verdicts[f"{metric}_{part}_vs_paper"] = against_paper(list(values), paper) if known else None
    return verdicts


def difference_seen(group: pd.DataFrame, metric: str) -> str | None:
    """RiFT against AT by the rule of `rift.report.verdicts`; one seed is judged by its test images."""
    deltas = group[f"{metric}_delta"].dropna()
    if len(deltas) != 1:
        return over_seeds(list(deltas)) if len(deltas) else None
    (index,) = deltas.index
    intervals = group["job"][index].summary.get("intervals") or {}
    interval = intervals.get(_INTERVAL_OF.get(metric, metric))
    return interval["verdict"] if interval else None


def metric_text(metric: str) -> str:
    """How a table calls a metric."""
    names = {
        "ood": "OOD",
        "ood_generated": "OOD generated",
        "robust_per_image": "robust, per image",
        "auto_attack": "AutoAttack",
        "auto_attack_quick": "AutoAttack screen",
    }
    return names.get(metric, metric)
