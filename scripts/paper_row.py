#!/usr/bin/env python3
"""One row of the paper, from unpacked CIFAR-10 to tables and figures, in one process that can stop and go on.

    scripts/paper_row.sh --data FOLDER --results FOLDER [--minutes N] [--by N] [--options FILE]
                         [option=value ...]

Steps: AT (110 epochs) · MRC scan as published · fine-tuning, α sweep, evaluation (PGD-10, worst of three) ·
evaluation with PGD-50 · the other BatchNorm arms · the other scans. What is finished is reused, and what was
stopped goes on. RESULTS gets, after every step and once a minute, results.tar.gz (JSON, metrics, pages,
figures, the report) and in parts of 15 MB the weights of θ_AT, or while it trains those of its last saved
epoch, so that little is lost with a machine:

    cat RESULTS/weights.part-* > at.safetensors     # weights.json says after which epoch
    scripts/paper_row.sh … model.checkpoint=at.safetensors stage.at.start_epoch=EPOCH

goes on elsewhere, with fresh momentum, which the results say.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hydra import compose, initialize_config_dir  # noqa: E402
from safetensors.torch import save  # noqa: E402

from rift.checkpoint import save_json, write_atomically  # noqa: E402
from rift.conf_files import CONF  # noqa: E402
from rift.config import to_config  # noqa: E402
from rift.explain import EXPECTED, INTERRUPTED, MISTAKE, explain  # noqa: E402
from rift.job import run_job  # noqa: E402
from rift.main import quoted  # noqa: E402
from rift.progress import set_up_logging  # noqa: E402
from rift.report.__main__ import main as write_report  # noqa: E402
from rift.resume_point import read_resume_point  # noqa: E402

log = logging.getLogger("rift")

STOPPED, TOO_SLOW = 75, 3  # exit codes
PART = 15_000_000  # bytes
EVERY = 60.0  # seconds between copies of what is there
KEPT = ("*.json", "*.jsonl", "job.log", "*.md", "*.txt", "*.csv", "*.tex", "*.png")

COMMON = ["model=resnet18", "dataset=cifar10", "study=paper_row", "logger=none", "runtime.strict=true"]
OFFICIAL = ["protocol=official", "attack.step_size=2/255", "stage.interpolate.restarts=3"]
OFFICIAL += ["stage.evaluate.restarts=3"]
# With AT among the stages of every step, a checkpoint is where it goes on from, and not θ_AT.
SCAN, WHOLE = "stage.run=[at,mrc]", "stage.run=[at,mrc,finetune,interpolate,evaluate]"
STEPS: list[tuple[str, list[str]]] = [
    ("adversarial training", ["stage.run=[at]"]),
    ("MRC scan as published", [SCAN]),
    ("statistics move and are interpolated", [WHOLE]),
    ("evaluation with PGD-50", [WHOLE, "evaluation_attack.steps=50"]),
    ("statistics frozen", [WHOLE, "stage.finetune.batchnorm=frozen"]),
    ("only statistics move", [WHOLE, "stage.finetune.target=none"]),
    ("weights interpolated, θ_AT's statistics", [WHOLE, "stage.interpolate.batchnorm=keep"]),
    (
        "MRC scan as in the text",
        [
            SCAN,
            "stage.mrc.split=train",
            "stage.mrc.on_violation=stop",
            "stage.mrc.score=last",
            "stage.mrc.shuffle=false",
        ],
    ),
    ("MRC scan, projected", [SCAN, "stage.mrc.solver=projected", "stage.mrc.epochs=1"]),
]


class TimeUp(BaseException):
    """The row must stop now; its one argument is the exit code."""


def run(overrides: list[str]) -> dict[str, Any]:
    """One job in this process, as `python -m rift OVERRIDES` would do it, which is what its results say."""
    sys.argv[1:] = overrides
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(compose("config", [quoted(text) for text in overrides]))
    return run_job(config, dict(text.split("=", 1) for text in overrides))


class Results:
    """What travels: gathered anew from the output folder, a file replaced as a whole."""

    def __init__(self, output: Path, folder: Path) -> None:
        self.output, self.folder = output, folder
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def collect(self) -> None:
        """Copies out all results and the weights so far."""
        with self._lock:
            write_atomically(self.folder / "results.tar.gz", self._pack)
            self._weights()

    def _pack(self, path: Path) -> None:
        with tarfile.open(path, "w:gz") as archive:
            for part in ("jobs", "store", "report"):
                for pattern in KEPT:
                    for file in sorted((self.output / part).rglob(pattern)):
                        if "wandb" not in file.parts and file.is_file():
                            archive.add(file, file.relative_to(self.output))

    def _weights(self) -> None:
        rows = newest(self.output.glob("store/at/*/metrics.jsonl"))
        if rows is None:
            return
        folder = rows.parent  # the AT that runs, or ran last: others may lie beside it
        if (folder / "best.safetensors").is_file():
            about = {"what": "θ_AT", "from": folder.name}
            self._split(about, (folder / "best.safetensors").read_bytes)
            return
        point = read_resume_point(folder)
        if point is None:
            return
        tensors, note = point
        prefix = "network."
        weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        about = {"what": "AT so far", "epoch": note["note"]["next_epoch"], "from": folder.name}
        self._split(about, lambda: save(weights))

    def _split(self, about: dict[str, Any], read: Callable[[], bytes]) -> None:
        said = self.folder / "weights.json"
        if said.is_file() and json.loads(said.read_text(encoding="utf-8")) == about:
            return
        content = read()
        said.unlink(missing_ok=True)  # parts of two files must not pass for one
        for old in self.folder.glob("weights.part-*"):
            old.unlink()
        for index in range(0, len(content), PART):
            piece = content[index : index + PART]
            name = f"weights.part-{index // PART:02d}"
            write_atomically(self.folder / name, lambda path, piece=piece: path.write_bytes(piece))
        save_json(said, about)


def newest(paths: Any) -> Path | None:
    """The file that was written last."""
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


class Watch(threading.Thread):
    """Beside the work: says when AT will end, stops what cannot end in time, copies results out."""

    def __init__(self, results: Results, deadline: float, by: float | None) -> None:
        super().__init__(daemon=True)
        self.results, self.deadline, self.by = results, deadline, by
        self.code = STOPPED
        self.finished = threading.Event()
        self._path: Path | None = None
        self._seen: list[tuple[float, int]] = []  # of that file: when, and how many rows
        self._copied = time.monotonic()

    def run(self) -> None:
        while not self.finished.wait(1.0):
            now = time.monotonic()
            try:
                in_time = now < self.deadline and self._fits(now)
                if in_time and now - self._copied > EVERY:
                    self._copied = now
                    self.results.collect()
            except Exception as error:  # a file may be replaced under our hands; the next time will do
                log.warning("paper row: could not look at the results this time (%s)", error)
                continue
            if not in_time:
                os.kill(os.getpid(), signal.SIGALRM)
                return

    def _fits(self, now: float) -> bool:
        """False once it is known that AT cannot end in time.

        Known is the pace of epochs that both ended under our eyes: the first one makes kernels and graphs.
        """
        path = newest(self.results.output.glob("store/at/*/metrics.jsonl"))
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None else []
        if not lines:
            return True
        if path != self._path or len(lines) < self._seen[-1][1]:  # another AT, or rows were taken back
            self._path, self._seen = path, [(now, len(lines))]
        if len(lines) == self._seen[-1][1]:
            return True
        self._seen.append((now, len(lines)))
        if len(self._seen) < 3:
            return True
        (before, one), (after, other) = self._seen[1], self._seen[-1]
        seconds = (after - before) / (other - one)
        options = json.loads((path.parent / "options.json").read_text(encoding="utf-8"))
        done, total = json.loads(lines[-1])["epoch"], options["options"]["epochs"]
        left = (total - done) * seconds
        if len(self._seen) == 3 or done % 10 == 0:
            log.info("paper row: %.1f s an epoch, AT ends in %.1f minutes", seconds, left / 60)
        if self.by is not None and now + left > self.by:
            log.error("paper row: AT needs %.1f minutes more, which is too long", left / 60)
            self.code = TOO_SLOW
            return False
        return True


def main() -> None:
    """Parses the command line and goes through the steps."""
    arguments = parse()
    output = Path(arguments.output)
    results = Results(output, arguments.results)
    began = time.monotonic()
    by = None if arguments.by is None else began + 60 * arguments.by
    watch = Watch(results, began + 60 * arguments.minutes - 20, by)
    signal.signal(signal.SIGALRM, lambda *_: stop(watch.code))
    set_up_logging(bars=False)
    watch.start()
    title = STEPS[0][0]
    try:
        for title, overrides in STEPS:
            if time.monotonic() > watch.deadline:
                stop(STOPPED)
            log.info("== %s", title)
            run([*COMMON, *OFFICIAL, *overrides, *arguments.overrides])
            results.collect()
    except (TimeUp, KeyboardInterrupt) as stopped:
        code = stopped.args[0] if isinstance(stopped, TimeUp) else INTERRUPTED
        print(f"== stopped in '{title}'; the same command goes on from here", flush=True)
        sys.exit(code)
    except EXPECTED as error:
        print(f"paper_row: '{title}' failed: {explain(error)}", file=sys.stderr)
        sys.exit(MISTAKE)
    finally:
        watch.finished.set()
        results.collect()  # however it ended
    smoke = ["--smoke"] if "smoke=true" in arguments.overrides else []
    write_report([str(output / "jobs" / "paper_row"), "--output", str(output / "report"), *smoke])
    results.collect()
    print(f"== finished: {arguments.results}", flush=True)


def stop(code: int) -> NoReturn:
    """Ends the work at once; what was saved stays."""
    raise TimeUp(code)


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("--data", type=Path, help="holds cifar-10-batches-py")
    parser.add_argument("--results", type=Path, help="gets what travels")
    parser.add_argument(
        "--minutes", type=int, default=100_000, help="stops cleanly before they are up, code 75"
    )
    parser.add_argument("--by", type=float, help="minutes from now that AT must have ended in, else code 3")
    parser.add_argument(
        "--options", type=Path, help="more options, one a line; scripts/gpu_check.py writes them"
    )
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="for every step")
    arguments = parser.parse_args()
    if arguments.data is None or arguments.results is None:
        parser.exit(MISTAKE, "paper_row: --data and --results are needed\n")
    if not (arguments.data / "cifar-10-batches-py").is_dir():
        parser.exit(
            MISTAKE, f"paper_row: no cifar-10-batches-py in {arguments.data}: unpack CIFAR-10 there\n"
        )
    if wrong := [text for text in arguments.overrides if "=" not in text]:
        parser.exit(MISTAKE, f"paper_row: '{wrong[0]}' is no option=value\n")
    more = []
    if arguments.options is not None:
        if not arguments.options.is_file():
            parser.exit(MISTAKE, f"paper_row: there is no file {arguments.options}\n")
        more = arguments.options.read_text(encoding="utf-8").split()
    own = [text for text in arguments.overrides if text.startswith("output=")]
    arguments.output = own[-1].partition("=")[2] if own else "outputs"
    arguments.overrides = [f"dataset.root={arguments.data}", *more, *arguments.overrides]
    return arguments


if __name__ == "__main__":
    main()
