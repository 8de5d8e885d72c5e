"""The table of one job: AT, RiFT and their difference, beside the paper's row."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from rift.report.cells import MISSING, binomial_error, interval_ends, number, p_value, paired_error
from rift.report.conclusion import difference_text
from rift.report.paper import paper_row
from rift.report.tables import rich_table
from rift.report.texts import (
    SMOKE_MARK,
    attack_text,
    corruption_text,
    leak_text,
    ood_text,
    seconds_text,
    training_text,
)

INTERVAL = "Δ, 95 % interval"
_WIDE = 150  # columns that the table needs without line breaks in its cells


def job_title(summary: dict[str, Any]) -> str:
    """The run's name, with a mark if it was only a smoke run."""
    return f"{summary['name']} ({SMOKE_MARK})" if summary.get("smoke") else summary["name"]


def job_frame(summary: dict[str, Any]) -> pd.DataFrame:
    """Rows of finished cells: clean, robust by both readings of "worst of k", and what else was measured.

    AT and RiFT carry the binomial standard error of the test set. Δ carries the standard error of the
    paired difference and the paired test's p-value where the summary counts the images on which the two
    models disagree; these counts are per image, so for k > 1 they belong to the reading per image. Where
    the summary has intervals, a column of them and of the verdicts follows.
    """
    restarts = (summary.get("attack") or {}).get("restarts")
    of = f" of {restarts}" if restarts else ""
    paired = summary.get("paired") or {}
    robust = paired.get("robust")
    rows = [
        _row(summary, "clean", "clean", "clean_accuracy", paired.get("clean"), "clean"),
        _row(
            summary,
            f"robust (worst run{of})",
            "robust",
            "robust_accuracy",
            robust if restarts == 1 else None,
            "robust",
        ),
        _row(
            summary,
            f"robust (worst per image{of})",
            "robust_per_image",
            "robust_accuracy_per_image",
            robust,
            None,
        ),
    ]
    images = (summary.get("at") or {}).get("auto_attack_images")
    for metric, name, paper in (
        ("auto_attack_accuracy", f"AutoAttack ({images} images)", None),
        ("auto_attack_quick_accuracy", f"AutoAttack, screen of two attacks ({images} images)", None),
        ("ood_accuracy", "OOD (published images)", "ood"),
        ("ood_accuracy_generated", "OOD (generated images)", None),  # never beside the paper's
        ("cifar10_1_accuracy", "CIFAR-10.1", None),
    ):
        if metric in (summary.get("at") or {}):
            key = next((key for key in ("ood", "auto_attack") if key in metric), None)
            rows.append(_row(summary, name, key, metric, None, paper))
    frame = pd.DataFrame(rows)
    if not paper_row(summary):
        frame = frame[[c for c in frame if not c.startswith("paper")]]
    return frame if summary.get("intervals") else frame.drop(columns=[INTERVAL])


def job_explanations(summary: dict[str, Any]) -> list[str]:
    """How to read the table: what α* is, the attack, the interval, where the paper's numbers come from."""
    lines = [f"Attack: {attack_text(summary)}."]
    modules, alpha = summary.get("target_modules") or [], summary.get("alpha")
    if summary.get("target_modules") == []:
        lines.append(f"Fine-tuned: no module ({summary.get('target')}).")
    if modules:
        shown = ", ".join(modules[:5]) + (f" and {len(modules) - 5} more" if len(modules) > 5 else "")
        lines.append(f"Fine-tuned: {shown} ({summary.get('target') or 'by name'}).")
    if summary.get("leak"):
        lines.append(leak_text(summary))
    if alpha is not None:
        tolerance = summary.get("alpha_tolerance")
        rule = (
            ""
            if tolerance is None
            else f", best clean accuracy with robust at most {number(100 * tolerance)} points under AT "
            "(of equals the one nearest to AT)"
        )
        lines.append(f"RiFT: α* = {number(alpha)}{rule}.")
    images = (summary.get("at") or {}).get("num_images")
    if images:
        test = "; p is of a paired test on the same images" if summary.get("paired") else ""
        lines.append(f"± is one standard error on {images} test images{test}.")
    if summary.get("corruptions"):
        lines.append(f"OOD: mean over {ood_text(summary)}. {corruption_text(summary)}")
    if beyond := (summary.get("intervals") or {}).get("ood_beyond_clean"):
        words = {
            "better": "more than the clean gain is there",
            "worse": "OOD gains less than clean",
            "no difference seen": "no more and no less than the clean difference is seen",
        }
        lines.append(f"Δ OOD − Δ clean: {difference_text(beyond)}: {words[beyond['verdict']]}.")
    if summary.get("intervals"):
        lines.append(
            "Intervals: paired bootstrap over test images, all versions of an image together; for a verdict "
            "an exact sign test over the images that differ must agree."
        )
    row = paper_row(summary)
    lines.append(f"Paper: {row.source}, mean of 3 seeds." if row else "The paper reports no such row.")
    return lines


def is_evaluated(summary: dict[str, Any]) -> bool:
    """Whether the summary has final numbers."""
    return bool(summary.get("at") or summary.get("rift"))


def ranking_frame(summary: dict[str, Any]) -> pd.DataFrame:
    """The scanned modules as finished cells, least critical first."""
    return pd.DataFrame(
        {
            "module": entry["module"],
            "rank": str(entry.get("rank", MISSING)),
            "MRC": number(entry["mrc"], 4),
            "robust accuracy drop (points)": number(100 * entry["robust_accuracy_drop"]),
        }
        for entry in sorted(summary["mrc"], key=lambda entry: entry["mrc"])
    )


