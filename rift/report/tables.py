"""Turns a table of finished cells (a DataFrame of strings) into a terminal table, Markdown or LaTeX."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
    "±": r"$\pm$", "Δ": r"$\Delta$", "α": r"$\alpha$", "–": "--", "×": r"$\times$",
    "ρ": r"$\rho$", "τ": r"$\tau$", "θ": r"$\theta$", "‖": r"$\|$", "ε": r"$\epsilon$",
    "−": "$-$", "…": r"\dots{}",
}  # fmt: skip


def rich_table(frame: pd.DataFrame, title: str, *, text_columns: int = 1, gap: int = 2) -> Table:
    """A terminal table; the first `text_columns` columns are left-aligned, the numbers right-aligned.

    `gap` blanks stand between columns. Cells may hold several lines, and then the rows are set apart.
    On a narrow terminal the text wraps and the numbers stay whole.
    """
    tall = any("\n" in str(cell) for cell in frame.to_numpy().ravel())
    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_lines=tall,
        collapse_padding=True,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )
    for position, name in enumerate(frame.columns):
        is_text = position < text_columns
        lines = [line for cell in frame[name] for line in str(cell).split("\n")]
        table.add_column(
            Text(name),
            justify="left" if is_text else "right",
            style="dim" if name.startswith("paper") else "",
            overflow="fold",
            min_width=None if is_text else max(len(part) for part in [*lines, *name.split()]),
        )
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def markdown_table(frame: pd.DataFrame, *, text_columns: int = 1) -> str:
    """A GitHub table without a trailing line break."""
    cells = frame.map(lambda cell: str(cell).replace("|", "\\|").replace("\n", "<br>"))
    align = ["left"] * text_columns + ["right"] * (frame.shape[1] - text_columns)
    return cells.to_markdown(index=False, colalign=align, disable_numparse=True)


def latex_table(frame: pd.DataFrame, *, caption: str, label: str, text_columns: int = 1) -> str:
    """A `table` environment for booktabs; every cell is escaped, so the cells may hold any text."""
    cells = frame.map(lambda cell: latex_escape(str(cell)))
    cells.columns = [latex_escape(name) for name in frame.columns]
    body = cells.style.hide(axis="index").to_latex(
        column_format="l" * text_columns + "r" * (frame.shape[1] - text_columns),
        hrules=True, caption=latex_escape(caption), label=label, position="t", position_float="centering",
    )  # fmt: skip
    return "% needs \\usepackage{booktabs}\n" + body


def to_csv(frame: pd.DataFrame, path: Path | None = None) -> str | None:
    """Numbers with four decimals; as text, or into a file."""
    return frame.to_csv(path, index=False, float_format="%.4f", lineterminator="\n")


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(character, character) for character in text)


def plain_text(*parts: RenderableType, width: int = 120) -> str:
    """What a terminal of this width would show, without colours or trailing blanks."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    for part in parts:
        console.print(part, markup=False)
    lines = console.file.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"
