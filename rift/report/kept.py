"""Results that stay in the repository: small files of a study, each with its SHA-256.

<folder>/jobs/<study>/<job>/summary.json    what each job found
<folder>/training.json, training.csv        how θ_AT came about, epoch by epoch
<folder>/theta_at.safetensors, theta_star.safetensors
<folder>/verdicts_at.safetensors, verdicts_rift.safetensors    of both, image by image
<folder>/verdicts_at.json                   on which machine, with which versions
<folder>/manifest.json                      size and SHA-256 of each of them
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rift.checkpoint import file_digest, save_json
from rift.errors import UserError
from rift.report.results import SUMMARY_FILE, read_jobs

MANIFEST = "manifest.json"
_FROM_ROW = (
    ("theta_star.safetensors", "interpolate", "weights.safetensors"),
    ("verdicts_at.safetensors", "evaluate_at", "verdicts.safetensors"),
    ("verdicts_rift.safetensors", "evaluate_rift", "verdicts.safetensors"),
)
LARGEST = 3 * 2**20  # bytes of one file
_CURVE = (
    "epoch", "lr", "train_loss", "train_robust_accuracy", "clean_accuracy", "robust_accuracy", "seconds"
)  # fmt: skip


def keep(output: Path, folder: Path, *, training: Path, row: Mapping[str, Any], here: Path) -> list[Path]:
    """Copies what a study found into the repository, in place of what was kept of it before.

    Args:
        output: `jobs/` and `store/` of the study.
        folder: where it is kept.
        training: the stage folder of θ_AT.
        row: summary of the job whose θ* and whose verdicts image by image are kept.
        here: paths under this folder are told relative to it.

    Returns:
        The kept files.

    Raises:
        UserError: one of them is too large for a repository.
    """
    shutil.rmtree(folder / "jobs", ignore_errors=True)
    for job in read_jobs([output / "jobs"])[0]:
        place = folder / "jobs" / job.folder.relative_to((output / "jobs").resolve())
        place.mkdir(parents=True)
        save_json(place / SUMMARY_FILE, relative(job.summary, here))
    rows = [json.loads(line) for line in (training / "metrics.jsonl").read_text("utf-8").splitlines()]
    curve = pd.DataFrame(rows)
    curve[[name for name in _CURVE if name in curve]].to_csv(
        folder / "training.csv", index=False, float_format="%.6g", lineterminator="\n"
    )
    trained = json.loads((training / "result.json").read_text("utf-8"))
    save_json(folder / "training.json", relative(trained, here))
    shutil.copyfile(training / "best.safetensors", folder / "theta_at.safetensors")
    evaluated = json.loads((here / row["stages"]["evaluate_at"] / "result.json").read_text("utf-8"))
    save_json(folder / "verdicts_at.json", relative(evaluated, here))
    for name, stage, file in _FROM_ROW:
        shutil.copyfile(here / row["stages"][stage] / file, folder / name)
    files = kept_files(folder)
    for path in files:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has {path.stat().st_size} bytes; at most {LARGEST} are kept")
    entries = {str(path.relative_to(folder)): _entry(path) for path in files}
    save_json(folder / MANIFEST, entries)
    return files


def damaged(folder: Path) -> list[str]:
    """What of a kept study is missing, changed, or in no manifest; a sentence each."""
    entries = json.loads((folder / MANIFEST).read_text("utf-8"))
    found = {str(path.relative_to(folder)): path for path in kept_files(folder)}
    problems = [f"{name} is missing" for name in entries if name not in found]
    problems += [f"{name} is not in the manifest" for name in found if name not in entries]
    problems += [
        f"{name} is not what was kept"
        for name in entries
        if name in found and _entry(found[name]) != entries[name]
    ]
    return sorted(problems)


def kept_files(folder: Path) -> list[Path]:
    """Every file but the manifest."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def relative(value: Any, here: Path) -> Any:
    """A JSON value in which every text tells places under `here` relative to it."""
    if isinstance(value, str):
        return value.replace(f"{here}/", "")
    if isinstance(value, Mapping):
        return {key: relative(entry, here) for key, entry in value.items()}
    if isinstance(value, list):
        return [relative(entry, here) for entry in value]
    return value


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}