def print_job(console: Console, summary: dict[str, Any]) -> None:
    """Prints what a job has found, however far it went: the final table, or training, ranking and α*."""
    if is_evaluated(summary):
        print_job_table(console, summary)
        return
    console.print(Text(job_title(summary), style="bold"))
    if training := training_text(summary):
        _print_indented(console, training)
    if summary.get("mrc"):
        console.print(rich_table(ranking_frame(summary), "Robust criticality, least critical module first"))
    chosen = [p for p in summary.get("sweep") or [] if p["alpha"] == summary.get("alpha")]
    for point in chosen:
        _print_indented(
            console,
            f"α* = {number(point['alpha'])}: clean {number(100 * point['clean_accuracy'])} %, robust "
            f"{number(100 * point['robust_accuracy'])} % on the selection split.",
        )
    _print_notes(console, summary)


def print_job_table(console: Console, summary: dict[str, Any]) -> None:
    """Prints the job's table and, below it, how the run differs from the paper and its notes.

    Fits 80 columns. Where the intervals have no room beside the numbers they are a table of their own, so
    that no row takes more than three lines.
    """
    frame = job_frame(summary)
    if console.width >= _WIDE:
        console.print(rich_table(frame, job_title(summary)))
    else:
        if INTERVAL in frame:
            frame, intervals = _apart(frame)
            _print_narrow(console, frame, job_title(summary))
            _print_narrow(console, intervals, "RiFT − AT", text_columns=4)
        else:
            _print_narrow(console, frame, job_title(summary))
    for line in job_explanations(summary):
        _print_indented(console, line, style="dim")
    _print_notes(console, summary)


def _print_narrow(console: Console, frame: pd.DataFrame, title: str, text_columns: int = 1) -> None:
    """With line breaks before what is in brackets, where the lines would be too long."""
    frame.columns = [name.replace("paper ", "paper\n") for name in frame]
    table = rich_table(frame, title, text_columns=text_columns, gap=1)
    unbounded = console.options.update(max_width=10 * _WIDE)  # else no measure exceeds the console's
    if console.measure(table, options=unbounded).maximum > console.width:
        frame = frame.map(lambda cell: cell.replace(" (", "\n("))
        table = rich_table(frame, title, text_columns=text_columns, gap=1)
    console.print(table)


def _apart(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table without p-values and intervals, and these in one of their own."""
    delta, ends = frame["Δ (points)"].str.partition(" ("), frame[INTERVAL].str.partition(": ")
    intervals = pd.DataFrame(
        {
            "accuracy": frame["accuracy (%)"],
            INTERVAL: ends[0],
            "seen": ends[2].where(ends[2] != "", MISSING),
            "paired test": delta[2].str.removesuffix(")").where(delta[2] != "", MISSING),
        }
    )
    compared = (intervals[INTERVAL] != MISSING) | (intervals["paired test"] != MISSING)
    return frame.assign(**{"Δ (points)": delta[0]}).drop(columns=INTERVAL), intervals[compared]


def _print_notes(console: Console, summary: dict[str, Any]) -> None:
    if seconds := seconds_text(summary):
        _print_indented(console, seconds, style="dim")
    differences = summary.get("differences") or []
    if differences:
        _print_indented(console, "How this run differs from the paper's protocol:")
    for line in differences:
        _print_indented(console, f"- {line}")
    for line in summary.get("notes") or []:
        _print_indented(console, f"Note: {line}")


def _print_indented(console: Console, line: str, style: str = "") -> None:
    console.print(Padding(Text(line, style=style), (0, 0, 0, 2), expand=False))


def interval_text(interval: dict[str, Any] | None) -> str:
    """`+0.31 … +1.92: better`, in points; a dash where nothing was compared."""
    if not interval:
        return MISSING
    count = f" (n = {interval['images']} images)" if interval["verdict"] == "no difference seen" else ""
    return f"{interval_ends(interval)}: {interval['verdict']}{count}"


def _row(
    summary: dict[str, Any],
    name: str,
    key: str | None,
    metric: str,
    paired: dict[str, Any] | None,
    paper_metric: str | None,
) -> dict[str, str]:
    at, rift = summary.get("at") or {}, summary.get("rift") or {}
    # The versions of a corrupted image are not independent, and CIFAR-10.1 is another set.
    images = None if key in ("ood", "auto_attack", None) else at.get("num_images")
    cells = {
        "accuracy (%)": name,
        "AT": _accuracy(at.get(metric), images),
        "RiFT": _accuracy(rift.get(metric), images),
        "Δ (points)": _difference(at.get(metric), rift.get(metric), images, paired),
        INTERVAL: interval_text((summary.get("intervals") or {}).get(key)),
    }
    row = paper_row(summary) if paper_metric else None
    values = (
        (row.at[paper_metric], row.rift and row.rift[paper_metric], row.delta(paper_metric))
        if row
        else (None,) * 3
    )
    cells["paper AT"], cells["paper RiFT"] = number(values[0]), number(values[1])
    cells["paper Δ"] = number(values[2], signed=True)
    return cells


def _accuracy(accuracy: float | None, num_images: int | None) -> str:
    if accuracy is None or not num_images:
        return number(accuracy and 100 * accuracy)
    return f"{number(100 * accuracy)} ± {number(100 * binomial_error(accuracy, num_images))}"


def _difference(
    at: float | None, rift: float | None, num_images: int | None, paired: dict[str, Any] | None
) -> str:
    if at is None or rift is None:
        return MISSING
    text = number(100 * (rift - at), signed=True)
    only_at, only_rift, p = (
        (paired.get(key) for key in ("only_at", "only_rift", "p_value")) if paired else (None,) * 3
    )
    if num_images and only_at is not None and only_rift is not None:
        text += f" ± {number(100 * paired_error(only_at, only_rift, num_images))}"
    return text if p is None else f"{text} ({p_value(p)})"
