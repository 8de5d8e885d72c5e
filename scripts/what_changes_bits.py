"""Which circumstances change a result's bits, and how much: the same job under one change at a time.

    python scripts/what_changes_bits.py [--output DIR]     prints a Markdown table; some minutes on two cores

Each row is a fresh process with an empty store; "again" is the same command twice. Rows that this machine
cannot show (no GPU, no AVX-512) are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rift.checkpoint import load_tensors
from rift.report.tables import markdown_table

JOB = (
    "experiment=demo", "dataset.train_limit=600", "dataset.test_limit=300", "stage.at.epochs=3",
    "stage.at.milestones=[2]", "stage.mrc.max_images=200", "stage.finetune.epochs=2",
    "stage.finetune.milestones=[1]", "stage.interpolate.points=3", "stage.evaluate.measure=[pgd]",
    "logger=none",
)  # fmt: skip
FIRST = ("runtime.threads=1", "runtime.device=cpu")


def variations() -> dict[str, tuple[tuple[str, ...], Mapping[str, str]]]:
    """What is changed: options that come after those of the first run, and environment variables."""
    found: dict[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
        "nothing (again)": ((), {}),
        "runtime=deterministic": (("runtime=deterministic",), {}),
        "2 threads": (("runtime.threads=2",), {}),
        "2 threads, again": (("runtime.threads=2",), {}),
        "oneDNN's AVX2 kernels": ((), {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        "torch's AVX2 kernels": ((), {"ATEN_CPU_CAPABILITY": "avx2"}),
        "evaluation in batches of 100": (("runtime.batch_size=100",), {}),
        "no channels-last memory": (("runtime.channels_last=false",), {}),
        "no folded BatchNorm": (("runtime.fold_batchnorm=false",), {}),
    }
    if torch.cuda.is_available():
        found["a GPU"] = (("runtime.device=cuda", "runtime.precision=float32"), {})
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        del found["torch's AVX2 kernels"], found["oneDNN's AVX2 kernels"]
    return found


def run(output: Path, options: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, Any]:
    """One job in a process of its own: weights of θ_AT, and the summary."""
    groups = [text for text in options if text.startswith("runtime=")]
    values = [text for text in options if text not in groups]
    kept = [text for text in FIRST if text.partition("=")[0] not in {v.partition("=")[0] for v in values}]
    command = [sys.executable, "-m", "rift", *JOB, *groups, *kept, *values, f"output={output}"]
    surroundings = {**os.environ, **environment}
    subprocess.run(
        command, check=True, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    (summary,) = output.rglob("summary.json")
    (weights,) = output.glob("store/at/*/best.safetensors")
    return {"summary": json.loads(summary.read_text("utf-8")), "weights": load_tensors(weights)[0]}


def compared(name: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """A row: how far a run is from the first one."""
    one, two = (run["summary"] for run in (first, other))
    pairs = [(first["weights"][key], other["weights"][key]) for key in first["weights"]]
    same = all(torch.equal(a, b) for a, b in pairs)
    largest = max(float((a - b).abs().max()) for a, b in pairs if a.is_floating_point())
    scans = [{row["module"]: row["mrc"] for row in summary["mrc"]} for summary in (one, two)]
    mrc = max(abs(scans[0][module] - scans[1][module]) for module in scans[0])
    ranks = [sorted(scan, key=scan.__getitem__) for scan in scans]
    images = one["at"]["num_images"]
    moved = [
        round(images * (two["at"][metric] - one["at"][metric]))
        for metric in ("clean_accuracy", "robust_accuracy")
    ]
    return {
        "changed": name,
        "θ_AT": "same bits" if same else f"up to {largest:.1g} apart",
        "MRC": "same" if mrc == 0 else f"up to {mrc:.1g} apart",
        "ranking": "same" if ranks[0] == ranks[1] else "other",
        f"images of {images}: clean": f"{moved[0]:+d}" if moved[0] else "same",
        "robust": f"{moved[1]:+d}" if moved[1] else "same",
    }


def main() -> None:
    """Runs the command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--output", type=Path, help="where the runs write (default: a temporary folder)")
    output = parser.parse_args().output or Path(tempfile.mkdtemp(prefix="rift-bits-"))
    first, rows = run(output / "first", (), {}), []
    for number, (name, (options, environment)) in enumerate(variations().items()):
        rows.append(compared(name, first, run(output / str(number), options, environment)))
        print(f"{name}: θ_AT {rows[-1]['θ_AT']}", file=sys.stderr, flush=True)
    print(markdown_table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
