"""Rows of a split before any check, and files of rows, read and written a part at a time: they may outgrow memory.

CSV and TSV with a header line, JSONL, Parquet; `-` is standard input, or output, in CSV.
"""

from __future__ import annotations

import csv
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from manytune.errors import DataError
from manytune.files import check_output, is_stream, open_stream, output_file, writing
from manytune.json_text import parse_json

__all__ = [
    "RawRows",
    "Row",
    "RowWriter",
    "check_format",
    "no_column",
    "output_format",
    "read_parts",
    "read_placed",
    "writer",
]

Row = dict[str, Any]
"""Column → value."""


class RawRows(NamedTuple):
    """The rows of a split, before any check."""

    texts: Sequence[tuple[Any, ...]]
    """N rows of one or two cells that hold sentences."""
    labels: Sequence[object]
    """N cells that hold labels; None where there is none."""
    source: str
    """A path, `hub:nyu-mll/glue@<revision>`, or `builtin`."""
    place: Callable[[int], str]
    """Row index to the words that let a user find the row."""
    left_out: tuple[str, ...] = ()
    """Which rows are not among these, and why."""


_PART = 1024
"""Rows at a time."""


class _Csv(csv.excel):
    lineterminator = "\n"


class _Tsv(csv.Dialect):
    """Tabs and line ends part cells, and a double quote is a character like any other, as in GLUE's files."""

    delimiter = "\t"
    quoting = csv.QUOTE_NONE
    quotechar = None
    lineterminator = "\n"


_DIALECTS: dict[str, type[csv.Dialect]] = {".csv": _Csv, ".tsv": _Tsv}
_FORMATS = (*_DIALECTS, ".jsonl", ".parquet")


class RowWriter(Protocol):
    """Takes rows, in order."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write some rows; all have the same columns."""


def check_format(name: str) -> str:
    """The format of a file, by its ending.

    Raises:
        DataError: It has none that can be read and written.
    """
    suffix = ".csv" if name == "-" else Path(name).suffix.lower()
    if suffix not in _FORMATS:
        raise DataError(f"{name}: a file of rows ends in {', '.join(_FORMATS)}, or is -, which is CSV")
    return suffix


def read_parts(name: str, columns: Sequence[str]) -> Iterator[list[Row]]:
    """The rows of a file, some at a time.

    Args:
        name: The file, or `-`.
        columns: Those that it must have; others are handed on.

    Raises:
        DataError: As for `read_placed`.
    """
    part: list[Row] = []
    for _, row in read_placed(name, columns):
        part.append(row)
        if len(part) == _PART:
            yield part
            part = []
    if part:
        yield part


