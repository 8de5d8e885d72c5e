"""The page's sections of figures: along α, the scans, training, corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rift.report.web.page import LegendEntry, PageFigure, PageSection, load_charts
from rift.report.web.rows import Row, Shown, corruption_rows, curve_rows, scan_rows, training_rows

_MOST = 40  # figures of one kind; more make a page that nobody reads
_BANDS = "Bands and bars are ± one standard deviation over seeds; of a single seed "


def by_dataset(shown: Sequence[Shown]) -> dict[str, list[Shown]]:
    """The jobs of each data set, under what its figures are called: their accuracies share no axis."""
    found: dict[str, list[Shown]] = {}
    for one in shown:
        found.setdefault(f": {one.job.summary['dataset']}", []).append(one)
    return found if len(found) > 1 else {"": list(shown)}


def curves(groups: Mapping[str, Sequence[Shown]]) -> PageSection:
    """Accuracies along α; the jobs are as `by_dataset` returns them."""
    figures = []
    for where, shown in groups.items():
        if rows := curve_rows(shown):
            figures += _curve_figures(where, rows)
    if not figures:
        return PageSection("curves", "")
    return PageSection(
        "curves",
        "Along α",
        f"From AT (α = 0) to the fine-tuned weights (α = 1); stars are the α that was chosen. {_BANDS}the "
        "binomial standard error on the images where α was chosen, which all points of a curve share.",
        figures=figures,
    )


def _curve_figures(where: str, rows: Sequence[Row]) -> list[PageFigure]:
    charts, jobs = load_charts(), _of(rows)
    colours = charts.series_colours(rows)
    tradeoff, legend = charts.tradeoff_chart(rows, colours), _legend(rows, colours)
    clean, robust = (charts.along_chart(rows, which, colours) for which in ("clean", "robust"))
    return [
        PageFigure(f"Clean against robust accuracy{where}", tradeoff, jobs, wide=True, legend=legend),
        PageFigure(f"Clean accuracy{where}", clean, jobs, shares=True),
        PageFigure(f"Robust accuracy{where}", robust, jobs, shares=True),
    ]


def scans(shown: Sequence[Shown]) -> PageSection:
    """MRC and robust accuracy drop of each module, a pair of figures for each network."""
    found = scan_rows(shown)
    figures = []
    for network, rows in list(found.items())[: _MOST // 2]:
        charts, jobs = load_charts(), _of(rows)
        figures += [
            PageFigure(
                f"MRC: {network}", charts.scan_chart(rows, "mrc", "MRC (increase of the robust loss)"), jobs
            ),
            PageFigure(
                f"Robust accuracy drop: {network}",
                charts.scan_chart(rows, "drop", "robust accuracy drop (points)"),
                jobs,
            ),
        ]
    text = (
        "Every module in network order. Blue bars and ★: fine-tuned (2/3: in two of three jobs). Bars are "
        "means over seeds, orange ticks the seeds, diamonds the paper's Figure 3."
    )
    return PageSection(
        "criticality", "Criticality", f"{text}{_left_out(found, 2)}" if figures else "", figures=figures
    )


def training(groups: Mapping[str, Sequence[Shown]]) -> PageSection:
    """Both trainings' accuracies and losses; the jobs are as `by_dataset` returns them."""
    figures, sentences = [], []
    for stage, name in (("at", "Adversarial training"), ("finetune", "Fine-tuning")):
        missing = []
        for where, shown in groups.items():
            rows, absent = training_rows(shown, stage)
            missing += absent
            figures += _training_figures(name, where, rows)
        if missing:
            sentences.append(
                f"{name}: no curve of {listed(missing)}; the store (store/{stage}/…/metrics.jsonl beside "
                "the folder jobs/) is not in reach or has none."
            )
    return PageSection("training", "Training curves", " ".join(sentences), figures=figures)


def _training_figures(name: str, where: str, rows: Sequence[Row]) -> list[PageFigure]:
    if not rows:
        return []
    charts, found = load_charts(), []
    colours = charts.series_colours(rows)
    legend = _legend(rows, colours)
    for loss, what in ((False, "accuracy"), (True, "loss")):
        if drawn := [row for row in rows if (row["metric"] == "loss") == loss]:
            chart = charts.training_chart(drawn, colours, loss=loss)
            own = [] if found else legend  # the first one's is for both
            title, shares = f"{name}: {what}{where}", bool(found)
            found.append(PageFigure(title, chart, _of(drawn), legend=own, shares=shares))
    return found


def corruptions(shown: Sequence[Shown]) -> PageSection:
    """Heat maps of AT and of RiFT's difference, a pair for each setting."""
    heats = corruption_rows(shown)
    figures = []
    for series, rows in list(heats.items())[: _MOST // 2]:
        charts, jobs = load_charts(), _of(rows)
        kinds = " and ".join(dict.fromkeys(row["kind"] for row in rows))
        figures.append(
            PageFigure(
                f"AT, accuracy (%), {kinds} images: {series}", charts.heat_chart(rows, "at", "AT (%)"), jobs
            )
        )
        both = [row for row in rows if row["delta"] is not None]
        if both:
            chart = charts.heat_chart(both, "delta", "RiFT − AT (points)")
            figures.append(PageFigure(f"RiFT − AT (points): {series}", chart, _of(both)))
    text = "Means over seeds. Generated images are never compared with published numbers."
    return PageSection(
        "corruptions", "Under corruption", f"{text}{_left_out(heats, 2)}" if figures else "", figures=figures
    )


def _legend(rows: Sequence[Row], colours: Mapping[str, str]) -> list[LegendEntry]:
    """What the colours of figures mean; nothing where there is one."""
    entries = [
        LegendEntry(series, colour, _of([row for row in rows if row["series"] == series]))
        for series, colour in colours.items()
    ]
    return entries if len(entries) > 1 else []


def _of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["job"] for row in rows))


def listed(numbers: Sequence[str]) -> str:
    """`#1 #2 #3 … #7`: runs of neighbours as their ends."""
    runs: list[list[int]] = []
    for value in (int(text[1:]) for text in numbers):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"#{low}" if low == high else f"#{low}–#{high}" for low, high in runs)


def _left_out(found: dict[str, Any], each: int) -> str:
    more = len(found) - _MOST // each
    return f" {more} more settings have no figure here: name fewer jobs." if more > 0 else ""
