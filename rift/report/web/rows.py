"""What the page's figures draw: plain rows of each job, which the browser averages over the chosen seeds.

Every row has `job` (its number on the page), `seed`, and `series`, what tells the job's setting from others.
Accuracies are in percent. What a summary does not have, or has in another form, gives no row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rift.report.cells import binomial_error
from rift.report.paper import paper_scan
from rift.report.results import Job

Row = dict[str, Any]
_LONGEST = 2**24  # bytes of a metrics.jsonl; a training's line has some 300


@dataclass(frozen=True)
class Shown:
    """A job on the page.

    Attributes:
        number: its name on the page, `#3`.
        job: with its summary.
        series: what tells its setting from those of other jobs.
        network: the same without what is fine-tuned: jobs that share it share training and scan.
    """

    number: str
    job: Job
    series: str
    network: str

    @property
    def about(self) -> Row:
        """What every row of it begins with."""
        return {"job": self.number, "seed": self.job.summary["seed"], "series": self.series}


def curve_rows(jobs: Iterable[Shown]) -> list[Row]:
    """Per α: `clean` and `robust`, their binomial standard errors `*_error`, and whether it is `chosen`."""
    found = []
    for shown in jobs:
        summary = shown.job.summary
        images = _selection_images(summary)
        for point in sorted(summary.get("sweep") or [], key=lambda point: point["alpha"]):
            row = shown.about | {"alpha": round(point["alpha"], 6)}
            for name in ("clean", "robust"):
                accuracy = point[f"{name}_accuracy"]
                row[name] = 100 * accuracy
                known = images and 0 <= accuracy <= 1
                row[f"{name}_error"] = 100 * binomial_error(accuracy, images) if known else 0.0
            found.append(row | {"chosen": _close(point["alpha"], summary.get("alpha"))})
    return _finite(found)


def scan_rows(jobs: Iterable[Shown]) -> dict[str, list[Row]]:
    """By network, per module in network order: `mrc`, `drop` (points), `chosen`, the paper's values."""
    found: dict[str, list[Row]] = {}
    for shown in jobs:
        summary = shown.job.summary
        reported, chosen = paper_scan(summary), summary.get("target_modules") or []
        for position, entry in enumerate(summary.get("mrc") or []):
            module = str(entry["module"])
            row = shown.about | {"module": module, "position": position}
            row |= {"mrc": entry["mrc"], "drop": 100 * entry["robust_accuracy_drop"]}
            row |= {"chosen": int(module in chosen)}
            if module in reported:
                row["paper_mrc"] = reported[module]["mrc"]
                row["paper_drop"] = reported[module]["robust_accuracy_drop"]
            found.setdefault(shown.network, []).append(row)
    return {network: rows for network, own in found.items() if (rows := _finite(own))}


def corruption_rows(jobs: Iterable[Shown]) -> dict[str, list[Row]]:
    """By series, per corruption and severity: `at`, `delta` (points; None without RiFT), `kind` of images."""
    found: dict[str, list[Row]] = {}
    for shown in jobs:
        about = shown.job.summary.get("corruptions") or {}
        grids = {which: (about.get(which) or {}).get("accuracy") or {} for which in ("at", "rift")}
        for version, at in grids["at"].items():
            name, _, severity = version.rpartition("/")
            rift = grids["rift"].get(version)
            if not (_number(at) and (rift is None or _number(rift))):
                continue
            row = shown.about | {"corruption": name, "severity": severity, "at": 100 * at}
            row |= {"delta": None if rift is None else 100 * (rift - at), "kind": str(about.get("kind"))}
            found.setdefault(shown.series, []).append(row)
    return {series: rows for series, own in found.items() if (rows := _finite(own))}


_TRAINED = {
    "at": {
        "clean_accuracy": "clean, selection",
        "robust_accuracy": "robust, selection",
        "train_robust_accuracy": "robust, training",
    },
    "finetune": {"clean_accuracy": "clean, selection", "train_clean_accuracy": "clean, training"},
}


def training_rows(jobs: Iterable[Shown], stage: str) -> tuple[list[Row], list[str]]:
    """Per epoch and `metric`: `value` in percent, or the `loss`; of `at` or `finetune`.

    Returns:
        The rows, and the numbers of the jobs whose curves are not in reach.
    """
    found, absent = [], []
    for shown in jobs:
        if stage not in (shown.job.summary.get("stages") or {}):
            continue
        lines = list(_metrics(shown.job, stage))
        absent += [] if lines else [shown.number]
        about = shown.about | ({"series": shown.network} if stage == "at" else {})
        for line in lines:
            values = [(text, 100 * line[name]) for name, text in _TRAINED[stage].items() if name in line]
            values += [("loss", line["train_loss"])] if "train_loss" in line else []
            found += [about | {"epoch": line["epoch"], "metric": name, "value": v} for name, v in values]
    return _finite(found), absent


def _metrics(job: Job, stage: str) -> Iterator[Mapping[str, float]]:
    """The numbers of a stage's `metrics.jsonl`, from the store beside the job's folder.

    A summary names the places of the machine that wrote it; only the last two parts are used.
    """
    parts, above = Path(str(job.summary["stages"][stage])).parts[-2:], job.folder.resolve().parents
    if len(parts) < 2 or ".." in parts or Path(*parts).is_absolute() or len(above) < 3:
        return
    file = above[2].joinpath("store", *parts, "metrics.jsonl")
    try:
        if not file.is_file() or file.stat().st_size > _LONGEST:
            return
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError):
        return
    for line in lines:
        if isinstance(line, dict) and isinstance(line.get("epoch"), int):
            yield {name: value for name, value in line.items() if _number(value)}


def _selection_images(summary: Mapping[str, Any]) -> int | None:
    """On how many images α was chosen; None if the summary does not say."""
    split = (summary.get("options") or {}).get("stage.interpolate.selection_split", "test")
    data = (summary.get("provenance") or {}).get("data")
    counts = data.get("counts") if isinstance(data, dict) else None
    count = counts.get(split) if isinstance(counts, dict) else None
    return count if isinstance(count, int) and count > 0 else None


def _close(one: float, other: Any) -> bool:
    return _number(other) and abs(one - other) < 1e-9


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(rows: list[Row]) -> list[Row]:
    """Without rows that hold what JSON cannot: a scan that diverged has no bar."""
    return [row for row in rows if all(not isinstance(v, float) or math.isfinite(v) for v in row.values())]
