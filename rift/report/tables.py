"""Turns a table of finished cells (a DataFrame of strings) into a terminal table, Markdown or LaTeX."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from itertools import groupby
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
    "−": "$-$", "χ": r"$\chi$", "²": "$^2$", "…": r"\dots{}",
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


def latex_table(
    frame: pd.DataFrame, *, caption: str, label: str, text_columns: int = 1, bold: pd.DataFrame | None = None
) -> str:
    """A `table` environment for booktabs that is no wider than a line of text; every cell is escaped.

    Args:
        frame: finished cells. Columns named by pairs (group, name) get a line of groups with `\\cmidrule`;
            the group "" has none.
        caption: plain text.
        label: for `\\ref`.
        text_columns: how many of the first columns are text.
        bold: which cells are set in bold; of the frame's shape.
    """
    pairs = [name if isinstance(name, tuple) else ("", name) for name in frame.columns]
    lines = [*_group_lines([group for group, _ in pairs]), _latex_row(_latex_cell(name) for _, name in pairs)]
    lines.append(r"\midrule")
    marked = pd.DataFrame(False, frame.index, frame.columns) if bold is None else bold
    for cells, marks in zip(frame.itertuples(index=False), marked.itertuples(index=False), strict=True):
        texts = [_latex_cell(str(cell)) for cell in cells]
        lines.append(_latex_row(rf"\textbf{{{t}}}" if m else t for t, m in zip(texts, marks, strict=True)))
    columns = "l" * text_columns + "r" * (len(pairs) - text_columns)
    body = "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"]
    )
    return (
        "% needs \\usepackage{booktabs,graphicx}\n\\begin{table}[t]\n\\centering\n"
        f"\\caption{{{latex_escape(caption)}}}\n\\label{{{label}}}\n\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n"
        f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{body}%\n}}\n"
        "\\end{table}\n"
    )


def _group_lines(groups: list[str]) -> list[str]:
    """The line of groups, and a rule under each of them; nothing if there are none."""
    if not any(groups):
        return []
    cells, rules, start = [], [], 1
    for group, run in groupby(groups):
        width = len(list(run))
        cells.append(
            rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(group)}}}" if group else " & " * (width - 1)
        )
        rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if group else []
        start += width
    return [_latex_row(cells), " ".join(rules)]


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(text: str) -> str:
    """Escaped, with a real minus before a number, and the spread of a mean in small type."""
    text = latex_escape(re.sub(r"(?<![\w.])-(?=\d)", "−", text.replace("\n", " ")))
    text = re.sub(r"^\[", "{[}", text)  # after a line's end it would be taken for a length
    return re.sub(r" \$\\pm\$ ([\d.]+)", r"{\\scriptsize\\,$\\pm$\\,\1}", text)


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
