"""`python -m rift.store`: joins the results of several machines, and checks what lies on a disk."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rift import foreign
from rift.errors import UserError
from rift.explain import INTERRUPTED, MISTAKE
from rift.merging import DAMAGED, IN_USE, OUTCOMES, check_output, merge
from rift.progress import measured, set_up_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit code: 1 if something is damaged; 2, after one sentence, for what the user can mend; 130 for
        Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    set_up_logging()
    try:
        if options.command == "verify":
            return _verify(options.folder)
        return _merge(options.target, options.sources, options.dry_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        where, reason = error.filename or "a file", error.strerror or str(error)
        print(
            f"error: {where} cannot be read or written ({reason}): mend that and give the command again; "
            "what is copied stays.",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return MISTAKE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rift.store", description=__doc__.split(": ", 1)[1])
    commands = parser.add_subparsers(dest="command", required=True)
    merging = commands.add_parser("merge", help="copy what other output folders have and the first one lacks")
    merging.add_argument("target", type=Path, metavar="A", help="the output folder that gets it; may be new")
    merging.add_argument(
        "sources", type=Path, nargs="+", metavar="B", help="output folders of other machines"
    )
    merging.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    verifying = commands.add_parser("verify", help="check every finished result against its SHA-256 sums")
    verifying.add_argument("folder", type=Path, metavar="A", help="an output folder")
    return parser


def _merge(target: Path, sources: Sequence[Path], dry_run: bool) -> int:
    outcomes = merge(target, sources, dry_run=dry_run)
    for outcome in outcomes:
        if outcome.reason:
            print(f"{outcome.outcome}: {outcome.reason}")
        elif dry_run and outcome.outcome == "copied":
            print(f"would be copied: {outcome.folder}")
    parts = []
    for kind, name in (("store", "results"), ("jobs", "jobs")):
        count = Counter(outcome.outcome for outcome in outcomes if outcome.kind == kind)
        shown = [one for one in OUTCOMES if one != IN_USE or count[one]]
        parts.append(f"{name}: " + ", ".join(f"{count[one]} {one}" for one in shown))
    print(("dry run, nothing is written; " if dry_run else "") + "; ".join(parts))
    return int(any(outcome.outcome == DAMAGED for outcome in outcomes))


def _verify(folder: Path) -> int:
    check_output(folder)
    found = list(foreign.folders_below(folder / "store", links=True))
    damaged, whole = [], 0
    with measured("verify", len(found), "results") as meter:
        for path, wrong in found:
            try:
                if wrong:
                    raise UserError(wrong)
                finished = foreign.read_result(path, path.parent.name, foreign.key_of(path.name))
                if finished is not None:
                    foreign.check(finished)
                    whole += 1
            except UserError as error:
                damaged.append(str(error))
            meter.advance(1)
    for reason in damaged:
        print(f"damaged: {reason}")
    unfinished = len(found) - whole - len(damaged)
    print(f"results: {whole} whole, {len(damaged)} damaged, {unfinished} unfinished")
    return int(bool(damaged))
