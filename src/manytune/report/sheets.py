"""Tables as data: the page, CSV, LaTeX and Markdown show the same values."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from types import MappingProxyType
from typing import Any

from rich.filesize import decimal

from manytune.utils.text import duration, markdown, printable, short_number

Cell = str | int | float | None
"""A value as it is; None is unknown."""

UNKNOWN = "–"

_TEX_COLUMNS, _TEX_CHARACTERS = 8, 80  # what fits into a line of a page of text


@dataclass(frozen=True)
class Column:
    """One column of a sheet."""

    name: str  # header in the CSV file
    title: str  # header on the page and in LaTeX
    kind: str = "text"  # one of FORMATS: how a value is shown
    extra: bool = False  # in the CSV file, and on the page behind "all columns"

    @property
    def is_number(self) -> bool:
        """Whether its cells are aligned to the right."""
        return self.kind not in ("text", "label")


@dataclass(frozen=True)
class Sheet:
    """A table: values, and how they are shown."""

    name: str  # stem of its files
    title: str
    caption: str  # what the reader should know of the figures
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: Mapping[str, str] = field(default_factory=dict)  # label of a configuration → what is shown for it

    @property
    def shown_columns(self) -> tuple[Column, ...]:
        """The columns of LaTeX and Markdown, which the page shows at first."""
        return tuple(column for column in self.page_columns if not column.extra)

    @property
    def page_columns(self) -> tuple[Column, ...]:
        """All columns that the page can show: a deviation stands behind the mean before it."""
        return tuple(column for column in self.columns if column.kind != "deviation")

    def shown(self) -> list[list[str]]:
        """Every cell of `page_columns` as text."""
        return [self._shown(row) for row in self.rows]

    def shown_cells(self) -> list[list[str]]:
        """Every cell of `shown_columns` as text."""
        kept = [not column.extra for column in self.page_columns]
        return [list(compress(row, kept)) for row in self.shown()]

    def _shown(self, row: Sequence[Cell]) -> list[str]:
        texts: list[str] = []
        before: Cell = None
        for cell, column in zip(row, self.columns, strict=True):
            if column.kind == "deviation":
                texts[-1] = measured(before, cell) if isinstance(cell, int | float) else texts[-1]
            else:
                name = self.names.get(str(cell)) if column.kind == "label" else None
                texts.append(name or show(cell, column.kind))
            before = cell
        return texts


Field = tuple[str, str, str, Callable[[Any], Cell]]
"""A column and its cells: name, title and kind of the `Column`, and what a row's item has there."""


def sheet_of(
    name: str,
    title: str,
    caption: str,
    fields: Sequence[Field],
    items: Iterable[Any],
    names: Mapping[str, str] = MappingProxyType({}),
    more: Sequence[Field] = (),
) -> Sheet:
    """A sheet with a row for each item; the columns of `more` are extra ones.

    >>> sheet_of("words", "Words", "", [("word", "word", "text", str), ("length", "letters", "count", len)], ["a"]).rows
    (('a', 1),)
    """
    rows = tuple(tuple(value(item) for *_, value in (*fields, *more)) for item in items)
    columns = tuple(
        Column(header, heading, kind, extra)
        for extra, group in ((False, fields), (True, more))
        for header, heading, kind, _ in group
    )
    return Sheet(name, title, caption, columns, rows, names)


def show(cell: Cell, kind: str) -> str:
    """A value as text."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return UNKNOWN
    return printable(str(cell), keep="\n\t\u2028\u2029") if isinstance(cell, str) else FORMATS[kind](cell)


def measured(mean: Cell, deviation: Cell) -> str:
    """A mean ± a standard deviation, in as many decimals as show two digits of the latter, but at most three.

    >>> measured(0.59712, 0.0123), measured(0.59712, 0.1234), measured(0.59712, None), measured(1234.5, 56.7)
    ('0.597 ± 0.012', '0.60 ± 0.12', '0.597', '1234 ± 57')
    """
    if not isinstance(mean, int | float) or not isinstance(deviation, int | float):
        return show(mean, "score")
    if not math.isfinite(mean) or not math.isfinite(deviation):
        return show(mean, "score")
    rounded = float(f"{abs(deviation):.1e}")  # 0.0999 is 0.10, whose first digit is another one
    decimals = 3 if rounded == 0 else min(3, max(0, 1 - math.floor(math.log10(rounded))))
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference with its sign: +0.012, −0.004; one that rounds to nothing shows its first digit."""
    text = f"{abs(value):.3f}" if abs(value) >= 0.0005 or value == 0 else f"{abs(value):.1g}"
    return "0" if value == 0 else f"{'+' if value > 0 else '−'}{text}"