def read_placed(name: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with the words that let a user find it.

    Args:
        name: The file, or `-`.
        columns: Those that it must have; others are handed on.

    Raises:
        DataError: It cannot be read, a row is malformed, or a column is missing.
    """
    suffix = check_format(name)
    if suffix in _DIALECTS:
        rows = _table_rows(name, _DIALECTS[suffix])
    else:
        rows = _json_rows(name) if suffix == ".jsonl" else _parquet_rows(name)
    try:
        for place, row in rows:
            missing = next((column for column in columns if column not in row), None)
            if missing is not None:
                raise DataError(f"{place}: {no_column(missing, row)}")
            yield place, row
    except UnicodeDecodeError as error:
        raise DataError(f"{_undecodable(name)} is not UTF-8: {error.reason}. Save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def _undecodable(name: str) -> str:
    """The place of the first line that is not UTF-8."""
    if name != "-":
        with open(name, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return f"{name}, line {number},"
    return name


@contextmanager
def writer(name: str) -> Iterator[RowWriter]:
    """Write rows to `-`, a device or a named pipe as they come, or to a file, which is there when the context ends
    without an error, and else as it was before.

    Raises:
        ManytuneError: As for `output_format`.
    """
    suffix, path = output_format(name), Path(name)
    if name == "-":
        yield _TableWriter(sys.stdout, _Csv)
        return
    if is_stream(path):
        with writing(path), open_stream(path) as file:
            yield _text_writer(file, suffix)
        return
    with output_file(path) as temporary:
        if suffix == ".parquet":
            with _ParquetWriter(temporary) as rows:
                yield rows
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                yield _text_writer(file, suffix)


def output_format(name: str, source: str = "-") -> str:
    """The format that rows are written in: a file's by its ending, else CSV.

    Args:
        name: What is to be written: a file, a device, a named pipe, or `-`.
        source: The file that the rows are read from.

    Raises:
        DataError: It has no format that can be written there, or it is the source itself.
        StoreError: It cannot be written.
    """
    path = Path(name)
    if name == "-" or (is_stream(path) and path.suffix.lower() not in _FORMATS):
        return ".csv"
    suffix = check_format(name)
    check_output(path, streams=True)
    if is_stream(path) and suffix == ".parquet":
        raise DataError(
            f"{name}: Parquet needs a file, and cannot go through a pipe or to a device; give .csv or .jsonl"
        )
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise DataError(f"{name} is the file that the rows are read from; give another name")
    return suffix


def _text_writer(file: TextIO, suffix: str) -> RowWriter:
    return _JsonWriter(file) if suffix == ".jsonl" else _TableWriter(file, _DIALECTS[suffix])


def no_column(missing: str, found: Iterable[str]) -> str:
    """Say that a column is missing, and which one may be meant."""
    names = {str(name).lower(): str(name) for name in found}
    near = difflib.get_close_matches(missing.lower(), names, n=1, cutoff=0.5)
    hint = f" Is it {names[near[0]]!r}?" if near else ""
    return f"no column {missing!r}; the columns found are: {', '.join(names.values()) or 'none'}.{hint}"


def _text_file(name: str) -> TextIO:
    if name == "-":
        return sys.stdin
    return open(name, encoding="utf-8-sig", newline="")


def _table_rows(name: str, dialect: type[csv.Dialect]) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(2**31 - 1)
    with _text_file(name) as file:
        lines = csv.reader(file, dialect)
        try:
            header = next(lines, None)
            if header is None:
                raise DataError(f"{name} is empty; its first line must name the columns")
            if len(set(header)) < len(header):
                raise DataError(f"{name}: a column is there twice: {', '.join(header)}")
            for cells in lines:
                place = f"{name}, line {lines.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(f"{place}: {len(cells)} cells, but the header names {len(header)} columns")
                yield place, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"{name}, line {lines.line_num}: {error}") from error


def _json_rows(name: str) -> Iterator[tuple[str, Row]]:
    with _text_file(name) as file:
        for number, line in enumerate(file, 1):
            place = f"{name}, line {number}"
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise DataError(f"{place}: no JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f'{place}: a line must hold an object, such as {{"sentence": "…"}}')
            yield place, row


def _parquet_rows(name: str) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(name) as file:
            number = 0
            for batch in file.iter_batches(_PART):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}, row {number}", row
    except pa.ArrowException as error:
        raise DataError(f"{name} cannot be read: {error}") from error


class _TableWriter:
    def __init__(self, file: TextIO, dialect: type[csv.Dialect]) -> None:
        self._file = file
        self._dialect = dialect
        self._table: Any = None

    def write(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        if self._dialect is _Tsv:
            rows = [{name: _in_a_cell(value) for name, value in row.items()} for row in rows]
        if self._table is None:
            self._table = csv.DictWriter(self._file, list(rows[0]), dialect=self._dialect, extrasaction="ignore")
            self._table.writeheader()
        self._table.writerows(rows)


def _in_a_cell(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) and any(c in value for c in "\t\r\n") else value


class _JsonWriter:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, rows: Sequence[Row]) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


class _ParquetWriter:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def __enter__(self) -> _ParquetWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is None and kind is None:  # no rows: still a file of its format
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({}), self._path)
        if self._file is not None:
            self._file.close()

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not rows:
            return
        table = pa.Table.from_pylist(list(rows), schema=None if self._file is None else self._file.schema)
        if self._file is None:
            self._file = pq.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)
