"""The table of many jobs: one row per setting, mean ± standard deviation over its seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from rift.report.cells import MISSING, mean_and_std, number
from rift.report.job import SMOKE_MARK
from rift.report.paper import canonical_target, paper_row
from rift.report.results import Job
from rift.report.settings import settings_texts
from rift.report.texts import attack_text, mean_text, ood_text
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
_SHOWN = {
    "clean": "clean",
    "ood": "ood",
    "ood_generated": None,
    "robust": "robust",
    "auto_attack": None,
    "auto_attack_quick": None,
}
_INTERVAL_OF = {"ood_generated": "ood", "auto_attack_quick": "auto_attack"}
_MEASURED = [f"{metric}_{part}" for metric in _METRICS for part in ("at", "rift", "delta")] + ["alpha"]
_PARTS = ("mrc", "joint", "gains", "sweep")  # of a summary, beside what was measured
_SHORT = {
    "no difference seen": "none",
    "too few seeds": "n < 3",
    MISSING: "",
}  # verdicts, for narrow terminals


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
        record = {
            key: summary.get(key) for key in ("model", "dataset", "method", "protocol", "seed", "name", "key")
        }
        record |= {
            "target": canonical_target(summary),
            "attack": attack_text(summary) + (f", {restarts} runs" if restarts else ""),
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
    columns = [*SETTING, "seed", *_MEASURED, "name", "key", "folder", "written", "job"]
    frame = pd.DataFrame(records, columns=columns)
    frame[_MEASURED] = frame[_MEASURED].astype(float)
    frame[SETTING[:-1]] = frame[SETTING[:-1]].fillna("").astype(str)
    return frame


def one_job_per_seed(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keeps one job per setting and seed: of the most complete ones, the newest.

    Returns:
        The jobs kept, in the order of their settings and seeds, and one warning for each seed that had
        several jobs. The same job found in several places with the same numbers is no reason to warn.
    """
    parts = frame["job"].map(lambda job: sum(bool(job.summary.get(name)) for name in _PARTS))
    frame = frame.assign(complete=frame[_MEASURED].notna().sum(axis=1) + parts.astype(int))
    newest_last = frame.sort_values(["complete", "written", "folder"], kind="stable")
    kept, warnings = [], []
    for _, same in newest_last.groupby([*SETTING, "seed"], sort=False):
        kept.append(same.index[-1])
        if len(same[["key", *_MEASURED]].drop_duplicates()) > 1:
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
        for column in _MEASURED:
            row[f"{column}_mean"] = group[column].mean()
            row[f"{column}_std"] = group[column].std(ddof=1)
        row |= _paper_numbers(group) | _verdicts(group)
        rows.append(row)
    return pd.DataFrame(rows)


def study_cells(jobs: pd.DataFrame, *, stacked: bool) -> pd.DataFrame:
    """One row of finished cells per setting.

    Args:
        jobs: as `one_job_per_seed` returns them.
        stacked: with clean above robust in each cell, for a terminal of 80 columns; otherwise side by
            side, and columns that would be empty in every row are left out.
    """
    if stacked:
        named = [name for name in ("attack", "ood") if jobs[name].nunique() > 1]
        return pd.DataFrame([_stacked(*row, named) for row in settings_of(jobs)])
    return _without_empty_columns(pd.DataFrame([_flat(*row) for row in settings_of(jobs)]))


def study_lines(jobs: pd.DataFrame) -> tuple[pd.DataFrame, list[list[Any]]]:
    """One row of finished cells per setting and metric, beside the paper's values.

    Args:
        jobs: as `one_job_per_seed` returns them.

    Returns:
        The table without columns that would be empty, and for each of its rows the index of its jobs.
    """
    rows, indices = [], []
    for setting, group in settings_of(jobs):
        cells, reported = _cells(group), paper_row(group["job"].iloc[0].summary) is not None
        for metric, in_paper in _SHOWN.items():
            if cells[f"{metric}_at"] == MISSING and cells[f"{metric}_rift"] == MISSING:
                continue
            row = _setting_cells(setting) | {"n": str(len(group)), "α*": cells["alpha"]}
            row |= {"accuracy (%)": metric_text(metric)}
            parts = {"at": "AT", "rift": "RiFT", "delta": "Δ"}
            row |= {shown: cells[f"{metric}_{part}"] for part, shown in parts.items()}
            row["seen"] = cells[f"{metric}_verdict"]
            for part, shown in parts.items():
                row[f"paper {shown}"] = cells[f"paper_{in_paper}_{part}"] if in_paper else MISSING
            versus = [cells[f"{metric}_{part}_vs_paper"] for part in parts] if in_paper and reported else []
            row["vs paper"] = ", ".join(versus) or MISSING
            rows.append(row)
            indices.append(list(group.index))
    return _without_empty_columns(pd.DataFrame(rows)), indices


