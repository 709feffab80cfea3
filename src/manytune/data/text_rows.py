"""Rows of CSV, TSV and JSONL files, each with its line number; files whose cells are ambiguous are refused.

Python's own `csv` and `json` read line by line. Faster readers (pyarrow, pandas) neither say which line a row began at
nor show the text that a cell was read from, without which doubtful quotes cannot be noticed.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from manytune.data.text_lines import (
    MOST_IN_CELL,
    SEPARATORS,
    SURROGATE,
    Dialect,
    FileFacts,
    Lines,
    is_decoded,
    open_lines,
    refuse_undecodable,
    separator_in,
)
from manytune.utils.errors import DataError
from manytune.utils.text import column_shown, counted, no_column, parse_json

HEADER_AGAIN = "the header is there once more, as where files were joined; remove this line"
_MOST_SEEN = 1000  # values of a column that are remembered, and doubtful rows
_SHORT = 200  # characters of a value that is remembered


class Placed(NamedTuple):
    """A row, the words that let a user find it, and its size in characters."""

    place: str
    row: dict[str, Any]
    size: int


@contextmanager
def open_table(
    name: str, usual: str, dialect: Dialect, columns: Sequence[str], *, every: bool, facts: FileFacts
) -> Iterator[tuple[tuple[str, ...], Iterator[Placed]]]:
    """Open a CSV or TSV file with a header: the names of the rows' columns, and the rows.

    The file must have `columns`; with `every`, rows get its others too. The separator is the dialect's, else what
    Excel's own first line names (`sep=;`), else `usual` or what the header shows instead. The counts in `facts` are
    complete when the last row is read. A DataError says that there is no header, that it names a column twice, or that
    it lacks one.
    """
    csv.field_size_limit(MOST_IN_CELL)
    with open_lines(name, facts=facts, encoding=dialect.encoding) as lines:
        first = lines.peek().strip("\ufeff\r\n")
        named = re.fullmatch(r"sep=([,;\t|])", first)
        delimiter = SEPARATORS[dialect.separator] if dialect.separator else None
        if delimiter is None:
            delimiter = named[1] if named else usual if first.strip('"') in columns else separator_in(first, usual)
            facts.separator = delimiter if delimiter != usual else None
        quoted = dialect.is_quoted(name, delimiter)
        records = _records(lines, delimiter, quoted)
        header = next(records, None)
        if named:
            header = next(records, None)
        if header is None:
            raise DataError(f"{name} is empty; its first line must name the columns")
        refuse_twice(name, header, None if every else columns)
        for column in columns:
            if column not in header:
                raise DataError(
                    f"{lines.place}: {no_column(column, header)}{_other_separator(lines, column, delimiter)}"
                )
        names = tuple(header if every else columns)
        check = _QuoteCheck(lines, delimiter, [set() for _ in header]) if quoted else None
        yield names, _table_rows(lines, records, header, names, columns, check)


def _other_separator(lines: Lines, column: str, delimiter: str) -> str:
    """What to do if a column would be there with another separator."""
    for word, mark in SEPARATORS.items():
        if mark != delimiter and column in [cell.strip('" \r\n') for cell in "".join(lines.row).split(mark)]:
            return f" {_if_parted_by(word)}"
    return ""


def _if_parted_by(word: str) -> str:
    return f"If a {word} parts the cells: separator: {word} in the task, --separator {word} for a command."


def _records(lines: Lines, delimiter: str, quoted: bool) -> Iterator[list[str]]:
    """The cells of each row; blank lines are counted and left out."""
    reader = csv.reader(
        lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
    )
    while True:
        lines.begin()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{lines.place}: {_malformed(lines, str(error))}") from error
        if cells is None:
            return
        if cells:
            yield cells
        else:
            lines.facts.blank += 1


_NO_QUOTING = (
    "If the quotes of this file are part of its text, read it without quoting: quoting: none in the task, "
    "--quoting none for a command."
)


def _malformed(lines: Lines, error: str) -> str:
    if "field limit" in error:
        return f"a cell has more than {MOST_IN_CELL:,} characters"
    if "expected after" not in error and "unexpected end" not in error:
        return error
    if any('\\"' in line for line in lines.row):
        what = 'it has \\", but inside a quoted cell a double quote is written twice: "".'
    elif "unexpected end" in error:
        what = "the double quote that opens a cell here is never closed."
    else:
        what = (
            f"the double quote that opens a cell here ends on line {lines.last} with text after it. "
            'Inside a quoted cell a double quote is written twice: "".'
        )
    return f"{what} {_NO_QUOTING}"


def _table_rows(
    lines: Lines,
    records: Iterator[list[str]],
    header: list[str],
    names: Sequence[str],
    needed: Sequence[str],
    check: _QuoteCheck | None,
) -> Iterator[Placed]:
    """Rows with the columns `names`; `check` is None where double quotes are characters like any other."""
    facts = lines.facts
    positions = {name: index for index, name in enumerate(header)}
    consistent = True  # whether all cells with quotes are as a program would have quoted them
    for cells in records:
        place = lines.place
        if len(cells) != len(header):
            hint = ""
            if lines.quotes and check is not None:
                hint = ". A cell that holds commas begins and ends with a double quote, without blanks around."
            elif lines.quotes:
                hint = ". Quotes are part of the text here; if they hold cells together, give quoting: double."
            elif other := next((word for word, mark in SEPARATORS.items() if any(mark in name for name in header)), ""):
                hint = f". {_if_parted_by(other)}"
            raise DataError(
                f"{place}: {counted(len(cells), 'cell')}, but the header names {counted(len(header), 'column')}{hint}"
            )
        if cells == header and (len(header) > 1 or lines.joined):
            raise DataError(f"{place}: {HEADER_AGAIN}")
        if check is not None:
            check.row(cells)
        elif any('"' in cell for cell in cells):
            consistent = consistent and all(re.fullmatch('[^"]*|"([^"]|"")*"', cell) for cell in cells)
            facts.in_quotes += 1
        facts.rows += 1
        if len(lines.row) > 1:
            facts.several += 1
            facts.longest = max(facts.longest, (lines.first, lines.last), key=lambda lines: lines[1] - lines[0])
        row = {name: cells[positions[name]] for name in names}
        for column in needed:
            refuse_undecodable(row[column], place, column)
        yield Placed(place, row, lines.size)
    if check is not None:
        check.end()
    if not consistent:
        facts.in_quotes = 0


@dataclass
class _QuoteCheck:
    """Refuses rows whose quotes may have been meant differently from how they are read.

    A quote that is never closed takes all rows up to the next quote into one cell, without an error of the format.
    """

    lines: Lines
    delimiter: str
    seen: list[set[str]]
    """Values of each column: the short ones, up to a number."""
    doubtful: list[tuple[str, int, list[list[str]]]] = field(default_factory=list)
    """Rows over several lines, of which each could be a row by itself: place, last line, and what the lines have in
    each column, each value once."""

    def row(self, cells: Sequence[str]) -> None:
        """Check the row of which the lines were just read."""
        if self.lines.quotes:
            self._refuse_late_quotes(cells)
        if len(self.lines.row) > 1 and (columns := self._rows_inside()) is not None:
            self._refuse_rows_inside(self.lines.place, self.lines.last, columns)
            if len(self.doubtful) < _MOST_SEEN:  # it is checked again with the values of later rows
                self.doubtful.append((self.lines.place, self.lines.last, columns))
        for cell, seen in zip(cells, self.seen, strict=True):
            if len(seen) < _MOST_SEEN and len(cell) <= _SHORT:
                seen.add(cell)

    def end(self) -> None:
        """Check doubtful rows again, now that the values of later rows are known too."""
        for doubtful in self.doubtful:
            self._refuse_rows_inside(*doubtful)

    def _refuse_late_quotes(self, cells: Sequence[str]) -> None:
        for cell in cells:
            # A cell that is quoted is in the file with each of its quotes twice, and so not as it is read.
            opens_late = cell[:1] in (" ", "\t") and cell.lstrip(" \t").startswith('"')
            if opens_late and self.delimiter + cell in self.delimiter + "".join(self.lines.row):
                raise DataError(
                    f"{self.lines.place}: a blank stands before the double quote that opens a cell; remove it. "
                    + _NO_QUOTING
                )

    def _rows_inside(self) -> list[list[str]] | None:
        """What the lines have in each column if each is a row by itself; None if they cannot be."""
        rows = [line.rstrip("\r\n").split(self.delimiter) for line in self.lines.row if line.strip()]
        if len(rows) < 2 or len(self.seen) < 2 or any(len(cells) != len(self.seen) for cells in rows):
            return None
        columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
        return [values if all(len(value) <= _SHORT for value in values) else [] for values in columns]

    def _refuse_rows_inside(self, place: str, last: int, columns: Sequence[Sequence[str]]) -> None:
        """Refuse a row whose lines look like rows by themselves.

        They do if they have numbers in each column in which other rows have numbers; where there is no such column, if
        other rows have all their values of some column.
        """
        both = [*zip(columns, self.seen, strict=True)]
        numbers = [_are_numbers(values) for values, seen in both if _are_numbers(seen)]
        known = any(values and all(value and value in seen for value in values) for values, seen in both)
        if all(numbers) and (numbers or known):
            raise DataError(
                f"{place}: the double quote that opens a cell here closes on line {last}, and the lines between look "
                f"like rows of their own. {_NO_QUOTING} If they are one cell, write the file with all cells in quotes."
            )


def _are_numbers(values: Collection[str]) -> bool:
    return bool(values) and all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value, re.I) for value in values)


def json_rows(lines: Lines, columns: Sequence[str], *, every: bool) -> Iterator[Placed]:
    """The rows of a JSONL file, with `columns` or, with `every`, all; a DataError if a line cannot be such a row."""
    keys: list[str] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys[:] = [key for key, _ in pairs]  # in the end those of the whole line, as inner objects are made first
        return dict(pairs)

    decoder = json.JSONDecoder(object_pairs_hook=made)
    lines.begin()
    for line in lines:
        place = lines.place
        lines.begin()
        if not line.strip():
            lines.facts.blank += 1
            continue
        try:
            row = parse_json(line, decoder)
        except ValueError as error:
            raise DataError(f"{place}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f'{place}: a line must hold an object, such as {{"sentence": "…"}}')
        refuse_twice(place, keys, None if every else columns)
        # In a line without bytes that are not UTF-8, such a character can only come from an escape of JSON.
        decoded = is_decoded(line)
        for column in columns:
            if column not in row:
                raise DataError(f"{place}: {no_column(column, row)}")
            if not isinstance(value := row[column], str):
                continue
            if len(value) > MOST_IN_CELL:
                raise DataError(f"{place}: {column_shown(column)} has more than {MOST_IN_CELL:,} characters")
            if not decoded:
                refuse_undecodable(value, place, column)
            if not value.isascii() and (found := SURROGATE.search(value)):
                half = f"\\u{ord(found[0]):04x}, half of a surrogate pair, which is no character"
                raise DataError(f"{place}: {column_shown(column)} holds {half}")
        lines.facts.rows += 1
        yield Placed(place, row if every else {column: row[column] for column in columns}, len(line))


def refuse_twice(place: str, names: Sequence[str], columns: Collection[str] | None) -> None:
    """Refuse, by a DataError, `names` of which one of `columns`, or any where that is None, is there twice."""
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1 and (columns is None or name in columns)]
        if twice:
            what = f"a column is there twice: {column_shown(twice[0])}" if twice[0] else "two columns have no name"
            raise DataError(f"{place}: {what}. Rename or remove one.")
