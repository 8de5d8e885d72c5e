"""Finds and reads the summaries of finished jobs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rift.errors import UserError

SUMMARY_FILE = "summary.json"
FORMAT = 2
_TEXTS = ("name", "model", "dataset", "method")
_TEXTS_IF_ANY = ("key", "study", "protocol", "target")
_NUMBERS_IF_ANY = ("alpha", "alpha_tolerance")
_OBJECTS = (
    "attack", "at", "rift", "paired", "overrides", "options", "training", "provenance", "wall_seconds",
    "corruptions", "intervals", "joint", "stages", "leak",
)  # fmt: skip
_LISTS_OF_TEXTS = ("differences", "notes", "target_modules")
_LEAK = ("parameters", "num_parameters", "statistics")
_ACCURACIES = (
    "clean_accuracy", "robust_accuracy", "robust_accuracy_per_image", "ood_accuracy",
    "ood_accuracy_generated", "cifar10_1_accuracy",
)  # fmt: skip
_ROWS = {
    "mrc": ("module", ("mrc", "robust_accuracy_drop")),
    "sweep": ("alpha", ("alpha", "clean_accuracy", "robust_accuracy")),
    "gains": ("module", ("mrc", "rank", "alpha", "delta_clean", "end_delta_clean", "end_delta_robust")),
}


@dataclass(frozen=True)
class Job:
    """One finished job: its folder, its summary, and when the summary was written (seconds, file time)."""

    folder: Path
    summary: dict[str, Any]
    written: float


def read_summary(path: Path) -> dict[str, Any]:
    """Reads one `summary.json`; raises `UserError` if it is not a summary of a known format."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    problem = _problem(summary)
    if problem:
        raise UserError(f"{path} {problem}")
    return summary


def read_jobs(paths: Iterable[Path]) -> tuple[list[Job], list[str]]:
    """Reads every summary under some folders.

    Args:
        paths: folders, searched to any depth, or `summary.json` files.

    Returns:
        The jobs, ordered by folder, each once however often it was reached; and one warning for each
        file that was skipped because it could not be understood.

    Raises:
        UserError: a path does not exist.
    """
    return read_files(job_files(paths))


def read_files(files: Iterable[Path]) -> tuple[list[Job], list[str]]:
    """Reads these summaries; one warning for each that could not be understood."""
    jobs, warnings = [], []
    for file in files:
        try:
            jobs.append(Job(file.parent, read_summary(file), file.stat().st_mtime))
        except UserError as error:
            warnings.append(f"skipped: {error}")
    return jobs, warnings


def job_files(paths: Iterable[Path], names: Sequence[str] = (SUMMARY_FILE,)) -> list[Path]:
    """The files of these names under some folders, ordered by folder, each once however often it was reached.

    Args:
        paths: folders, walked once each to any depth, or files.
        names: of the files.

    Raises:
        UserError: a path does not exist.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; give folders that hold jobs, e.g. outputs/jobs")
        walked = [(path.parent, [path.name])] if path.is_file() else _walk(path, names)
        for folder, files in walked:
            found |= {(folder / name).resolve(): folder / name for name in files}
    return sorted(found.values(), key=lambda file: (file.parent, file.name))


def _walk(path: Path, names: Sequence[str]) -> Iterator[tuple[Path, list[str]]]:
    for folder, _, files in os.walk(path):
        yield Path(folder), [name for name in names if name in files]


def _problem(summary: Any) -> str | None:
    """Says what keeps a parsed file from being a summary, or None."""
    if not isinstance(summary, dict):
        return "is not a job's summary"
    if summary.get("format") != FORMAT:
        return f"has format {summary.get('format')!r}, and this version reads format {FORMAT}"
    for key in _TEXTS:
        if not isinstance(summary.get(key), str):
            return f"has no text under '{key}'"
    if not isinstance(summary.get("seed"), int):
        return "has no whole number under 'seed'"
    return next(_wrong_parts(summary), None)


def _wrong_parts(summary: dict[str, Any]) -> Iterator[str]:
    """Of the parts that may be absent, what is of another type than a report takes it for."""
    kinds = (
        (_TEXTS_IF_ANY, lambda value: isinstance(value, str), "a text"),
        (_NUMBERS_IF_ANY, _is_number, "a number"),
        (_OBJECTS, lambda value: isinstance(value, dict), "an object"),
        (_LISTS_OF_TEXTS, _is_list_of(str), "a list of texts"),
    )
    for keys, fits, kind in kinds:
        wrong = [key for key in keys if summary.get(key) is not None and not fits(summary[key])]
        yield from (f"has something else than {kind} under '{key}'" for key in wrong)
    for key in ("at", "rift"):
        for metric in _ACCURACIES:
            value = (summary.get(key) or {}).get(metric)
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                yield f"has {value!r} as '{key}.{metric}', which is no fraction between 0 and 1"
    for key, (label, numbers) in _ROWS.items():
        if not _is_row_list(summary.get(key) or [], label, numbers):
            yield f"has a malformed list under '{key}'"
    for sets in (summary.get("joint") or {}).values():
        if not _is_row_list(sets, "modules", ("mrc", "robust_accuracy_drop")):
            yield "has a malformed list under 'joint'"
    if leak := summary.get("leak"):
        yield from (f"has no number under 'leak.{key}'" for key in _LEAK if not _is_number(leak.get(key)))
    if corruptions := summary.get("corruptions"):
        if not isinstance(corruptions.get("ood"), str):
            yield "has no text under 'corruptions.ood'"
        if not _is_list_of(int)(corruptions.get("severities")):
            yield "has no list of whole numbers under 'corruptions.severities'"


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(part, kind) for part in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_row_list(rows: Any, label: str, numbers: tuple[str, ...]) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and label in row
        and all(isinstance(row.get(key), int | float) for key in numbers)
        for row in rows
    )
