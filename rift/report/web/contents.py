"""What stands on the page: its sections, and the tables made from the jobs' frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rift.report.cells import MISSING, number
from rift.report.corruptions import means_frame
from rift.report.job import is_evaluated, job_explanations, job_frame, job_title
from rift.report.page import origin_lines
from rift.report.settings import differing, shown_value
from rift.report.significance import CAPTION, significance_cells, significance_frame
from rift.report.study import SETTING
from rift.report.study_cells import job_cells, study_caption, study_lines
from rift.report.texts import device_hours, training_text
from rift.report.web.figure_sections import by_dataset, corruptions, curves, listed, scans, training
from rift.report.web.naming import shared
from rift.report.web.page import PageJob, PageSection, PageTable
from rift.report.web.rows import Shown

_MOST_NAMES = 5  # modules in a cell


def page_sections(
    jobs: pd.DataFrame,
    shown: Sequence[Shown],
    tables: Sequence[PageTable],
    left_out: Sequence[PageTable] = (),
) -> list[PageSection]:
    """The page's sections; those that have nothing to show are left out.

    Args:
        jobs: in the order of `shown`.
        shown: the same, with their numbers.
        tables: what stands before everything else, as an experiment's own tables.
        left_out: the jobs that have no results, and why.
    """
    groups = by_dataset(shown)
    numbers = dict(zip(jobs.index, [one.number for one in shown], strict=True))
    found = [
        PageSection("results", "Results", tables=[*tables, *_results(jobs, numbers)]),
        PageSection("jobs", "Jobs", tables=[*_jobs(jobs, shown), *left_out]),
        curves(groups),
        scans(shown),
        training(groups),
        corruptions(shown),
        PageSection("options", "Options that differ", *_options(shown)),
        PageSection("provenance", "Provenance", tables=_provenance(shown)),
    ]
    return [section for section in found if section.text or section.tables or section.figures]


def page_jobs(shown: Sequence[Shown]) -> list[PageJob]:
    """What is said of each job alone, as its own report says it."""
    found = []
    for one in shown:
        summary = one.job.summary
        tables, lines = [], []
        if is_evaluated(summary):
            tables.append(PageTable("", job_frame(summary)))
            lines += job_explanations(summary)
        lines += [text] if (text := training_text(summary)) else []
        if summary.get("corruptions"):
            tables.append(PageTable("Means over corruptions (%)", means_frame(summary)))
        lists = {
            "How it differs from the paper's protocol": summary.get("differences") or [],
            "Notes": summary.get("notes") or [],
            "Where the numbers come from": [
                *(line.replace("`", "") for line in origin_lines(summary)),
                str(one.job.folder),
            ],
        }
        found.append(PageJob(one, f"{one.number}  {job_title(summary)}", lines, tables, lists))
    return found


def _results(jobs: pd.DataFrame, numbers: dict[Any, str]) -> list[PageTable]:
    cells, indices = study_lines(jobs)
    if cells.empty:
        return []
    cells.insert(list(cells).index("seeds"), "accuracy (%)", cells.pop("accuracy (%)"))
    alone = len(jobs[SETTING].drop_duplicates()) == 1
    cells, shared = _without_shared(cells, keep=("model", "dataset") if alone else ())
    of = [[numbers[index] for index in own] for own in indices]
    caption = (
        f"{shared}{study_caption(jobs)} The filter hides rows; a row's mean is always over all its seeds."
    )
    title = "Means over seeds, beside the paper's" if "paper AT" in cells else "Means over seeds"
    found = [PageTable(title, cells, list(cells).index("seeds"), caption, of)]
    frame = significance_frame(jobs)
    tests = significance_cells(frame[frame[["p_seeds", "p_images"]].notna().any(axis=1)])
    if not tests.empty:
        caption = f"{CAPTION} What was not tested has no row."
        found.append(PageTable("Tests over seeds, and over images", tests, 2, caption))
    return found


def _jobs(jobs: pd.DataFrame, shown: Sequence[Shown]) -> list[PageTable]:
    cells = job_cells(jobs)
    if cells.empty:
        return []
    modules = [_modules(one.job.summary.get("target_modules") or []) for one in shown]
    cells.insert(list(cells).index("α*"), "fine-tuned", modules)
    cells["hours"] = [number(device_hours(one.job.summary), 3) for one in shown]
    cells, shared = _without_shared(cells)
    cells.insert(0, "job", [one.number for one in shown])
    caption = f"{shared}Accuracies in percent. Verdicts: the paired test on the test images."
    columns = list(cells).index("fine-tuned") + 1
    return [PageTable("", cells, columns, caption, [[one.number] for one in shown])]


def _modules(names: Sequence[str]) -> str:
    """Their names, or of many how many they are: the scan's figure marks each."""
    return f"{len(names)} modules" if len(names) > _MOST_NAMES else ", ".join(map(str, names)) or MISSING


def _without_shared(cells: pd.DataFrame, keep: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
    """What is the same in every row of the columns of the setting becomes a sentence."""
    if "settings" in cells:  # as `--where` and the figures name them
        cells["settings"] = cells["settings"].str.replace(r"\bstage\.", "", regex=True)
    same = [name for name in SETTING if name in cells and cells[name].nunique() == 1]
    told = [f"{name} {cells[name].iloc[0]}" for name in same if cells[name].iloc[0] != MISSING]
    cells = cells.drop(columns=[name for name in same if name not in keep])
    if "attack" in cells:
        words = [text.split(", ") for text in cells["attack"]]
        common = shared(words)
        rest = [", ".join(word for word in own if word not in common) for own in words]
        if all(rest):
            cells["attack"], told = rest, told + [f"attack {', '.join(common)}"] * bool(common)
    return cells, f"All: {', '.join(told)}. " if told else ""


def _options(shown: Sequence[Shown]) -> tuple[str, list[PageTable]]:
    if len(shown) < 2:
        return "", []
    options = [one.job.summary.get("options") or {} for one in shown]
    rows, jobs = [], []
    for name, values in sorted(differing(options).items()):
        for value in values:
            of = [
                one.number
                for one, own in zip(shown, options, strict=True)
                if name in own and shown_value(own[name]) == value
            ]
            rows.append({"option": name, "value": value, "of": listed(of), "count": str(len(of))})
            jobs.append(of)
    if not rows:
        return "These jobs have the same options; they differ in their seeds alone.", []
    return "", [PageTable("", pd.DataFrame(rows), 3, "Seeds, places and devices are no options.", jobs)]


def _provenance(shown: Sequence[Shown]) -> list[PageTable]:
    rows = []
    for one in shown:
        summary = one.job.summary
        about = summary.get("provenance") or {}
        versions = about.get("versions") if isinstance(about.get("versions"), dict) else {}
        commit = str(about.get("commit") or MISSING)[:12] + (" + changes" if about.get("dirty") else "")
        rows.append(
            {
                "job": one.number,
                "name": summary["name"],
                "study": str(summary.get("study") or MISSING),
                "finished": str(about.get("finished") or MISSING).removesuffix("+00:00").replace("T", " "),
                "device": str(about.get("device") or MISSING),
                "commit": commit,
                "torch": str(versions.get("torch", MISSING)),
                "command": str(about.get("command") or MISSING),
                "hours": number(device_hours(summary), 3),
            }
        )
    caption = "Hours of device time; what was reused counts with what it once took."
    return [PageTable("", pd.DataFrame(rows), 8, caption, [[row["job"]] for row in rows])] if rows else []
