"""Which jobs a report is of, in which order, and which columns it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import pandas as pd

from rift.errors import UserError, choose_from
from rift.report.paper import canonical_target
from rift.report.results import Job
from rift.report.settings import shown_value

_ABOUT = ("model", "dataset", "method", "protocol", "seed", "study", "name", "key", "smoke")
Condition = tuple[str, tuple[str, ...]]


def conditions(texts: Iterable[str]) -> list[Condition]:
    """`model=resnet18,resnet34` as a name and the values that it may have.

    Raises:
        UserError: a text is no `name=value`.
    """
    found = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name and equals and values):
            raise UserError(f"--where takes name=value, not '{text}' (folders go before --where)")
        found.append((name, tuple(values.split(","))))
    return found


def select(jobs: Sequence[Job], wanted: Sequence[Condition]) -> list[Job]:
    """The jobs that fulfil every condition.

    A condition is on `model`, `dataset`, `method`, `protocol`, `target`, `seed`, `study`, `name`, `key`,
    `smoke`, or on an option by its dotted name, of which the first part may be left out.

    Raises:
        UserError: no job knows such a name, or none is left.
    """
    known = [_known(job.summary) for job in jobs]
    for name, values in wanted:
        if not any(name in own for own in known):
            # Every option would be a page: the names that are no options, and the nearest of all.
            every = sorted(set().union(*known))
            near = get_close_matches(name, every, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UserError(
                f"no job has '{name}': {hint}Valid: {', '.join([*_ABOUT, 'target'])}, or an option's name"
            )
        kept = [index for index, own in enumerate(known) if own.get(name) in values]
        if not kept:
            found = sorted({own[name] for own in known if name in own})
            raise UserError(f"no job has {name}={','.join(values)}; {choose_from(values[0], found)}")
        jobs, known = [jobs[index] for index in kept], [known[index] for index in kept]
    return list(jobs)


def _known(summary: Mapping[str, Any]) -> dict[str, str]:
    """What a condition may be on, as text; the target under the name of the paper's tables too."""
    found: dict[str, str] = {}
    for name, value in (summary.get("options") or {}).items():
        found |= {name: shown_value(value), name.removeprefix("stage."): shown_value(value)}
    found |= {name: str(summary.get(name)) for name in _ABOUT}
    return found | {
        "target": str(canonical_target(summary)),
        "smoke": str(bool(summary.get("smoke"))).lower(),
    }


def sort_jobs(jobs: pd.DataFrame, by: str, groups: Sequence[str], *, reverse: bool) -> pd.DataFrame:
    """The jobs so that their groups stand in the order of a column's mean, or of its text.

    Args:
        jobs: a jobs' frame.
        by: a column's name.
        groups: columns whose values together make a row of the table.
        reverse: the largest first; what is missing comes last either way.

    Raises:
        UserError: there is no such column.
    """
    columns = [name for name in jobs if name not in ("job", "folder", "written")]
    if by not in columns:
        raise UserError(f"--sort: no column '{by}': {choose_from(by, columns)}")
    values = jobs.groupby(list(groups), sort=False)[by]
    key = values.transform("mean" if pd.api.types.is_numeric_dtype(jobs[by]) else "first")
    ordered = jobs.assign(_order=key)
    return ordered.sort_values("_order", ascending=not reverse, kind="stable").drop(columns="_order")


def column_name(shown: str) -> str:
    """What a column's heading is called on the command line: `clean Δ` is `clean_delta`."""
    return shown.replace("α*", "alpha").replace("Δ", "delta").replace(" ", "_").lower()


def choose_columns(table: pd.DataFrame, wanted: Sequence[str] | None) -> pd.DataFrame:
    """The wanted columns in the wanted order; `clean_at` is the mean and the deviation where there are both.

    Raises:
        UserError: there is no such column.
    """
    if wanted is None:
        return table
    names = {column_name(name): name for name in table}
    if "seeds" in names:  # of finished cells; a CSV has `n`, how many, beside `seeds`, which
        names.setdefault("n", names["seeds"])
    found: list[str] = []
    for name in wanted:
        own = [names[full] for full in (name, f"{name}_mean", f"{name}_std") if full in names]
        if not own:
            raise UserError(f"--columns: no column '{name}': {choose_from(name, names)}")
        found += own
    return table[list(dict.fromkeys(found))]
