"""The page of a kept study: what its jobs say, question by question, each with n, spread and verdict.

Every number comes from the kept files; what is not there is "not run".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from rift.report import stability
from rift.report.cells import MISSING, number
from rift.report.experiments import arm_about, arm_options, filled_cells, load_experiment
from rift.report.kept_claims import claims_table
from rift.report.kept_study import (
    OUTCOME_CAPTION,
    ROW,
    Kept,
    gains_job,
    gains_relation,
    metric_row,
    outcome,
    row_jobs,
)
from rift.report.results import Job
from rift.report.tables import markdown_table
from rift.report.texts import attack_text

NOT_RUN = "Not run."


def row_table(kept: Kept) -> str:
    """θ_AT and θ* in everything that was measured of the row."""
    pgd50 = metric_row("robust, PGD-50", "robust_accuracy", "robust", kept.of("pgd50"))
    return markdown_table(pd.DataFrame([*_metric_rows(row_jobs(kept)), pgd50]))


def published_row_table(kept: Kept) -> str:
    """The same row but for the statistics, which move in the published code."""
    jobs = kept.of("published_row")
    return markdown_table(pd.DataFrame(_metric_rows(jobs))) if jobs else NOT_RUN


def _metric_rows(jobs: Sequence[Job]) -> list[dict[str, str]]:
    wanted = [
        ("clean", "clean_accuracy", "clean"),
        ("robust, worst of 3 runs", "robust_accuracy", "robust"),
        ("robust, worst per image", "robust_accuracy_per_image", "robust_per_image"),
        ("OOD, generated images", "ood_accuracy_generated", "ood"),
        ("AutoAttack, 1000 images", "auto_attack_accuracy", "auto_attack"),
    ]
    return [metric_row(name, metric, which, jobs) for name, metric, which in wanted]


def targets_table(kept: Kept) -> str:
    """What is fine-tuned: the paper's Table 3, and modules by chance."""
    rows, jobs = [], [job for job in kept.of("table3") if "rift" in job.summary]
    for target in ("least_critical", "most_critical", "last_layer", "all"):
        fitting = [job for job in jobs if job.summary["target"] == target]
        rows.append(outcome(_named(target, fitting), fitting))
    drawn = [job for job in jobs if job.summary["target"] == "random"]
    rows += [outcome(_named("random", [job]), [job]) for job in drawn]
    return markdown_table(pd.DataFrame(rows).fillna(MISSING)) + f"\n\n{OUTCOME_CAPTION}"


def _named(target: str, jobs: Sequence[Job]) -> str:
    modules = {tuple(job.summary.get("target_modules") or ()) for job in jobs}
    (only,) = modules if len(modules) == 1 else ((),)
    return f"{target}: `{only[0]}`" if len(only) == 1 else target


def numbers_table(kept: Kept) -> str:
    """How many modules are fine-tuned together: the paper's Table 4."""
    jobs = sorted(kept.of("table4"), key=lambda job: job.summary["options"]["stage.finetune.top_k"])
    rows = [outcome(f"{len(job.summary['target_modules'])} least critical", [job]) for job in jobs]
    return markdown_table(pd.DataFrame(rows)) + f"\n\n{OUTCOME_CAPTION}" if rows else NOT_RUN


def batchnorm_table(kept: Kept) -> str:
    """How much of the gain is the module, how much BatchNorm."""
    rows = []
    for arm in ("frozen", "moving", "only_statistics", "kept"):
        own = arm_options(arm)
        jobs = [
            job
            for job in kept.of("bn_ablation")
            if all(job.summary["options"].get(name) == value for name, value in own.items())
            and (arm == "only_statistics") == (job.summary["target"] == "none")
        ]
        rows.append(outcome(f"`{arm}`: {arm_about(arm)}", jobs))
    return markdown_table(pd.DataFrame(rows).fillna(MISSING)) + f"\n\n{OUTCOME_CAPTION}"


def modules_table(kept: Kept) -> str:
    """Every module fine-tuned alone, least critical first, and whether MRC told the good ones."""
    job = gains_job(kept)
    if job is None:
        return NOT_RUN
    gains = sorted(job.summary["gains"], key=lambda row: row["mrc"])
    table = [
        {
            "module": f"`{row['module']}`",
            "MRC": number(row["mrc"], 3),
            "α*": number(row["alpha"], 1),
            **{
                text: number(100 * row[name], signed=True)
                for name, text in (
                    ("delta_clean", "Δ clean"),
                    ("delta_robust", "Δ robust"),
                    ("end_delta_clean", "α = 1: Δ clean"),
                    ("end_delta_robust", "α = 1: Δ robust"),
                )
            },
        }
        for row in gains
    ]
    frame = gains_relation(job)
    relation, choice = stability.relation_cells(frame), stability.choice_cells(frame)
    parts = [pd.DataFrame(table), *(part.drop(columns="of") for part in (relation, choice))]
    return "\n\n".join(markdown_table(part) for part in parts)


