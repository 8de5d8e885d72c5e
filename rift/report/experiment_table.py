"""An experiment's table: what the paper reports, what was measured, and the difference, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

import pandas as pd

from rift.report.cells import MISSING, counted_seeds, mean_and_std, number
from rift.report.experiments import Cell, arm_about, arm_options
from rift.report.paper import PAPER_EPSILON, PaperRow, paper_row
from rift.report.study import difference_seen, metric_text
from rift.report.texts import SMOKE_MARK, attack_text, ood_text
from rift.report.tradeoff import harmonic_mean
from rift.report.verdicts import against_paper

NOT_RUN = "not run"
PARTS = {"at": "AT", "rift": "RiFT", "delta": "Δ"}
# Rows of a cell; a metric that is not always there has a row only where it was measured, or reported.
_METRICS = {
    "clean": True,
    "robust": True,
    "auto_attack": False,
    "auto_attack_quick": False,
    "ood": False,
    "ood_generated": False,
    "harmonic": True,
    "area": False,
}


@dataclass(frozen=True)
class Line:
    """One metric of one cell.

    Attributes:
        cell: whose.
        metric: a key of the table's metrics.
        reported: the paper's AT, RiFT and Δ, in percent and points; None where it reports none.
        mark: a letter for how the cell's runs differ from the paper's, or nothing.
    """

    cell: Cell
    metric: str
    reported: dict[str, float | None]
    mark: str

    def values(self, part: str) -> pd.Series:
        """One number for each seed that has one."""
        return self.cell.jobs[f"{self.metric}_{part}"].dropna()

    def ours(self, part: str) -> str:
        """`81.46 ± 0.12`, or that nothing was run."""
        values = self.values(part)
        if values.empty:
            return NOT_RUN
        return mean_and_std(values, expected=len(self.cell.seeds), signed=part == "delta")

    def paper(self, part: str) -> str:
        return number(self.reported[part], signed=part == "delta")

    def difference(self, part: str) -> float | None:
        """Ours minus the paper's, in points."""
        values, reported = self.values(part), self.reported[part]
        return None if values.empty or reported is None else float(values.mean()) - reported

    def seen(self) -> str:
        """Whether RiFT differs from AT; of an area, which cannot fall, it is no question."""
        if self.metric == "area":
            return MISSING
        return difference_seen(self.cell.jobs, self.metric) or MISSING

    def against_paper(self, part: str) -> str:
        values, reported = self.values(part), self.reported[part]
        return MISSING if values.empty or reported is None else against_paper(list(values), reported)


def lines(cells: Sequence[Cell]) -> list[Line]:
    """Every metric of every cell."""
    marks = _marks(cells)
    return [
        Line(cell, metric, reported, mark)
        for cell, mark in zip(cells, marks, strict=True)
        for metric, reported in _metrics(cell)
    ]


def footnotes(cells: Sequence[Cell]) -> list[str]:
    """`[a] stage.at.epochs = 20 (paper: 110), …`: how marked cells differ from the paper's runs."""
    told = dict.fromkeys(
        (mark, text)
        for cell, mark in zip(cells, _marks(cells), strict=True)
        if mark and (text := _differing(cell))
    )
    notes = [f"[{mark}] {text}" for mark, text in told]
    notes += dict.fromkeys(warning for cell in cells for warning in cell.warnings)
    left_out = sum(cell.others for cell in cells)
    if left_out:
        notes.append(f"{left_out} finished jobs of these cells have other options and are not in the table.")
    return notes


