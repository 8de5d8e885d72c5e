"""The table of many jobs as finished cells: for terminals, for pages, for print."""

from __future__ import annotations

from typing import Any

import pandas as pd

from rift.report.cells import MISSING, counted_seeds, mean_and_std, number
from rift.report.paper import paper_row
from rift.report.study import MEASURED, SETTING, SHOWN, metric_text, paper_numbers, settings_of, verdicts_of
from rift.report.texts import SMOKE_MARK, ood_text

_SHORT = {
    "no difference seen": "none",
    "too few seeds": "< 3 seeds",
    MISSING: "",
}  # verdicts, for narrow terminals


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
        for metric, in_paper in SHOWN.items():
            if cells[f"{metric}_at"] == MISSING and cells[f"{metric}_rift"] == MISSING:
                continue
            row = _setting_cells(setting) | {"seeds": str(len(group)), "α*": cells["alpha"]}
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
    measured = [m for m in SHOWN if any(cells[f"{m}_at"] != MISSING for *_, cells in groups)]
    varied = [name for name in SETTING if jobs[name].nunique() > 1] or ["model"]
    rows, bold = [], []
    for setting, group, cells in groups:
        texts = _setting_cells(setting) | {"smoke": SMOKE_MARK if setting["smoke"] == "True" else MISSING}
        row = {("", name): texts[name] for name in varied}
        row |= {("", "seeds"): str(len(group)), ("", "α*"): cells["alpha"]}
        marked = dict.fromkeys(row, False)
        told = dict.fromkeys(row, "") | {("", varied[0]): "paper"}
        for metric in measured:
            verdict, reported = cells[f"{metric}_verdict"], SHOWN[metric]
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
        rows.append({"seed" if name == "seeds" else name: cell for name, cell in cells.items()})
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
        "Accuracy in percent, mean ± standard deviation over seeds; Δ in points. Verdicts: a 95 % t "
        "interval of Δ over three seeds or more, of one seed the paired test on its images. "
        f"Robust: {attack}.{ood}{paper}"
    )


def _cells(group: pd.DataFrame) -> dict[str, str]:
    """Every formatted number of a row, by the names of `study_frame`."""
    cells = {
        name: mean_and_std(group[name], expected=len(group), signed=name.endswith("delta"))
        for name in MEASURED
    }
    cells |= {name: verdict or MISSING for name, verdict in verdicts_of(group).items()}
    return cells | {
        name: number(value, signed=name.endswith("delta")) for name, value in paper_numbers(group).items()
    }


def _flat(setting: dict[str, Any], group: pd.DataFrame) -> dict[str, str]:
    cells = _cells(group)
    row = _setting_cells(setting) | {"seeds": str(len(group)), "α*": cells["alpha"]}
    for prefix, head in (("", ""), ("paper_", "paper ")):
        for metric in SHOWN if not prefix else filter(None, SHOWN.values()):
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


def _stacked(setting: dict[str, Any], group: pd.DataFrame, named: list[str]) -> dict[str, str]:
    cells = _cells(group)
    lines = [f"{setting['model']} {setting['dataset']} {setting['method']}"]
    lines.append(", ".join(setting[key] for key in ("protocol", "target") if setting[key]))
    lines += [setting["attack"]] if "attack" in named else []
    lines += [f"OOD: {setting['ood']}"] if "ood" in named and setting["ood"] else []
    lines += setting["settings"].split()
    chosen = "" if cells["alpha"] == MISSING else f", α* = {cells['alpha']}"
    lines.append(f"{counted_seeds(len(group))}{chosen}")
    lines += [SMOKE_MARK] if setting["smoke"] else []
    # The paper's numbers stand under ours, not beside them: so the table fits 80 columns.
    reported = paper_row(group["job"].iloc[0].summary) is not None
    metrics = []
    for metric, in_paper in SHOWN.items():
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
