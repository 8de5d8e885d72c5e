#!/usr/bin/env python3
"""The first four minutes on a GPU machine: is it right, how fast is each part, which options are best?

    python scripts/gpu_check.py [--output outputs/gpu_check.jsonl] [--options outputs/gpu_options.txt]
                                [--minutes 4] [--only PART ...] [--small]

Random data and untrained weights, ResNet18 at the paper's sizes; nothing is read or downloaded. Every result
is one line, printed and written at once, so that a machine that goes away takes nothing along. The first
thing that is wrong ends the check with exit code 1. What does not fit into the minutes is "not measured". The
options that won are written for `scripts/paper_row.sh --options`. `--small` shrinks everything; with it the
check also runs on a CPU, where it measures nothing of interest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from gpu_parts import PARTS, Check  # noqa: E402

from rift.runtime import choose_device, set_global_switches  # noqa: E402


def main() -> int:
    """Runs the parts in order; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu_check.jsonl")
    parser.add_argument("--options", type=Path, default=ROOT / "outputs" / "gpu_options.txt")
    parser.add_argument("--minutes", type=float, default=4.0)
    names = [part.__name__ for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument("--limit", type=int, default=10, help="algorithms that cuDNN tries for each shape")
    parser.add_argument("--small", action="store_true", help="tiny sizes; runs on a CPU too")
    arguments = parser.parse_args()
    device = choose_device("auto")
    if device.type != "cuda" and not arguments.small:
        parser.exit(2, "gpu_check: there is no CUDA device here; --small tries the script on a CPU\n")
    set_global_switches(tf32=False, deterministic=False, threads=None)
    alone = len(arguments.only) == 1
    check, began = Check(device, arguments.small, arguments.limit, alone), time.monotonic()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", encoding="utf-8") as file:

        def say(part: str, line: dict[str, Any]) -> None:
            text = json.dumps({"part": part, "at_s": round(time.monotonic() - began, 1), **line})
            print(text, flush=True)
            file.write(text + "\n")
            file.flush()

        for part in (part for part in PARTS if part.__name__ in arguments.only):
            name = part.__name__
            if time.monotonic() - began > 60 * arguments.minutes:
                say(name, {"not_measured": "the minutes were up"})
                continue
            try:
                for line in part(check):
                    say(name, line)
            except Exception as error:  # whatever it is, it is what this check looks for
                say(name, {"wrong": f"{type(error).__name__}: {error}"})
                return 1
            chosen = "".join(f"{option}={value}\n" for option, value in check.options.items())
            arguments.options.parent.mkdir(parents=True, exist_ok=True)
            arguments.options.write_text(chosen, encoding="utf-8")
        print("fastest: " + " ".join(chosen.split()), file=sys.stderr)
        say("end", {"options": check.options, "fallbacks": check.runtime.fallbacks})
    return 0


if __name__ == "__main__":
    sys.exit(main())
