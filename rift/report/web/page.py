"""Writes the page: tables, figures and their captions into one HTML file that asks no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from rift.errors import UserError
from rift.report.web.rows import Shown

_HERE = Path(__file__).parent
_LONG = 36  # characters of a cell that stay in one line
MISSING_LIBRARY = (
    "--html needs the packages altair and vl-convert-python: `pip install 'altair>=5.5' "
    "'vl-convert-python>=1.7'`, or `pip install -e '.[html]'` in a checkout"
)


@dataclass(frozen=True)
class PageTable:
    """A table of finished cells.

    Attributes:
        title: above it.
        cells: any text; it is escaped.
        text_columns: how many of the first columns are text.
        caption: how to read it.
        jobs: for each row the numbers of its jobs, by which the page's filter hides it; None keeps all rows.
        sorts: whether a click on a heading sorts it: not where a row belongs to the one above.
    """

    title: str
    cells: pd.DataFrame
    text_columns: int = 1
    caption: str = ""
    jobs: Sequence[Sequence[str]] | None = None
    sorts: bool = True

    @cached_property
    def long_columns(self) -> list[int]:
        """The columns of text whose cells are broken into lines."""
        texts = (self.cells.iloc[:, column] for column in range(min(self.text_columns, self.cells.shape[1])))
        return [column for column, own in enumerate(texts) if any(len(str(cell)) > _LONG for cell in own)]


@dataclass(frozen=True)
class LegendEntry:
    """What a colour of a figure means.

    Attributes:
        series: any text; it is escaped.
        colour: `#0072B2`.
        jobs: the numbers of its jobs, by which the page's filter hides it.
    """

    series: str
    colour: str
    jobs: Sequence[str]


@dataclass(frozen=True)
class PageFigure:
    """A figure.

    Attributes:
        title: above it.
        specification: of Vega-Lite.
        jobs: the numbers of the jobs that it shows.
        wide: whether it has a row of its own.
        legend: above it.
        shares: whether the legend of the figure before it is for this one, too.
    """

    title: str
    specification: dict[str, Any]
    jobs: Sequence[str]
    wide: bool = False
    legend: Sequence[LegendEntry] = ()
    shares: bool = False


@dataclass(frozen=True)
class PageSection:
    """A part of the page with a heading and a text, and then tables or figures."""

    name: str
    title: str
    text: str = ""
    tables: Sequence[PageTable] = ()
    figures: Sequence[PageFigure] = ()

    @property
    def first_row(self) -> int:
        """How many of the figures stand beside each other under the heading."""
        return 1 if self.figures and self.figures[0].wide else 2


@dataclass(frozen=True)
class PageJob:
    """What is said of one job alone."""

    shown: Shown
    title: str
    lines: Sequence[str]
    tables: Sequence[PageTable]
    lists: dict[str, Sequence[str]] = field(default_factory=dict)


def write_page(path: Path, title: str, sections: Sequence[PageSection], jobs: Sequence[PageJob]) -> None:
    """Writes the page.

    Args:
        path: of the file; its folder is made.
        title: of the page.
        sections: in the order in which they are read.
        jobs: each with a part of its own at the end; the filter at the top of the page picks among them.

    Raises:
        UserError: the library that draws in the browser is not installed.
        OSError: the file cannot be written.
    """
    figures = [figure for section in sections for figure in section.figures]
    data = {
        "figures": [figure.specification for figure in figures],
        "jobs": [{"number": job.shown.number, "words": _words(job.shown)} for job in jobs],
    }
    # Without figures nothing has to be drawn.
    scripts = [*([_library()] if figures else []), (_HERE / "page.js").read_text(encoding="utf-8")]
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("page.html.j2").render(
        title=title,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        sections=sections,
        jobs=jobs,
        data=htmlsafe_json_dumps(data, dumps=partial(json.dumps, allow_nan=False)),
        scripts=[Markup(script) for script in scripts],  # noqa: S704  ours and the library's, not a file's
        style=Markup(style),  # noqa: S704
        policy=_policy(scripts, style),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name with half of a surrogate pair has no UTF-8.
    path.write_bytes(text.encode("utf-8", errors="replace"))


def load_charts() -> Any:
    """The module that makes the figures; raises `UserError` if its library is not installed."""
    try:
        from rift.report.web import charts
    except ImportError as error:
        raise UserError(MISSING_LIBRARY) from error
    return charts


@cache  # the same for every page, and a second's work
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    try:
        from vl_convert import javascript_bundle
    except ImportError as error:
        raise UserError(MISSING_LIBRARY) from error
    # What would end the script's element, or hide its end, may stand in a string of the library.
    return javascript_bundle().replace("</script", r"<\/script").replace("<!--", r"<\!--").replace("\r", "")


def _policy(scripts: Sequence[str], style: str) -> str:
    """Only these scripts and this style run, and nothing is loaded from, or sent to, anywhere."""
    allowed = " ".join(_source(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_source(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _words(shown: Shown) -> list[str]:
    """What the filter finds a job by: `seed=0`, `resnet18`, in lower case."""
    summary = shown.job.summary
    named = {
        name: summary.get(name)
        for name in ("model", "dataset", "method", "protocol", "target", "seed", "study")
    }
    named |= summary.get("options") or {}
    words = [shown.number, summary["name"], *(summary.get("target_modules") or [])]
    return [str(word).lower() for word in [*words, *(f"{name}={value}" for name, value in named.items())]]