def experiment_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Numbers for CSV, one row per cell and metric; percent, points; no std of fewer than two."""
    rows = []
    for line in lines(cells):
        cell = line.cell
        row: dict[str, Any] = {**cell.setting, "target": cell.target or "", "arm": cell.arm or ""}
        row |= {"metric": line.metric, "seeds": " ".join(str(seed) for seed in sorted(cell.jobs["seed"]))}
        row |= {"n": len(line.values("at")), "wanted": len(cell.seeds)}
        for part in PARTS:
            values = line.values(part)
            row |= {
                f"{part}_paper": line.reported[part],
                f"{part}_mean": values.mean(),
                f"{part}_std": values.std(ddof=1),
                f"{part}_difference": line.difference(part),
                f"{part}_vs_paper": line.against_paper(part),
            }
        rows.append(row | {"seen": line.seen(), "differs_from_paper": _differing(cell)})
    return pd.DataFrame(rows)


def experiment_cells(cells: Sequence[Cell], *, stacked: bool) -> pd.DataFrame:
    """One row of finished cells for each metric of each cell.

    Args:
        cells: of one experiment.
        stacked: paper above ours above their difference, for a terminal; otherwise side by side.
    """
    rows, named = [], None
    for line in lines(cells):
        # A cell is named at its first row.
        label = "" if line.cell is named else ("\n" if stacked else " ").join(_label(line))
        named = line.cell
        row = {"cell": label, "metric": metric_text(line.metric)}
        reported = any(value is not None for value in line.reported.values())
        for part, shown in PARTS.items():
            ours, paper = line.ours(part), line.paper(part)
            difference = number(line.difference(part), signed=True)
            if stacked:
                row[""] = "paper\n  ours\n  difference" if reported else "ours"
                row[shown] = f"{paper}\n{ours}\n{difference}" if reported else ours
            else:
                row |= {f"{shown} paper": paper, f"{shown} ours": ours, f"{shown} diff.": difference}
        row["seen"] = line.seen()
        versus = [line.against_paper(part) for part in PARTS]
        if stacked:
            row["vs paper"] = "" if set(versus) == {MISSING} else "\n".join(versus)
        else:
            row["vs paper"] = MISSING if set(versus) == {MISSING} else ", ".join(versus)
        rows.append(row)
    frame = pd.DataFrame(rows)
    empty = [name for name in frame if name.endswith(("paper", "diff.")) and set(frame[name]) <= {MISSING}]
    return frame.drop(columns=empty)


def experiment_caption(cells: Sequence[Cell]) -> str:
    """How to read the table."""
    jobs = [job.summary for cell in cells for job in cell.jobs["job"]]
    attacks = sorted({attack_text(summary) for summary in jobs})
    means = sorted({ood_text(summary) for summary in jobs if summary.get("corruptions")})
    parts = [
        "Accuracy in percent, mean ± standard deviation over seeds, Δ and differences in points. "
        "Seen: RiFT against AT, by a 95 % t interval over three seeds or more, of one seed by the paired "
        "test on its images. Area: share of the clean–robust square that the curve along α dominates, where "
        "α* was chosen; RiFT's cannot be below AT's."
    ]
    parts += [f"Robust: the worst run of {'; or of '.join(attacks)}."] if attacks else []
    parts += [f"OOD: mean over {'; or '.join(means)}."] if means else []
    sources = {row.source for summary in jobs if (row := paper_row(summary))}
    parts += [f"Paper: {'; '.join(sorted(sources))}."] if sources else []
    arms = {cell.arm: arm_about(cell.arm) for cell in cells if cell.arm}
    parts += [f"{arm}: {about}." for arm, about in arms.items()]
    return " ".join(parts)


def _metrics(cell: Cell) -> Iterator[tuple[str, dict[str, float | None]]]:
    reported = _paper(cell)
    for metric, always in _METRICS.items():
        numbers: dict[str, float | None] = dict.fromkeys(PARTS)
        if reported is not None:
            numbers = _reported(reported, metric)
        measured = cell.jobs[f"{metric}_at"].notna().any()
        # Where only our own corrupted images were used, the paper's OOD accuracy stands beside nothing.
        if always or measured or numbers["at"] is not None:
            yield metric, numbers


def _paper(cell: Cell) -> PaperRow | None:
    """The paper's row for a cell, whether or not anything was run."""
    if len(cell.jobs):
        return paper_row(cell.jobs["job"].iloc[0].summary)
    attack = {"norm": "linf", "epsilon_value": PAPER_EPSILON}
    summary = {**cell.setting, "target": cell.target, "attack": attack}
    return paper_row(summary) if cell.arm is None else None


def _reported(row: PaperRow, metric: str) -> dict[str, float | None]:
    if metric == "harmonic":
        at = harmonic_mean(row.at["clean"], row.at["robust"])
        rift = None if row.rift is None else harmonic_mean(row.rift["clean"], row.rift["robust"])
        delta = None if rift is None or at is None else rift - at
        return {"at": at, "rift": rift, "delta": delta}
    if metric not in row.at:
        return dict.fromkeys(PARTS)
    rift = None if row.rift is None else row.rift[metric]
    return {"at": row.at[metric], "rift": rift, "delta": row.delta(metric)}


def _label(line: Line) -> list[str]:
    cell = line.cell
    parts = [f"{cell.setting['model']} {cell.setting['dataset']}"]
    parts += [" ".join([cell.setting["method"], cell.setting["protocol"]])]
    parts += [cell.arm or cell.target or ""]
    seeds = sorted(cell.jobs["seed"])
    missing = len(seeds) < len(cell.seeds)
    count = f"{len(seeds)} of {len(cell.seeds)} seeds" if missing else counted_seeds(len(seeds))
    if not set(seeds) <= set(cell.seeds):
        count += f": {', '.join(map(str, seeds))}"
    parts += [count + (f" [{line.mark}]" if line.mark else "")]
    if len(cell.jobs) and cell.jobs["smoke"].any():
        parts.append(SMOKE_MARK)
    return [part for part in parts if part]


def _differing(cell: Cell) -> str:
    if not len(cell.jobs):
        return ""
    own = ("stage.finetune.target", "stage.finetune.top_k", *(arm_options(cell.arm) if cell.arm else ()))
    found = dict.fromkeys(
        difference
        for job in cell.jobs["job"]
        for difference in job.summary.get("differences") or []
        if not difference.startswith(own)
    )
    return ", ".join(found)


def _marks(cells: Sequence[Cell]) -> list[str]:
    """A letter for each way in which cells differ from the paper's runs."""
    letters: dict[str, str] = {}
    found = []
    for cell in cells:
        text = _differing(cell)
        if text and text not in letters:
            count = len(letters)
            letters[text] = ascii_lowercase[count % 26] * (1 + count // 26)
        found.append(letters.get(text, ""))
    return found
