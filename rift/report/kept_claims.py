"""What a kept study says of the paper's claims, and the table of the README's first screen."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from rift.report.cells import MISSING, mean_and_std, number, p_value
from rift.report.kept_study import Kept, difference, gains_job, gains_relation, metric_row, row_jobs, seen
from rift.report.results import Job
from rift.report.tables import markdown_table


def claims_table(kept: Kept) -> str:
    """What the paper says of RiFT, and what was seen of it here."""
    jobs, gains = row_jobs(kept), gains_job(kept)
    rows = []

    def add(claim: str, found: str, count: int, verdict: str) -> None:
        rows.append({"the paper says": claim, "here": found, "n": str(count), "seen": verdict})

    for claim, which, metric in (
        ("clean accuracy rises", "clean", "clean_accuracy"),
        ("robust accuracy stays", "robust", "robust_accuracy"),
        ("OOD accuracy rises", "ood", "ood_accuracy_generated"),
    ):
        fitting = [job for job in jobs if metric in job.summary["rift"]]
        found = f"{difference(fitting, which, metric)} points" if fitting else MISSING
        add(claim, found, len(fitting), seen(fitting, which, metric))
    if gains is not None:
        modules = gains.summary["gains"]
        least = min(modules, key=lambda row: row["mrc"])
        better = sum(row["delta_clean"] > least["delta_clean"] for row in modules)
        found = f"{better} of {len(modules)} modules bring more at their α*"
        verdict = "it is here" if not better else "it is not here"
        add("the least critical module is the one to fine-tune", found, 1, verdict)
        rho, p = _cost_of_critical_modules(gains)
        seen_here = "no relation seen" if p >= 0.05 else "it does here" if rho < 0 else "the reverse"
        found = f"ρ = {number(rho, signed=True)} between MRC and Δ robust at α = 1, {p_value(p)}"
        add("fine-tuning a critical module costs more robustness", found, 1, seen_here)
    return markdown_table(pd.DataFrame(rows), text_columns=2)


def _cost_of_critical_modules(job: Job) -> tuple[float, float]:
    """Spearman's ρ over the modules of one network, and its p-value."""
    frame = gains_relation(job)
    return float(frame["end_delta_robust"].iloc[0]), float(frame["end_delta_robust_p"].iloc[0])


def readme_block(kept: Kept) -> str:
    """The table of the README's first screen."""
    columns = (
        ("clean", "clean", "clean_accuracy"),
        ("OOD, generated corruptions", "ood", "ood_accuracy_generated"),
        ("robust, PGD-10 worst of 3", "robust", "robust_accuracy"),
    )
    rows = []
    for title, jobs in (("RiFT", row_jobs(kept)), ("RiFT with moving statistics¹", kept.of("published_row"))):
        found = {name: metric_row(name, metric, which, jobs) for name, which, metric in columns}
        labels = {"AT": "AT"} if not rows else {}  # both are of one θ_AT
        labels |= {"RiFT": f"{title}, α\\* {_alphas(jobs)}", "Δ": "Δ", "seen": "seen"}
        rows += [
            {"": label} | {name: cells[part] for name, cells in found.items()}
            for part, label in labels.items()
        ]
    return f"{markdown_table(pd.DataFrame(rows))}\n\n{README_NOTE}"


def _alphas(jobs: Sequence[Job]) -> str:
    found = pd.Series([job.summary["alpha"] for job in jobs], dtype=float)
    return mean_and_std(found, expected=len(found), decimals=1) if jobs else MISSING


README_NOTE = (
    "¹ As in the published code, all BatchNorm statistics move while one module is fine-tuned; the paper's "
    "text freezes everything else."
)
