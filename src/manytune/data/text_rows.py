"""Rows of text files: CSV, TSV and JSONL, with the line of each row; refused where cells cannot be told apart."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

from manytune.utils.errors import DataError
from manytune.utils.json_text import parse_json
from manytune.utils.text import column_shown, no_column

__all__ = [
    "HEADER_AGAIN",
    "MOST_IN_CELL",
    "SURROGATE",
    "FileFacts",
    "Lines",
    "Placed",
    "json_rows",
    "open_lines",
    "open_table",
    "refuse_twice",
    "refuse_undecodable",
]

HEADER_AGAIN = "the header is there once more, as where files were joined; remove this line"
"""What is wrong with such a line."""

MOST_IN_CELL = 10_000_000
"""Characters."""

_MOST_IN_ROW = 4 * MOST_IN_CELL
_MOST_SEEN = 1000  # values of a column that are remembered, and doubtful rows
_SHORT = 200  # characters of a value that is remembered

_NO_TEXT = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed by gzip",
    b"(\xb5/\xfd": "compressed by zstd",
    b"\xfd7zXZ": "compressed by xz",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PAR1": "Parquet",
}
"""First bytes of a file → what it is."""

_UNDECODABLE = re.compile("[\udc80-\udcff]")  # a byte that is no UTF-8, by the error handler surrogateescape
SURROGATE = re.compile("[\ud800-\udfff]")
"""What JSON can hold and UTF-8 cannot; and what `open_lines` makes of bytes that are not UTF-8."""


class Placed(NamedTuple):
    """A row, the words that let a user find it, and its size in characters."""

    place: str
    row: dict[str, Any]
    size: int


@dataclass
class FileFacts:
    """How the lines of a file became rows."""

    rows: int = 0
    lines: int = 0
    blank: int = 0
    """Lines without any character, which are no rows."""
    several: int = 0
    """Rows that take several lines, because a quoted cell holds line ends."""
    longest: tuple[int, int] = (0, 0)
    """First and last line of the longest of them."""
    in_quotes: int = 0
    """Rows of a file without quoting that would be read otherwise with it."""

    def notes(self, name: str) -> Iterator[str]:
        """What a reader of the file should know, in sentences."""
        if self.several or self.blank:
            first, last = self.longest
            several = f"; {self.several:,} take several lines each, at most lines {first}–{last}" if first else ""
            yield f"{name}: {self.rows:,} rows from {self.lines:,} lines{several}; {self.blank:,} lines are blank."
        if self.in_quotes:
            yield (
                f"{name}: cells of {self.in_quotes:,} rows stand in double quotes, which are read as part of the text. "
                "If a program added them, give the task quoting: double."
            )


class Lines:
    """The lines of a file with their line ends, one after the other.

    Attributes:
        number: Of the last line, from 1.
        row: The lines since `begin`.
        size: Of these, in characters.
        joined: Whether a byte order mark stood before the first of these.
    """

    def __init__(self, name: str, file: TextIO) -> None:
        """Read from an open file whose undecodable bytes are surrogates."""
        self.number = 0
        self.row: list[str] = []
        self.joined = False
        self._name = name
        self._file = file
        self.size = 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_MOST_IN_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.size += len(line)
        if self.size > _MOST_IN_ROW:
            raise DataError(
                f"{self.place}: the row that begins here has more than {_MOST_IN_ROW:,} characters. "
                "A line end, or the double quote that closes a cell, may be missing."
            )
        if self.number == 1:
            self._refuse_no_text(line)
        if not self.row:
            self.joined = self.number > 1 and line.startswith("\ufeff")
            line = line.lstrip("\ufeff")
        self.row.append(line)
        return line

    def begin(self) -> None:
        """A row begins with the next line."""
        self.row, self.size = [], 0

    @property
    def first(self) -> int:
        """The number of the line at which the row begins."""
        return self.number - max(len(self.row) - 1, 0)

    @property
    def place(self) -> str:
        """The file, and the line at which the row begins."""
        return f"{self._name}, line {self.first}"

    def _refuse_no_text(self, line: str) -> None:
        start = line[:5].encode("utf-8", "surrogateescape")
        kind = next((kind for first, kind in _NO_TEXT.items() if start.startswith(first)), None)
        if kind is None and "\0" in line:
            kind = "UTF-16 or UTF-32 without a byte order mark, or no text"
        if kind is not None:
            raise DataError(f"{self._name} is {kind}, and cannot be read as it is. Save it as plain text in UTF-8.")


@contextmanager
def open_lines(name: str, newline: str = "") -> Iterator[Lines]:
    r"""Open a file, or `-`, as lines; its encoding is UTF-8, with or without a byte order mark.

    Args:
        name: The file.
        newline: What ends a line, as for `open`: `""` for \n, \r and \r\n.

    Raises:
        OSError: It cannot be read.
        DataError: It is no text, or a row is far too long.
    """
    if name != "-":
        with open(name, encoding="utf-8", errors="surrogateescape", newline=newline) as file:
            yield Lines(name, file)
    elif sys.stdin is None:
        raise DataError("-: there is no standard input")
    elif isinstance(sys.stdin, io.TextIOWrapper):
        stream = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="surrogateescape", newline=newline)
        try:
            yield Lines(name, stream)
        finally:
            stream.detach()  # else standard input would be closed with it
    else:
        yield Lines(name, io.StringIO(sys.stdin.read(), newline=newline))


@contextmanager
def open_table(
    name: str, delimiter: str, columns: Sequence[str], *, quoted: bool, every: bool, facts: FileFacts
) -> Iterator[tuple[tuple[str, ...], Iterator[Placed]]]:
    """Open a CSV or TSV file with a header.

    Args:
        name: The file, or `-`.
        delimiter: The character between cells.
        columns: Those that it must have.
        quoted: Whether a cell may stand in double quotes; if not, they are characters like any other.
        every: Whether rows are to have the others too.
        facts: Gets counts, whole when the last row is read.

    Returns:
        The names of the rows' columns, and the rows.

    Raises:
        DataError: There is no header, it names a column twice, or lacks one.
    """
    csv.field_size_limit(MOST_IN_CELL)
    with open_lines(name) as lines:
        records = _records(lines, delimiter, quoted, facts)
        header = next(records, None)
        if header is not None and (separator := re.fullmatch(r"sep=(.)", lines.row[0].strip("\r\n"))):
            if separator[1] != delimiter:
                raise DataError(_other_delimiter(lines.place, separator[1], delimiter))
            header = next(records, None)
        if header is None:
            raise DataError(f"{name} is empty; its first line must name the columns")
        refuse_twice(name, header, None if every else columns)
        for column in columns:
            if column not in header:
                other = next((mark for mark in "\t;|," if mark in header[0]), None) if len(header) == 1 else None
                raise DataError(
                    _other_delimiter(lines.place, other, delimiter)
                    if other is not None
                    else f"{lines.place}: {no_column(column, header)}"
                )
        names = tuple(header if every else columns)
        yield names, _table_rows(lines, records, header, names, columns, delimiter, quoted, facts)


def _other_delimiter(place: str, found: str, wanted: str) -> str:
    marks = {"\t": "tabs", ",": "commas"}
    cure = {"\t": "Name the file .tsv, or save", ",": "Name the file .csv, or save"}.get(found, "Save")
    return f"{place}: cells are parted by {marks.get(found, repr(found))}. {cure} it with {marks[wanted]} between."


def _records(lines: Lines, delimiter: str, quoted: bool, facts: FileFacts) -> Iterator[list[str]]:
    """The cells of each row; blank lines are counted and left out."""
    if quoted:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, quotechar=None, strict=True)
    while True:
        lines.begin()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(_malformed(lines, str(error))) from error
        facts.lines = lines.number
        if cells is None:
            return
        if cells:
            yield cells
        else:
            facts.blank += 1


_NO_QUOTING = (
    "If the quotes of this file are part of its text, read it without quoting: quoting: none in the task, "
    "--quoting none for predict."
)


def _malformed(lines: Lines, error: str) -> str:
    if "field limit" in error:
        return f"{lines.place}: a cell has more than {MOST_IN_CELL:,} characters"
    if "expected after" not in error and "unexpected end" not in error:
        return f"{lines.place}: {error}"
    if any('\\"' in line for line in lines.row):
        what = 'it has \\", but inside a quoted cell a double quote is written twice: "".'
    elif "unexpected end" in error:
        what = "the double quote that opens a cell here is never closed."
    else:
        what = (
            f"the double quote that opens a cell here ends on line {lines.number} with text after it. "
            'Inside a quoted cell a double quote is written twice: "".'
        )
    return f"{lines.place}: {what} {_NO_QUOTING}"


def _table_rows(
    lines: Lines,
    records: Iterator[list[str]],
    header: Sequence[str],
    names: Sequence[str],
    needed: Sequence[str],
    delimiter: str,
    quoted: bool,
    facts: FileFacts,
) -> Iterator[Placed]:
    positions = {name: index for index, name in enumerate(header)}
    at = [positions[name] for name in names]
    check = _QuoteCheck(lines, delimiter, len(header))
    consistent = True
    for cells in records:
        place = lines.place
        if len(cells) != len(header):
            raise DataError(
                f"{place}: {len(cells)} cells, but the header names {len(header)} columns{_hint(lines, quoted)}"
            )
        if cells == header and (len(header) > 1 or lines.joined):
            raise DataError(f"{place}: {HEADER_AGAIN}")
        if quoted:
            check.row(cells)
        elif any('"' in cell for cell in cells):
            consistent = consistent and all(re.fullmatch('[^"]*|"([^"]|"")*"', cell) for cell in cells)
            facts.in_quotes += 1
        facts.rows += 1
        if len(lines.row) > 1:
            facts.several += 1
            facts.longest = max(facts.longest, (lines.first, lines.number), key=lambda own: own[1] - own[0])
        row = {name: cells[index] for name, index in zip(names, at, strict=True)}
        for column in needed:
            refuse_undecodable(row[column], place, column)
        yield Placed(place, row, lines.size)
    check.end()
    if not consistent:
        facts.in_quotes = 0


def _hint(lines: Lines, quoted: bool) -> str:
    if not any('"' in line for line in lines.row):
        return ""
    if quoted:
        return ". A cell that holds commas begins and ends with a double quote, without blanks around."
    return ". Quotes are part of the text here; if they hold cells together, give quoting: double."


class _Doubtful(NamedTuple):
    """A row over several lines, of which each could be a row by itself."""

    place: str
    last: int
    columns: tuple[tuple[str, ...], ...]
    """What the lines have in each column, each value once."""


class _QuoteCheck:
    """Refuses rows of which the quotes may have been meant otherwise than they are read."""

    def __init__(self, lines: Lines, delimiter: str, width: int) -> None:
        self._lines = lines
        self._delimiter = delimiter
        self._seen: list[set[str]] = [set() for _ in range(width)]
        self._doubtful: list[_Doubtful] = []

    def row(self, cells: Sequence[str]) -> None:
        """Check the row of which the lines were just read."""
        if any('"' in line for line in self._lines.row):
            self._refuse_late_quotes(cells)
        if len(self._lines.row) > 1 and (doubtful := self._rows_inside()) is not None:
            self._refuse_rows_inside(doubtful)
            if len(self._doubtful) < _MOST_SEEN:  # what later rows have may tell
                self._doubtful.append(doubtful)
        for cell, seen in zip(cells, self._seen, strict=True):
            if len(seen) < _MOST_SEEN and len(cell) <= _SHORT:
                seen.add(cell)

    def end(self) -> None:
        """Check again what only later rows could tell."""
        for doubtful in self._doubtful:
            self._refuse_rows_inside(doubtful)

    def _refuse_late_quotes(self, cells: Sequence[str]) -> None:
        for cell in cells:
            # A cell that is quoted is in the file with each of its quotes twice, and so not as it is read.
            opens_late = cell[:1] in (" ", "\t") and cell.lstrip(" \t").startswith('"')
            if opens_late and self._delimiter + cell in self._delimiter + "".join(self._lines.row):
                raise DataError(
                    f"{self._lines.place}: a blank stands before the double quote that opens a cell; remove it. "
                    + _NO_QUOTING
                )

    def _rows_inside(self) -> _Doubtful | None:
        rows = [line.rstrip("\r\n").split(self._delimiter) for line in self._lines.row if line.strip()]
        if len(rows) < 2 or len(self._seen) < 2 or any(len(cells) != len(self._seen) for cells in rows):
            return None
        columns = tuple(tuple(dict.fromkeys(column)) for column in zip(*rows, strict=True))
        kept = tuple(values if all(len(value) <= _SHORT for value in values) else () for values in columns)
        return _Doubtful(self._lines.place, self._lines.number, kept)

    def _refuse_rows_inside(self, doubtful: _Doubtful) -> None:
        """Refuse a row whose lines have numbers wherever other rows do, or, if none do, in a column what these have."""
        both = [*zip(doubtful.columns, self._seen, strict=True)]
        numbers = [_are_numbers(values) for values, seen in both if _are_numbers(seen)]
        known = any(values and all(value and value in seen for value in values) for values, seen in both)
        if all(numbers) and (numbers or known):
            raise DataError(
                f"{doubtful.place}: the double quote that opens a cell here closes on line {doubtful.last}, "
                f"and the lines between look like rows of their own. {_NO_QUOTING} If they are one cell, write "
                "the file with all cells in quotes."
            )


def _are_numbers(values: Collection[str]) -> bool:
    return bool(values) and all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value, re.I) for value in values)


def json_rows(lines: Lines, columns: Sequence[str], *, every: bool, facts: FileFacts) -> Iterator[Placed]:
    """The rows of a file that has a JSON object on each line.

    Args:
        lines: Of the file.
        columns: Those that each row must have.
        every: Whether rows are to have the others too.
        facts: Gets counts.

    Raises:
        DataError: A line is no object, lacks a column, or has one twice.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    lines.begin()
    for line in lines:
        place = lines.place
        lines.begin()
        facts.lines = lines.number
        if not line.strip():
            facts.blank += 1
            continue
        try:
            row = parse_json(line, decoder)
        except ValueError as error:
            raise DataError(f"{place}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f'{place}: a line must hold an object, such as {{"sentence": "…"}}')
        if isinstance(row, _Twice):
            refuse_twice(place, row.names, None if every else columns)
        for column in columns:
            if column not in row:
                raise DataError(f"{place}: {no_column(column, row)}")
            value = row[column]
            if isinstance(value, str):
                _refuse_unfit(value, place, column, decoded=line.isascii() or _UNDECODABLE.search(line) is None)
        facts.rows += 1
        yield Placed(place, dict(row) if every else {column: row[column] for column in columns}, len(line))


class _Twice(dict[str, Any]):
    """An object that has a key more than once."""

    names: Sequence[str] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    twice = _Twice(found)
    twice.names = [name for name, _ in pairs]
    return twice


def _refuse_unfit(value: str, place: str, column: str, *, decoded: bool) -> None:
    if len(value) > MOST_IN_CELL:
        raise DataError(f"{place}: {column_shown(column)} has more than {MOST_IN_CELL:,} characters")
    if not decoded:
        refuse_undecodable(value, place, column)
    if not value.isascii() and (found := SURROGATE.search(value)):
        raise DataError(
            f"{place}: {column_shown(column)} holds \\u{ord(found[0]):04x}, half of a surrogate pair, "
            "which is no character"
        )


def refuse_undecodable(text: str, place: str, column: str) -> None:
    """Refuse a cell that is not UTF-8.

    Args:
        text: The cell, as `open_lines` decodes it.
        place: Its row.
        column: Its column's name.

    Raises:
        DataError: It has a byte that is not UTF-8.
    """
    if not text.isascii() and (found := _UNDECODABLE.search(text)):
        raise DataError(
            f"{place}: byte 0x{ord(found[0]) - 0xDC00:02x} in {column_shown(column)} is not valid UTF-8, but may be "
            "Windows-1252 or Latin-1. Save the file as UTF-8."
        )


def refuse_twice(place: str, names: Sequence[str], columns: Collection[str] | None) -> None:
    """Refuse a column that is there more than once.

    Args:
        place: The file, for the message.
        names: Of all columns.
        columns: Those that matter; None for all.

    Raises:
        DataError: One that matters is there twice.
    """
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1 and (columns is None or name in columns)]
        if twice:
            what = f"a column is there twice: {column_shown(twice[0])}" if twice[0] else "two columns have no name"
            raise DataError(f"{place}: {what}. Rename or remove one.")