def stability_table(kept: Kept) -> str:
    """Whether the ranking depends on what should not matter."""
    frame = stability.stability_frame(
        filled_cells(load_experiment("mrc_stability"), kept.of("mrc_stability"))
    )
    if frame.empty:
        return NOT_RUN
    table = stability.stability_cells(frame).drop(columns="of")
    return f"{markdown_table(table)}\n\n{stability.CAPTION}"


Section = tuple[str, Callable[[Kept], str], str | None]
SECTIONS: tuple[Section, ...] = (
    ("The row", row_table, "alpha"),
    ("The row, with all BatchNorm statistics moving as in the published code", published_row_table, None),
    ("Is the least critical module the best one to fine-tune?", modules_table, "modules"),
    ("Does the ranking depend on how it is measured?", stability_table, "mrc"),
    ("What is fine-tuned", targets_table, "curves"),
    ("How many modules are fine-tuned together", numbers_table, None),
    ("How much of the gain is BatchNorm", batchnorm_table, None),
)


def page(kept: Kept, pictures: Mapping[str, str]) -> str:
    """The whole page, in Markdown.

    Args:
        kept: the study.
        pictures: path of each figure, by its name in `SECTIONS`.
    """
    parts = [_HEAD, _about(kept), claims_table(kept)]
    if "training" in pictures:
        parts.append(f"![adversarial training]({pictures['training']})")
    for title, table, picture in SECTIONS:
        parts += [f"## {title}", table(kept)]
        if picture in pictures:
            parts.append(f"![{title}]({pictures[picture]})")
    return "\n\n".join([*parts, "## How it was made", _provenance(kept)]) + "\n"


_HEAD = """# Results

<!-- Written by `python scripts/results_page.py` from outputs/reference; a test compares the two. -->

All of CIFAR-10, every stage, on two cores without a GPU: what a small network says of the paper's claims. \
It is not the paper's setting. The paper's own rows, on a GPU: not run."""


def _about(kept: Kept) -> str:
    job = kept.of(ROW)[0].summary
    best, last, count = kept.training["best"], kept.training["last"], job["provenance"]["data"]["counts"]
    first, second = (
        f"clean {number(100 * epoch['clean_accuracy'])}, robust {number(100 * epoch['robust_accuracy'])}"
        for epoch in (best, last)
    )
    return (
        f"ResNet18 of a quarter of the width, {count['train']} training images, {count['holdout']} held out "
        f"for every choice, {count['test']} test images that nothing was chosen on. θ_AT: N-FGSM, "
        f"{last['epoch']} epochs, averaged weights, epoch {best['epoch']} by held-out robust accuracy "
        f"({first}; the last epoch has {second}). Evaluation: {attack_text(job)}. One trained network: n "
        "counts seeds of fine-tuning, and nothing here tells how another training would fare."
    )


def _provenance(kept: Kept) -> str:
    """Commands, machine, versions, time."""
    summaries = [job.summary for job in kept.jobs]
    seconds: dict[str, float] = {}
    for summary in summaries:
        for name, place in summary["stages"].items():
            seconds[place] = summary["wall_seconds"][name] or 0.0
    training, spent = kept.training, sum(seconds.values()) / 3600
    commits = sorted({summary["provenance"]["commit"][:7] for summary in summaries})
    devices = sorted({summary["provenance"]["device"] for summary in summaries})
    versions = summaries[0]["provenance"]["versions"]
    about = [
        f"θ_AT: `{training['command']}`, {training['seconds'] / 3600:.1f} hours, commit "
        f"{training['commit'][:7]}.",
        "Everything else: `scripts/two_cores_studies.sh DATA OUTPUT`, "
        f"{len(summaries)} jobs, {len(seconds)} stages, {spent:.1f} hours of stages in all beside "
        f"other work, commits {', '.join(commits)}.",
        f"Machine: {'; '.join(devices)}. " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
    ]
    about += _repeated(kept)
    departures = sorted({text for job in kept.of(ROW) for text in job.summary["differences"]})
    about.append("Not the paper's: " + "; ".join(departures) + ".")
    return "\n".join(f"- {line}" for line in about)


def _repeated(kept: Kept) -> list[str]:
    """Whether a row that was run again, from the kept θ_AT, came out the same."""
    found: dict[int, list[dict[str, Any]]] = {}
    for job in kept.of(ROW):
        if "sweep" in job.summary and "rift" in job.summary:
            found.setdefault(job.summary["seed"], []).append(job.summary)
    again = [summaries for summaries in found.values() if len(summaries) > 1]
    if not again:
        return []
    parts = {
        "scan": lambda summary: summary["mrc"],
        "α sweep": lambda summary: summary["sweep"],
        "evaluation by PGD": lambda summary: [
            summary[side][metric]
            for side in ("at", "rift")
            for metric in ("clean_accuracy", "robust_accuracy", "robust_accuracy_per_image")
        ],
    }
    same = [
        name
        for name, part in parts.items()
        if all(part(summary) == part(first) for first, *others in again for summary in others)
    ]
    other = [name for name in parts if name not in same]
    words = [f"{', '.join(same)} came out the same to the last digit"] if same else []
    words += [f"{', '.join(other)} did not"] if other else []
    return [f"After training, and again from the kept θ_AT (`model.checkpoint=`): {'; '.join(words)}."]
