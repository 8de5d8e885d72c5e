"""The page of one job: `report.md` and its figures, written into the job's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rift.report.cells import MISSING, number
from rift.report.conclusion import conclusion_lines
from rift.report.corruptions import corruption_figure, corruption_frame, means_frame
from rift.report.figures import alpha_figure, mrc_figure, save_figure
from rift.report.job import is_evaluated, job_explanations, job_frame, job_title
from rift.report.results import SUMMARY_FILE, read_summary
from rift.report.tables import markdown_table
from rift.report.texts import SMOKE_MARK, corruption_text, seconds_text, training_text


def job_report(job_folder: Path) -> dict[str, Any]:
    """Writes `report.md` and `figures/{mrc,alpha,corruptions}.{png,pdf}` into a finished job's folder.

    Figures of stages that did not run are left out.

    Returns:
        `page`: the path of `report.md`; `figures`: the paths of the figures, PNG and PDF.

    Raises:
        UserError: the folder holds no readable `summary.json`.
    """
    summary = read_summary(job_folder / SUMMARY_FILE)
    figures = job_figures(summary, job_folder / "figures")
    page = job_folder / "report.md"
    pngs = [figure.relative_to(job_folder) for figure in figures if figure.suffix == ".png"]
    page.write_text(job_markdown(summary, pngs), encoding="utf-8")
    return {"page": page, "figures": figures}


def job_figures(summary: dict[str, Any], folder: Path, prefix: str = "") -> list[Path]:
    """Writes the figures that the summary has data for, as `<folder>/<prefix>mrc.png` and so on."""
    paths = []
    if summary.get("mrc"):
        paths += save_figure(mrc_figure(summary), folder / f"{prefix}mrc.png")
    if summary.get("sweep"):
        paths += save_figure(alpha_figure(summary), folder / f"{prefix}alpha.png")
    if summary.get("corruptions"):
        paths += save_figure(corruption_figure(summary), folder / f"{prefix}corruptions.png")
    return paths


def job_markdown(summary: dict[str, Any], figures: list[Path]) -> str:
    """The whole page; `figures` are paths relative to it."""
    parts = [f"# {job_title(summary)}"]
    if summary.get("smoke"):
        parts.append(f"**{SMOKE_MARK[0].upper()}{SMOKE_MARK[1:]}.**")
    if is_evaluated(summary):
        parts += [markdown_table(job_frame(summary)), " ".join(job_explanations(summary))]
    parts += [_bullets(lines)] if (lines := conclusion_lines(summary)) else []
    parts += [text] if (text := training_text(summary)) else []
    if summary.get("differences"):
        parts += ["## How this run differs from the paper's protocol", _bullets(summary["differences"])]
    if summary.get("notes"):
        parts += ["## Notes", _bullets(summary["notes"])]
    parts += [f"![{figure.stem}]({figure.as_posix()})" for figure in figures]
    if summary.get("sweep"):
        parts += ["## Along α", markdown_table(_sweep_frame(summary), text_columns=0)]
        if (summary.get("attack") or {}).get("random_start", True):
            parts += [
                "Attacked from other random starts than the final numbers, which so have none of α*'s luck."
            ]
    if summary.get("mrc"):
        parts += ["## Scan, in network order", markdown_table(_scan_frame(summary))]
    if summary.get("corruptions"):
        parts += ["## Under corruption", corruption_text(summary)]
        parts += [markdown_table(means_frame(summary)), "Accuracy in percent, AT / RiFT, at each severity:"]
        parts += [markdown_table(corruption_frame(summary))]
    origin = origin_lines(summary)
    parts += ["## Where the numbers come from", _bullets(origin)] if origin else []
    return "\n\n".join(parts) + "\n"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _sweep_frame(summary: dict[str, Any]) -> pd.DataFrame:
    alpha = summary.get("alpha")
    return pd.DataFrame(
        {
            "α": number(point["alpha"])
            + (" *" if alpha is not None and abs(point["alpha"] - alpha) < 1e-9 else ""),
            "clean (%)": number(100 * point["clean_accuracy"]),
            "robust (%)": number(100 * point["robust_accuracy"]),
        }
        for point in sorted(summary["sweep"], key=lambda point: point["alpha"])
    )


def _scan_frame(summary: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "module": f"`{entry['module']}`",
            "rank": str(entry.get("rank", MISSING)),
            "MRC": number(entry["mrc"], 4),
            "robust accuracy drop (points)": number(100 * entry["robust_accuracy_drop"]),
            "relative norm": number(entry.get("relative_norm"), 4),
        }
        for entry in summary["mrc"]
    )


def origin_lines(summary: dict[str, Any]) -> list[str]:
    """Command, commit, device, versions and seconds of a job, a line each."""
    provenance = summary.get("provenance") or {}
    lines = []
    if provenance.get("command"):
        lines.append(f"command: `{provenance['command']}`")
    if provenance.get("commit"):
        lines.append(
            f"commit: `{provenance['commit']}`"
            + (" with uncommitted changes" if provenance.get("dirty") else "")
        )
    if provenance.get("device"):
        lines.append(f"device: {provenance['device']}")
    if isinstance(provenance.get("versions"), dict):
        lines.append(
            "versions: " + ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
        )
    if seconds := seconds_text(summary):
        lines.append(seconds[0].lower() + seconds[1:].rstrip("."))
    return lines