def study_groups(jobs: pd.DataFrame, *, paper: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table for print: one row per setting, AT, RiFT and Δ of each metric as a group of columns.

    A setting is told by what the rows do not share.

    Args:
        jobs: as `one_job_per_seed` returns them.
        paper: whether the paper's values stand in a row of their own under ours.

    Returns:
        Finished cells, the columns named by pairs (group, name); and which cells are bold: of AT and RiFT the
        one that the verdict calls better, with its difference.
    """
    parts = {"at": "AT", "rift": "RiFT", "delta": "Δ"}
    groups = [(setting, group, _cells(group)) for setting, group in settings_of(jobs)]
    measured = [m for m in _SHOWN if any(cells[f"{m}_at"] != MISSING for *_, cells in groups)]
    varied = [name for name in SETTING if jobs[name].nunique() > 1] or ["model"]
    rows, bold = [], []
    for setting, group, cells in groups:
        texts = _setting_cells(setting) | {"smoke": SMOKE_MARK if setting["smoke"] == "True" else MISSING}
        row = {("", name): texts[name] for name in varied}
        row |= {("", "n"): str(len(group)), ("", "α*"): cells["alpha"]}
        marked = dict.fromkeys(row, False)
        told = dict.fromkeys(row, "") | {("", varied[0]): "paper"}
        for metric in measured:
            verdict, reported = cells[f"{metric}_verdict"], _SHOWN[metric]
            for part, shown in parts.items():
                column = (metric_text(metric), shown)
                row[column] = cells[f"{metric}_{part}"]
                marked[column] = (verdict == "worse") if part == "at" else verdict == "better"
                told[column] = cells[f"paper_{reported}_{part}"] if reported else MISSING
        rows.append(row)
        bold.append(marked)
        if paper and any(told[column] != MISSING for column in told if column[0]):
            rows.append(told)
            bold.append(dict.fromkeys(marked, False))
    return tuple(
        pd.DataFrame(table).set_axis(pd.MultiIndex.from_tuples(rows[0]), axis=1) for table in (rows, bold)
    )


def job_cells(jobs: pd.DataFrame) -> pd.DataFrame:
    """One row of finished cells per job, in the frame's order."""
    rows = []
    for index, row in jobs.iterrows():
        cells = _flat({name: row[name] for name in SETTING}, jobs.loc[[index]])
        cells = {name: cell for name, cell in cells.items() if "paper" not in name}
        rows.append({"seed" if name == "n" else name: cell for name, cell in cells.items()})
        rows[-1]["seed"] = str(row["seed"])
    return _without_empty_columns(pd.DataFrame(rows))


def study_caption(jobs: pd.DataFrame) -> str:
    """How to read the table, in a few sentences."""
    attacks = jobs["attack"].unique()
    attack = f"the worst run of {attacks[0]}" if len(attacks) == 1 else "the worst run of the attack named"
    sources = {row.source for job in jobs["job"] if (row := paper_row(job.summary))}
    paper = f" Paper: {'; '.join(sorted(sources))}." if sources else ""
    means = sorted({ood_text(job.summary) for job in jobs["job"] if job.summary.get("corruptions")})
    ood = f" OOD: mean over {'; or '.join(means)}." if means else ""
    return (
        "Accuracy in percent, mean ± standard deviation over n seeds; Δ in points. Verdicts: a 95 % t "
        "interval of Δ over three seeds or more, of one seed the paired test on its images. "
        f"Robust: {attack}.{ood}{paper}"
    )


def settings_of(jobs: pd.DataFrame) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    """Each setting with its jobs, in the frame's order."""
    for values, group in jobs.groupby(SETTING, sort=False):
        yield dict(zip(SETTING, values, strict=True)), group


def _paper_numbers(group: pd.DataFrame) -> dict[str, float | None]:
    row = paper_row(group["job"].iloc[0].summary)
    numbers: dict[str, float | None] = {}
    for metric in filter(None, _SHOWN.values()):
        # Where nothing of ours was measured, the paper's number would stand beside nothing.
        told = row if metric != "ood" or group["ood_at"].notna().any() else None
        numbers[f"paper_{metric}_at"] = told.at[metric] if told else None
        numbers[f"paper_{metric}_rift"] = told.rift[metric] if told and told.rift else None
        numbers[f"paper_{metric}_delta"] = told.delta(metric) if told else None
    return numbers


def _verdicts(group: pd.DataFrame) -> dict[str, str | None]:
    """Of each metric: RiFT against AT, and each of the two, and their difference, against the paper."""
    verdicts: dict[str, str | None] = {}
    reported = _paper_numbers(group)
    for metric, in_paper in _SHOWN.items():
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


def _cells(group: pd.DataFrame) -> dict[str, str]:
    """Every formatted number of a row, by the names of `study_frame`."""
    cells = {
        name: mean_and_std(group[name], expected=len(group), signed=name.endswith("delta"))
        for name in _MEASURED
    }
    cells |= {name: verdict or MISSING for name, verdict in _verdicts(group).items()}
    return cells | {
        name: number(value, signed=name.endswith("delta")) for name, value in _paper_numbers(group).items()
    }


def _flat(setting: dict[str, Any], group: pd.DataFrame) -> dict[str, str]:
    cells = _cells(group)
    row = _setting_cells(setting) | {"n": str(len(group)), "α*": cells["alpha"]}
    for prefix, head in (("", ""), ("paper_", "paper ")):
        for metric in _SHOWN if not prefix else filter(None, _SHOWN.values()):
            for part, shown in (("at", "AT"), ("rift", "RiFT"), ("delta", "Δ")):
                row[f"{head}{metric_text(metric)} {shown}"] = cells[f"{prefix}{metric}_{part}"]
            if not prefix:
                row[f"{metric_text(metric)} verdict"] = cells[f"{metric}_verdict"]
            else:
                parts = [cells[f"{metric}_{part}_vs_paper"] for part in ("at", "rift", "delta")]
                row[f"{metric_text(metric)} vs paper"] = (
                    MISSING if set(parts) == {MISSING} else ", ".join(parts)
                )
    return row


def _setting_cells(setting: dict[str, Any]) -> dict[str, str]:
    settings = [setting["settings"], f"({SMOKE_MARK})" if setting["smoke"] else ""]
    row = {key: setting[key] or MISSING for key in SETTING[:-2]}
    return row | {"settings": " ".join(part for part in settings if part) or MISSING}


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


def _stacked(setting: dict[str, Any], group: pd.DataFrame, named: list[str]) -> dict[str, str]:
    cells = _cells(group)
    lines = [f"{setting['model']} {setting['dataset']} {setting['method']}"]
    lines.append(", ".join(setting[key] for key in ("protocol", "target") if setting[key]))
    lines += [setting["attack"]] if "attack" in named else []
    lines += [f"OOD: {setting['ood']}"] if "ood" in named and setting["ood"] else []
    lines += setting["settings"].split()
    lines.append(f"n = {len(group)}" + ("" if cells["alpha"] == MISSING else f", α* = {cells['alpha']}"))
    lines += [SMOKE_MARK] if setting["smoke"] else []
    # The paper's numbers stand under ours, not beside them: so the table fits 80 columns.
    reported = paper_row(group["job"].iloc[0].summary) is not None
    metrics = []
    for metric, in_paper in _SHOWN.items():
        if cells[f"{metric}_at"] != MISSING or metric in ("clean", "robust"):
            metrics += [("", metric)] + ([("paper_", in_paper)] if reported and in_paper else [])
    row = {
        "setting": "\n".join(line for line in lines if line),
        "": "\n".join("  paper" if prefix else metric_text(metric) for prefix, metric in metrics),
    }
    for part, shown in (("at", "AT"), ("rift", "RiFT"), ("delta", "Δ")):
        row[shown] = "\n".join(cells[f"{prefix}{metric}_{part}"] for prefix, metric in metrics)
    seen = [MISSING if prefix else cells[f"{metric}_verdict"] for prefix, metric in metrics]
    row["seen"] = "\n".join(_SHORT.get(verdict, verdict) for verdict in seen)
    return row


def _without_empty_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Drops optional columns that say nothing: no paper row, no settings, no OOD accuracy anywhere."""
    empty = [
        name
        for name in frame.columns
        if (
            name.startswith(("paper", "OOD", "AutoAttack"))
            or name.endswith(("verdict", "vs paper"))
            or name in ("settings", "target", "protocol", "ood")
        )
        and (frame[name] == MISSING).all()
    ]
    return frame.drop(columns=empty)
