"""Which words tell the page's jobs apart: the names of its curves and figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rift.report.results import Job
from rift.report.study import SETTING
from rift.report.web.rows import Shown

Word = tuple[str, str]
"""The column of the setting that it comes from, and the word."""
Words = tuple[Word, ...]

_COLUMNS = [name for name in SETTING if name != "ood"]


def numbered(jobs: pd.DataFrame) -> list[Shown]:
    """The jobs with their numbers, each named by what it does not share with all others.

    Args:
        jobs: as `one_job_per_seed` returns them, in the order of the page.
    """
    rows = jobs[_COLUMNS].to_dict("records")
    words = [tuple(_words(row)) for row in rows]
    common = shared(words)
    series = [tuple(word for word in own if word not in common) for own in words]
    networks = [tuple(word for word in own if word[0] != "target") for own in series]
    networks = _one_per_scan(networks, jobs["job"])
    plain = [", ".join(row[name] for name in ("model", "dataset", "method") if row[name]) for row in rows]
    return [
        Shown(f"#{position}", job, _text(own) or otherwise, _text(network) or otherwise)
        for position, (job, own, network, otherwise) in enumerate(
            zip(jobs["job"], series, networks, plain, strict=True), start=1
        )
    ]


def shared(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """What all rows have, in the order of the first."""
    return [word for word in rows[0] if all(word in own for own in rows)] if rows else []


def _words(row: Mapping[str, Any]) -> Iterable[Word]:
    for column, value in row.items():
        if column == "smoke":
            found = ["smoke"] if value == "True" else []
        elif column == "settings":  # options; their values may have spaces
            found = [option.removeprefix("stage.") for option in re.split(r" (?=[\w.]+=)", value)]
        else:
            found = value.split(", ")
        yield from ((column, word) for word in found if word)


def _text(words: Words) -> str:
    return ", ".join(word for _, word in words)


def _one_per_scan(networks: Sequence[Words], jobs: Iterable[Job]) -> list[Words]:
    """Settings whose jobs share training and scan are one network, named by the words that they share."""
    traces: dict[Words, set[Any]] = {}
    for words, job in zip(networks, jobs, strict=True):
        traces.setdefault(words, set()).add(_trace(job) or words)
    sharing: dict[frozenset[Any], list[Words]] = {}
    for words, trace in traces.items():
        sharing.setdefault(frozenset(trace), []).append(words)
    names: dict[Words, Words] = {}
    for group in sharing.values():
        common = tuple(shared(group))
        taken = {*names.values(), *(words for words in traces if words not in group)}
        names |= dict.fromkeys(group, group[0] if common in taken else common)
    return [names[words] for words in networks]


def _trace(job: Job) -> tuple[Any, ...] | None:
    """Seed and the folders of training and scan; None if the summary does not say."""
    stages = job.summary.get("stages") or {}
    if "mrc" not in stages:
        return None
    return job.summary["seed"], *(Path(str(stages.get(stage))).name for stage in ("at", "mrc"))
