"""How a job stands, read from its folder: by any process, while the job runs or long after.

<job folder>/job.lock     held by the process that runs the job; the file itself stays
<job folder>/state.json   what that process wrote last, and what the job is of
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rift.errors import shown
from rift.locks import holder_named, is_held

LOCK_FILE = "job.lock"
STATE_FILE = "state.json"
_STATES = ("running", "done", "failed", "stopped")


@dataclass(frozen=True)
class JobState:
    """How a job stands; what is not known is None.

    Attributes:
        state: `running`, `done`, `failed` (it raised an error) or `stopped` (Ctrl-C, or its process is gone).
        began: ISO time of the last attempt.
        ended: ISO time; None while it runs, and if its process could not say it any more.
        host: where it ran.
        pid: its process there.
        reason: one sentence, for a failed job.
    """

    state: str
    began: str | None = None
    ended: str | None = None
    host: str | None = None
    pid: int | None = None
    reason: str | None = None


def job_state(folder: Path) -> JobState:
    """How the job of this folder stands; reads only.

    A job whose process was killed has left `running` and a free lock, and is `stopped`. A folder without a
    readable `state.json`, as older versions left them, is `done` if it has a summary.
    """
    noted = noted_state(folder)
    if noted is not None and noted.state != "running":
        return noted
    held = is_held(folder / LOCK_FILE)
    if noted_state(folder) != noted:  # it ended, or began, while we looked
        return job_state(folder)
    if noted is None:
        done = (folder / "summary.json").is_file()
        return JobState("running" if held else "done" if done else "stopped")
    return noted if held else JobState(**{**vars(noted), "state": "stopped"})


def job_holder(folder: Path) -> str:
    """Who runs the job of this folder, by what its process wrote when it began: host, process, since when."""
    noted = noted_state(folder)
    return shown(
        holder_named(noted.pid, noted.host, noted.began) if noted else holder_named(None, None, None)
    )


def noted_state(folder: Path) -> JobState | None:
    """What `state.json` says, or None where it says nothing that can be understood."""
    try:
        value = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("state") not in _STATES:
        return None
    texts = {name: _of_type(str, value.get(name)) for name in ("began", "ended", "host", "reason")}
    return JobState(value["state"], pid=_of_type(int, value.get("pid")), **texts)


def _of_type(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else None
