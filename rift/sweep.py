"""A sweep as a whole: what its jobs vary, how each of them ended, and the table at its end.

The jobs may run in other processes, on other machines even. So each leaves a line in a folder of the sweep,
whose place they inherit in an environment variable; the folder goes when the table has been shown.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from rift.errors import JobFailed, UserError, printable
from rift.explain import EXPECTED, in_one_line, leave

VARIABLE = "RIFT_SWEEP"
LARGEST = 10_000  # jobs of one sweep; Hydra lists and composes all of them before the first begins
GOOD = ("done", "fine")  # how a job has ended that failed of nothing; fine: it was only checked
_PLAN = "plan.json"
_NAMED_ANYWAY = ("model", "dataset", "method", "seed", "model.name", "model.width")  # in every job's name


class SweepPlan(Callback):
    """Notes which jobs a sweep consists of; `conf/config.yaml` hangs it into Hydra by name."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Writes the plan where the jobs will find it; a sweep that is too large ends here."""
        swept = [f"{name}={values}" for name, values in (config.hydra.sweeper.get("params") or {}).items()]
        overrides = [*swept, *config.hydra.overrides.task]
        try:
            _check_size(overrides)
        except UserError as error:
            leave(error)  # of an error that a callback raises, Hydra would make a warning
        folder = Path(config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix="sweep-", dir=folder)).resolve()
        except OSError:  # Hydra will stumble over it too, and be heard
            return
        jobs = _combinations(overrides)
        (place / _PLAN).write_text(json.dumps(jobs), encoding="utf-8")
        os.environ[VARIABLE] = str(place)


ConfigStore.instance().store(
    group="hydra/callbacks",
    name="sweep_plan",
    node={"sweep_plan": {"_target_": f"{SweepPlan.__module__}.{SweepPlan.__qualname__}"}},
)