def interval(low: float | None, high: float | None) -> str:
    """Bounds of a difference: "−0.004 to +0.012"."""
    return UNKNOWN if low is None or high is None else f"{signed(low)} to {signed(high)}"


def drawn(value: float) -> str:
    """A value that was drawn from a range, in three digits: 3.12e-4, 0.0512, 12."""
    return short_number(float(f"{value:.3g}")) if 0 < abs(value) < 0.01 else f"{value:.3g}"


FORMATS: Mapping[str, Callable[[int | float], str]] = {
    "text": str,
    "label": str,
    "deviation": lambda value: f"{value:.3f}",
    "score": lambda value: f"{value:.3f}".replace("-", "−"),
    "difference": signed,
    "count": lambda value: f"{value:,.0f}",
    "tally": lambda value: f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}",
    "share": lambda value: f"{100 * value:.2f} %",
    "margin": lambda value: f"{value:.3g}",
    "percent": lambda value: f"{100 * value:.0f} %",
    "p": lambda value: "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}",
    "effect": lambda value: f"{value:.1f}".replace("-", "−"),
    "seconds": lambda value: f"{value:.1f} s" if value < 100 else duration(int(value)),
    "bytes": lambda value: decimal(int(value)),
    "rate": short_number,
    "drawn": drawn,
}
"""Kind of a column → how its numbers are shown. A `label` is a configuration's, shown as its name; a `deviation` is
shown behind the number before it."""


def to_csv(sheet: Sheet) -> str:
    """The values at full precision, one header line; unknown is an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; a number never does. Control
    characters and those that change the direction of text are written as escapes.
    """
    file = io.StringIO()
    rows = ([column.name for column in sheet.columns], *sheet.rows)
    csv.writer(file, lineterminator="\n").writerows(map(_csv_cell, row) for row in rows)
    return file.getvalue()


_FORMULA = frozenset("=+-@＝＋－＠")


def _csv_cell(cell: Cell) -> Cell:
    if isinstance(cell, str):
        text = printable(cell.replace("\r", " "), keep="\n\t")  # a bare \r ends the line for some readers
        return f"'{text}" if text.lstrip()[:1] in _FORMULA or text[:1] == "\t" else text
    return "" if cell is None or (isinstance(cell, float) and not math.isfinite(cell)) else cell


def to_tex(sheet: Sheet) -> str:
    r"""A `table` with booktabs rules; one with many columns is scaled to the line by graphicx."""
    alignment = "".join("r" if column.is_number else "l" for column in sheet.shown_columns)
    shown = sheet.shown_cells()
    widest = max((sum(map(len, row)) for row in shown), default=0)
    scaled = len(sheet.shown_columns) > _TEX_COLUMNS or widest > _TEX_CHARACTERS
    lines = [
        rf"% needs \usepackage{{booktabs{',graphicx' if scaled else ''}}}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex(sheet.title)}. {tex(sheet.caption)}}}",
        rf"\label{{tab:{re.sub(r'[^a-z0-9-]+', '-', sheet.name.lower())}}}",
        *([r"\resizebox{\linewidth}{!}{%"] if scaled else []),
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _tex_row([column.title for column in sheet.shown_columns]),
        r"\midrule",
        *(_tex_row(row) for row in shown),
        r"\bottomrule",
        r"\end{tabular}" + ("}" if scaled else ""),
        r"\end{table}",
    ]
    if any(ord(sign) > _LATIN and sign not in _MARKS for line in lines for sign in line):
        lines[0] += ", and LuaLaTeX or XeLaTeX with a font for its letters: pdfLaTeX lacks some of them"
    return "\n".join(lines) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(tex, cells)) + r" \\"


_TEX = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    # After \\ and \midrule, [ and * would be their arguments; ?` is one sign.
    **{sign: f"{{{sign}}}" for sign in "[]*`"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl would need T1 fonts
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "α": r"$\alpha$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "⁄": "/",
    "…": r"\ldots{}",
}
_LATIN = 0x17F  # the last letter of Latin Extended-A: pdfLaTeX has letters up to there, typographic marks, and no more
_MARKS = "–—‘’‚“”„†‡•…‰‹›€™"


def tex(text: str) -> str:
    """Text with everything escaped that LaTeX would take for a command."""
    return "".join(_TEX.get(sign, sign if sign.isprintable() else "?") for sign in " ".join(text.split()))


def to_markdown(sheet: Sheet) -> str:
    """A table of GitHub's Markdown."""
    head = " | ".join(markdown(column.title) for column in sheet.shown_columns)
    rule = " | ".join("---:" if column.is_number else "---" for column in sheet.shown_columns)
    rows = [" | ".join(map(markdown, row)) for row in sheet.shown_cells()]
    return "\n".join(f"| {line} |" for line in (head, rule, *rows)) + "\n"
