"""Figures over many jobs: their curves along α together, and the scans of each network over its seeds."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from rift.report.experiment_figures import curves_figure, scan_figure
from rift.report.experiments import NAMES, Cell
from rift.report.study import settings_of

_MOST_CURVES = 8  # more cannot be told apart


def overview_figures(jobs: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """`all-curves`, and `all-mrc-1`, `all-mrc-2`, … for each network of which several jobs have a scan.

    Args:
        jobs: as `one_job_per_seed` returns them; a single one has nothing to be compared with.
    """
    cells = [
        Cell(
            setting={name: setting[name] for name in NAMES},
            target=" ".join(setting[name] for name in ("target", "settings") if setting[name]),
            arm=None,
            seeds=tuple(group["seed"]),
            stages=(),
            jobs=group,
        )
        for setting, group in settings_of(jobs)
    ]
    swept = sum(bool(job.summary.get("sweep")) for job in jobs["job"])
    if swept > 1 and len(cells) <= _MOST_CURVES and (figure := curves_figure(cells)) is not None:
        yield "all-curves", figure
    number = 0
    for cell in cells:
        scanned = sum(bool(job.summary.get("mrc")) for job in cell.jobs["job"])
        if scanned > 1 and (figure := scan_figure([cell])) is not None:
            number += 1
            yield f"all-mrc-{number}", figure