def _check_size(overrides: list[str]) -> None:
    """Raises `UserError` for no jobs, or more than `LARGEST`, without making a list of them."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException:  # Hydra has its own sentence for it
        return
    counts = {override.get_key_element(): _values(override) for override in parsed}
    for name, count in counts.items():
        if count == 0:
            raise UserError(f"{name} stands for no value at all, so the sweep has no jobs: give it some.")
    jobs = math.prod(counts.values())
    if jobs > LARGEST:
        swept = " × ".join(name for name, count in counts.items() if count > 1)
        number = "without end" if jobs == math.inf else f"of {jobs:,} jobs".replace(",", " ")
        raise UserError(f"{swept} is a sweep {number}, and at most {LARGEST} are taken: give fewer values.")


def _values(override: Override) -> float:
    """How many values an override stands for; infinity for a range that does not end."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return len(value.list) if hasattr(value, "list") else 1
    start, stop, step = value.start, value.stop, value.step
    assert start is not None and stop is not None
    if all(isinstance(number, int) for number in (start, stop, step)) and step != 0:
        return max(0, -((start - stop) // step))
    if step == 0 or not all(map(math.isfinite, (start, stop, step))):
        return math.inf
    return max(0, math.ceil((stop - start) / step))


def _combinations(overrides: list[str]) -> list[list[str]]:
    """The jobs of Hydra's own sweeper, as lists of overrides; none for one that decides as it goes."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    except (HydraException, ValueError):
        return []
    return jobs


def place() -> Path | None:
    """The folder of the sweep that this process belongs to, if any."""
    found = os.environ.get(VARIABLE)
    return Path(found) if found and Path(found).is_dir() else None


def differing(overrides: Sequence[str]) -> list[str]:
    """Those of a job's overrides in which the jobs of its sweep differ: `stage.finetune.lr=0.01`."""
    folder = place()
    jobs = json.loads((folder / _PLAN).read_text(encoding="utf-8")) if folder else []
    shared = _shared(jobs) if jobs else set(overrides)
    return [text for text in overrides if text not in shared]


def of_user(overrides: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """Those of a job's overrides that the user gave: the others are values of an experiment's own sweep.

    Args:
        overrides: of the job.
        params: of the sweeper, as the experiment's file has them: `{"seed": "0,1,2"}`.
    """
    swept = {text for name, values in params.items() for (text,) in _combinations([f"{name}={values}"])}
    return [text for text in overrides if text not in swept]


def varied(overrides: Sequence[str]) -> list[str]:
    """What to add to a job's name, which says model, data, method and seed already: `finetune.lr=0.01`."""
    own = differing(overrides)
    return [text.removeprefix("stage.") for text in own if text.partition("=")[0] not in _NAMED_ANYWAY]


def _shared(jobs: list[list[str]]) -> set[str]:
    return set.intersection(*(set(job) for job in jobs)) if len(jobs) > 1 else set()


@contextmanager
def recorded(
    number: int, overrides: Sequence[str], *, carry_on: bool, done: str = "done"
) -> Iterator[list[str]]:
    """Around one job of a sweep: how it ended is noted, and a failure is said at once.

    Args:
        number: of the job.
        overrides: its own command line.
        carry_on: swallow the failure, so that a sweeper that stops at the first one does not.
        done: what its end is called, one of `GOOD`.

    Yields:
        A list for remarks on a job that comes to its end.

    Raises:
        JobFailed: else, instead of what the job raised: it can be carried between processes.
    """
    note = {"overrides": list(overrides), "state": "stopped", "reason": "before its end"}
    _note(number, note)
    remarks: list[str] = []
    try:
        yield remarks
    except EXPECTED as error:
        reason = in_one_line(error)
        print(f"rift: error: job #{number}: {printable(reason)}", file=sys.stderr)
    except Exception as error:  # a bug in one job is no reason to lose the others
        traceback.print_exc()
        reason = in_one_line(error)
    else:
        _note(number, note | {"state": done, "reason": "; ".join(remarks)})
        return
    _note(number, note | {"state": "failed", "reason": reason})
    if not carry_on:
        raise JobFailed(reason)


def _note(number: int, note: dict[str, Any]) -> None:
    folder = place()
    if folder is not None:
        (folder / f"{number}.json").write_text(json.dumps(note, ensure_ascii=False), encoding="utf-8")


def lost(number: int, reason: str) -> None:
    """Notes why a job did not come to its end, where its process cannot: a launcher says it.

    Args:
        number: of the job.
        reason: goes on after `stopped:`.
    """
    folder = place()
    noted = _noted(folder / f"{number}.json") if folder is not None else {}
    if noted.get("state") not in (*GOOD, "failed"):  # else it has said it itself, before it died
        _note(number, {**noted, "state": "stopped", "reason": reason})


def _noted(path: Path) -> dict[str, Any]:
    """A job's note; nothing where its process was killed while writing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def finish(heading: str = "ended") -> bool:
    """Shows how every job of the sweep ended, and forgets the sweep.

    Args:
        heading: of the column that says it.

    Returns:
        Whether all of them are done; also where there was no sweep.
    """
    folder = place()
    os.environ.pop(VARIABLE, None)
    if folder is None:
        return True
    rows = list(_rows(folder))
    shutil.rmtree(folder, ignore_errors=True)
    if any(row["state"] != "not run" for row in rows):  # else all is said in the sentence that stopped it
        _show(rows, heading)
    return all(row["state"] in GOOD for row in rows)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    jobs = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
    noted = {int(path.stem): path for path in folder.glob("*.json") if path.name != _PLAN}
    shared = _shared(jobs)
    for number in range(max([len(jobs), *(n + 1 for n in noted)])):
        row = {"overrides": jobs[number] if number < len(jobs) else [], "state": "not run", "reason": ""}
        if number in noted:
            row |= _noted(noted[number])
        yield row | {"number": number, "job": " ".join(t for t in row["overrides"] if t not in shared)}


def _show(rows: Iterable[dict[str, Any]], heading: str) -> None:
    import pandas as pd

    from rift.report.tables import rich_table

    frame = pd.DataFrame(
        {
            "job": f"#{row['number']} {row['job']}".strip(),
            heading: row["state"] + (f": {row['reason']}" if row["reason"] else ""),
        }
        for row in rows
    )
    Console().print(rich_table(frame, "Jobs of this sweep", text_columns=2))
