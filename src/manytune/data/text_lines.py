"""The lines of text files: their encodings, the marks that part the cells of a table, and what is no text at all."""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from manytune.utils.errors import DataError
from manytune.utils.text import column_shown, counted

MOST_IN_CELL = 10_000_000
"""Characters."""

SEPARATORS: Mapping[str, str] = MappingProxyType({"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"})
"""What may part the cells of a table: its word in a study file → the character."""

QUOTINGS = ("double", "none")
"""Whether a cell may stand in double quotes, or these are characters like any other."""

_MOST_IN_ROW = 4 * MOST_IN_CELL

_OTHER_FORMATS = {
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


@dataclass(frozen=True)
class Dialect:
    """How a text file holds a table; what is None is usual, or is found in its header."""

    quoting: str | None = None
    """One of `QUOTINGS`."""
    separator: str | None = None
    """The word in `SEPARATORS` for what parts the cells."""
    encoding: str | None = None
    """The encoding of the file's characters, as Python calls it; None for UTF-8."""

    def is_quoted(self, name: str, delimiter: str) -> bool:
        """Whether cells may stand in quotes: usually not where tabs part the cells, unless the file is called .csv."""
        plain = delimiter == "\t" and Path(name).suffix.lower() in (".tsv", ".txt")
        return (self.quoting or ("none" if plain else "double")) == "double"


@dataclass
class FileFacts:
    """How the lines of a file became rows."""

    rows: int = 0
    lines: int = 0
    blank: int = 0  # lines without any character, which are no rows
    several: int = 0  # rows that take several lines, because a quoted cell holds line ends
    longest: tuple[int, int] = (0, 0)  # first and last line of the longest of them
    separator: str | None = None  # what parts the cells, where it is not what the file's ending says
    in_quotes: int = 0  # rows with double quotes, in a file that is read without quoting

    def notes(self, name: str) -> Iterator[str]:
        """What a reader of the file should know, in sentences."""
        if self.separator is not None:
            word = separator_word(self.separator)
            yield f"{name}: a {word} parts the cells, as the header shows; else give the task a separator."
        if self.several or self.blank:
            first, last = self.longest
            several = counted(self.several, "row", "takes|take")
            several = f"; {several} several lines, at most lines {first}–{last}" if first else ""
            rows, blank = counted(self.rows, "row"), counted(self.blank, "line", "is|are")
            yield f"{name}: {rows} from {counted(self.lines, 'line')}{several}; {blank} blank."
        if self.in_quotes:
            yield (
                f"{name}: cells of {counted(self.in_quotes, 'row')} stand in double quotes, which are read as part of "
                "the text. If a program added them, give the task quoting: double."
            )


@dataclass
class Lines:
    """The lines of an open file with their line ends, one after the other; undecodable bytes are surrogates."""

    name: str
    file: TextIO
    facts: FileFacts
    """Counts the lines."""
    row: list[str] = field(default_factory=list)
    """The lines since `begin`."""
    size: int = 0
    """Of these, in characters."""
    joined: bool = False
    """Whether a byte order mark stood before the first of these, as where files were joined."""
    ahead: deque[str] = field(default_factory=deque)
    """Lines that `peek` has read, and that are still to come."""

    def peek(self) -> str:
        """The first line that is not blank, which comes all the same; "" where there is none."""
        while line := self.file.readline(_MOST_IN_ROW + 1):
            self.ahead.append(line)
            if line.strip():
                break
        return line

    def __iter__(self) -> Iterator[str]:
        while line := self.ahead.popleft() if self.ahead else self.file.readline(_MOST_IN_ROW + 1):
            self.facts.lines += 1
            self.size += len(line)
            if self.size > _MOST_IN_ROW:
                raise DataError(
                    f"{self.place}: the row that begins here has more than {_MOST_IN_ROW:,} characters. "
                    "A line end, or the double quote that closes a cell, may be missing."
                )
            if self.last == 1:
                self._refuse_other_formats(line)
            if not self.row:
                self.joined = self.last > 1 and line.startswith("\ufeff")
                line = line.lstrip("\ufeff")
            self.row.append(line)
            yield line

    def begin(self) -> None:
        """A row begins with the next line."""
        self.row, self.size = [], 0

    @property
    def last(self) -> int:
        """The number of the last line that was read, from 1."""
        return self.facts.lines

    @property
    def first(self) -> int:
        """The number of the line at which the row begins."""
        return self.last - max(len(self.row) - 1, 0)

    @property
    def place(self) -> str:
        """The file, and the line at which the row begins."""
        return f"{self.name}, line {self.first}"

    @property
    def quotes(self) -> bool:
        """Whether a double quote stands anywhere in the row."""
        return any('"' in line for line in self.row)

    def _refuse_other_formats(self, line: str) -> None:
        start = line[:5].encode("utf-8", "surrogateescape")
        kind = next((kind for first, kind in _OTHER_FORMATS.items() if start.startswith(first)), None)
        if kind is None and "\0" in line:
            kind = "UTF-16 or UTF-32 without a byte order mark, or no text"
        if kind is not None:
            cure = ", or give the task encoding: utf-16" if kind == "UTF-16" else ""
            raise DataError(
                f"{self.name} is {kind}, and cannot be read as it is. Save it as plain text in UTF-8{cure}."
            )


@contextmanager
def open_lines(
    name: str, newline: str = "", facts: FileFacts | None = None, encoding: str | None = None
) -> Iterator[Lines]:
    r"""Open a file, or `-`, as lines; its encoding is UTF-8, with or without a byte order mark, if none is given.

    `newline` is what ends a line, as for `open`: `""` for \n, \r and \r\n. An OSError says that the file cannot be
    read, a DataError that it is no text, or that a row is far too long.
    """
    facts = facts or FileFacts()
    # Of UTF-8, bytes that are none are refused where they are in a cell that is needed.
    form: Any = {"encoding": encoding or "utf-8", "errors": "strict" if encoding else "surrogateescape"}
    if name != "-":
        with open(name, newline=newline, **form) as file:
            try:
                yield Lines(name, file, facts)
            except UnicodeError as error:
                raise DataError(f"{name} is not {encoding}: {error}. Give the encoding that it was saved in.") from None
    elif sys.stdin is None:
        raise DataError("-: there is no standard input")
    elif isinstance(sys.stdin, io.TextIOWrapper):
        # Standard input was opened in the locale's encoding, and with line ends changed: its bytes are read anew.
        stream = io.TextIOWrapper(sys.stdin.buffer, newline=newline, **form)
        try:
            yield Lines(name, stream, facts)
        finally:
            stream.detach()  # else standard input would be closed with it
    else:
        yield Lines(name, io.StringIO(sys.stdin.read(), newline=newline), facts)


def separator_word(value: Any) -> Any:
    """The word in `SEPARATORS` of a character that parts cells; any other value as it is."""
    return next((word for word, mark in SEPARATORS.items() if mark == value), value)


def check_encoding(name: str) -> str:
    """The name, if Python knows an encoding of text by it; else a ValueError."""
    try:
        "".encode(name)  # not every codec is of text
    except LookupError:
        raise ValueError("it must be the name of an encoding of text, such as cp1252, latin-1 or utf-16") from None
    return name


def separator_in(header: str, usual: str) -> str:
    """What parts the cells of a header line: `usual` if it is there, else the mark that is there most often."""
    bare = re.sub('"[^"]*"', "", header)
    if usual in bare:
        return usual
    marks = [mark for mark in SEPARATORS.values() if mark in bare]
    return max(marks, key=bare.count, default=usual)


def encoding_of(path: Path) -> str | None:
    """The encoding of a text file that is not in UTF-8, None where it is: UTF-16 by its mark, else that of Windows.

    What is not text at all is for `open_lines` to say. An OSError says that the file cannot be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        start = file.read(4)
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and start[2:] != b"\0\0":
            return "utf-16"
        file.seek(0)
        try:
            while part := file.read(1 << 20):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            file.seek(0)
            undefined = frozenset(b"\x81\x8d\x8f\x90\x9d")  # in Windows' encoding
            parts = iter(lambda: file.read(1 << 20), b"")
            return "latin-1" if any(undefined.intersection(part) for part in parts) else "cp1252"
    return None


def is_decoded(line: str) -> bool:
    """Whether a line of a file in UTF-8 has no byte that is not."""
    return line.isascii() or _UNDECODABLE.search(line) is None


def refuse_undecodable(text: str, place: str, column: str) -> None:
    """Refuse, by a DataError, a cell that has a byte which is not UTF-8, as `open_lines` decodes it."""
    if not text.isascii() and (found := _UNDECODABLE.search(text)):
        raise DataError(
            f"{place}: byte 0x{ord(found[0]) - 0xDC00:02x} in {column_shown(column)} is not valid UTF-8, but may be "
            "Windows-1252 or Latin-1. Save the file as UTF-8, or give its encoding: encoding: cp1252 in the task, "
            "--encoding cp1252 for a command."
        )
