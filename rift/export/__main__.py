"""Finished jobs as models that travel: `python -m rift.export JOB` writes θ_AT and θ* with a card."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rift.errors import UserError
from rift.explain import INTERRUPTED, MISTAKE
from rift.export.artifact import log_artifact
from rift.export.folder import export_job
from rift.progress import set_up_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit code: 2, after one sentence, for what the user can mend; 130 for Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    set_up_logging()
    try:
        folder = export_job(options.job, options.output, options.licence)
        print(folder)
        if options.artifact:
            job = options.job.parent if options.job.is_file() else options.job
            print(log_artifact(job.resolve(), folder), file=sys.stderr)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        where, reason = error.filename or "a file", error.strerror or str(error)
        print(
            f"error: {where} cannot be read or written ({reason}): mend that or give another --output.",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("\nstopped; the same command writes it anew", file=sys.stderr)
        return INTERRUPTED
    return MISTAKE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rift.export", description=__doc__)
    parser.add_argument(
        "job", type=Path, metavar="JOB", help="a folder below outputs/jobs, or its summary.json"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="new, empty, or of the same job (default: JOB/export)"
    )
    parser.add_argument(
        "--licence",
        metavar="NAME",
        help="of the weights, for the card, e.g. CC-BY-4.0; nothing is said without it",
    )
    parser.add_argument(
        "--artifact",
        action="store_true",
        help="also log it to the job's W&B run, as an artifact of type model",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
