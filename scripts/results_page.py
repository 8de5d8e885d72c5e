"""docs/results.md, its figures and the README's first table, from the results that the repository keeps.

python scripts/results_page.py                    writes them
python scripts/results_page.py --check            exit code 1 if page or table are not what the files say
python scripts/results_page.py --keep OUTPUT      first keeps what the study in OUTPUT found
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pandas as pd

from rift.errors import UserError
from rift.report.figures import save_figure
from rift.report.kept import damaged, keep
from rift.report.kept_claims import readme_block
from rift.report.kept_figures import kept_figures
from rift.report.kept_page import page
from rift.report.kept_study import ROW, Kept, read_kept, row_jobs
from rift.report.results import read_jobs

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "outputs" / "reference" / "cifar10_two_cores"
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- results[^\n]*-->\n).*?(<!-- end of results -->)", re.DOTALL)


def texts(kept: Kept, pictures: dict[str, str]) -> dict[Path, str]:
    """What the page and the README are to hold.

    Raises:
        UserError: the README has no place for the table.
    """
    readme = README.read_text("utf-8")
    if not _BLOCK.search(readme):
        raise UserError(f"{README} has no lines '<!-- results … -->' and '<!-- end of results -->'")
    block = f"\n{readme_block(kept)}\n\n"
    return {
        PAGE: page(kept, pictures),
        README: _BLOCK.sub(lambda found: f"{found[1]}{block}{found[2]}", readme),
    }


def collect(output: Path) -> None:
    """Keeps the study of an output folder.

    Raises:
        UserError: its training or its row is not there.
    """
    trained = [path.parent for path in output.glob("store/at/*-n_fgsm_ema-*/manifest.json")]
    rows = row_jobs(Kept(read_jobs([output / "jobs" / ROW])[0], {}, pd.DataFrame()))
    if len(trained) != 1 or not rows:
        raise UserError(f"{output} holds {len(trained)} trainings and {len(rows)} jobs of the row")
    keep(output, FOLDER, training=trained[0], row=rows[0].summary, here=ROOT)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--keep", type=Path, metavar="OUTPUT", help="of scripts/two_cores_studies.sh")
    wanted = parser.parse_args()
    try:
        if wanted.keep is not None:
            collect(wanted.keep.resolve())
        kept = read_kept(FOLDER)
        figures = kept_figures(kept)
        names = {name: f"results-{name}.png" for name in figures}
        expected = texts(kept, names)
        if wanted.check:
            wrong = damaged(FOLDER)
            wrong += [f"{path} is out of date" for path, text in expected.items() if _read(path) != text]
            print("\n".join(wrong) or "page and table say what the files say")
            return 1 if wrong else 0
        for path, text in expected.items():
            path.write_text(text, "utf-8")
        for name, figure in figures.items():
            save_figure(figure, PAGE.parent / names[name], forms=["png"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
