"""Sets of modules chosen by their joint MRC, beside the sets of the lowest ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rift.report.cells import mean_and_std
from rift.report.experiments import Cell


def joint_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per joint scan, choice and size: MRC, robust accuracy drop (points), modules.

    Jobs of the same network share their scan, which counts once.
    """
    rows: dict[tuple, dict] = {}
    for cell in cells:
        setting = " ".join(cell.setting.values())
        for job in cell.jobs["job"]:
            scan = job.summary.get("joint") or {}
            # By its name, which tells the options: its place is another one on another machine.
            folder = Path((job.summary.get("stages") or {}).get("joint", str(job.folder))).name
            for choice, sets in scan.items():
                for entry in sets:
                    size = len(entry["modules"])
                    rows[folder, choice, size] = {
                        "setting": setting,
                        "seed": job.summary["seed"],
                        "choice": choice,
                        "size": size,
                        "mrc": entry["mrc"],
                        "drop": 100 * entry["robust_accuracy_drop"],
                        "modules": " + ".join(entry["modules"]),
                    }
    return pd.DataFrame(rows.values())


def joint_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """`joint_frame` as finished cells: both choices beside each other, size by size, over seeds."""
    rows = []
    for (setting, size), group in frame.groupby(["setting", "size"], sort=True):
        greedy, lowest = (
            group[group["choice"] == choice].set_index("seed").sort_index() for choice in ("greedy", "top_k")
        )
        count = len(lowest)
        same = int((greedy["modules"] == lowest["modules"]).sum())
        rows.append(
            {
                "of": setting,
                "modules": str(size),
                "networks": str(count),
                "joint MRC, k lowest": mean_and_std(lowest["mrc"], expected=count, decimals=3),
                "joint MRC, greedy": mean_and_std(greedy["mrc"], expected=count, decimals=3),
                "drop, k lowest": mean_and_std(lowest["drop"], expected=count),
                "drop, greedy": mean_and_std(greedy["drop"], expected=count),
                "same set": f"{same} of {count}",
            }
        )
    return pd.DataFrame(rows)


CAPTION = (
    "MRC of a set: all its modules move at once, each in a ball of its own. k lowest: by the scan of single "
    "modules (top_k); greedy: each step adds the module with which the set's MRC is least (joint_k). Drop of "
    "robust accuracy in points; mean ± standard deviation over the trained networks."
)
