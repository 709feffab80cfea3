"""Write rows as CSV, TSV, JSONL or Parquet, some at a time."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TextIO

from manytune.data.text_lines import SURROGATE

PART = 1024
"""Rows at a time."""

_CSV: dict[str, Any] = {"lineterminator": "\n"}
_TSV: dict[str, Any] = {**_CSV, "delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
"""In TSV a double quote is a character like any other, as in GLUE's files."""

_BREAK = re.compile(r"[\t\r\n]")
_BARE_RETURN = re.compile(r'[^,"\n]*\r[^,"\n]*')

Row = dict[str, Any]
"""Column → value."""


@dataclass(frozen=True)
class RowBatch:
    """Some rows of a file, in order."""

    rows: list[Row]
    """Of a Parquet file with the columns that were asked for, else with all."""
    columns: tuple[str, ...] | None = None
    """All columns of the file; None where another row may have others, as in JSONL."""
    batch: Any = None
    """All columns of a Parquet file, a `pyarrow.RecordBatch`; None for other files."""

    def __len__(self) -> int:
        return len(self.rows)

    def whole(self) -> list[Row]:
        """The rows with all their columns, as Python's values."""
        if self.batch is None:
            return self.rows
        columns = [map(_text_of_bytes, _python(column)) for column in self.batch.columns]
        return [dict(zip(self.batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _merged(part: RowBatch, made: Sequence[Row]) -> Iterator[Row]:
    return ({**row, **added} for row, added in zip(part.whole(), made, strict=True))


class _ColumnWriter(ABC):
    """A writer of a format in which all columns must be known at the start.

    Each row of JSONL may bring another column, so such rows wait on the disk until the context ends.
    """

    def __init__(self, folder: Path | None) -> None:
        """`folder` is where rows wait; None for the usual one of temporary files."""
        self._folder = folder
        self._spool: TextIO | None = None
        self._columns: dict[str, None] = {}
        """Of the rows that wait, in the order in which they were found."""
        self._file: Any = None
        """What the writer has opened itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self._spool is not None:
                self._write_spooled()
        finally:
            for file in (self._file, self._spool):
                if file is not None:
                    file.close()

    def write(self, part: RowBatch, made: Sequence[Row]) -> None:
        """Write some rows, with the columns that are added to each."""
        if part.columns is not None:
            self._write_part(part, part.columns, made)
            return
        if self._spool is None:
            self._spool = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self._folder)  # noqa: SIM115
        for row, added in zip(part.rows, made, strict=True):
            self._columns.update(dict.fromkeys(row))
            self._spool.write(json.dumps({**row, **added}) + "\n")

    def _spooled(self) -> Iterator[list[Row]]:
        """The rows that wait, some at a time."""
        assert self._spool is not None
        self._spool.seek(0)
        while part := [json.loads(line) for line in islice(self._spool, PART)]:
            yield part

    @abstractmethod
    def _write_part(self, part: RowBatch, columns: tuple[str, ...], made: Sequence[Row]) -> None: ...

    @abstractmethod
    def _write_spooled(self) -> None: ...


class TableWriter(_ColumnWriter):
    """Writes CSV, or TSV with `tabs`, a header first; cells are quoted where they need it."""

    def __init__(self, file: TextIO, *, tabs: bool, added: Iterable[str], folder: Path | None) -> None:
        super().__init__(folder)
        self._tabs = tabs
        self._table = csv.writer(file, **(_TSV if tabs else _CSV))
        self._quoting = self._table if tabs else csv.writer(file, **_CSV, quoting=csv.QUOTE_ALL)
        self._added = tuple(added)
        self._header: tuple[str, ...] = ()

    def _write_part(self, part: RowBatch, columns: tuple[str, ...], made: Sequence[Row]) -> None:
        self._write_rows(columns, _merged(part, made))

    def _write_spooled(self) -> None:
        for rows in self._spooled():
            self._write_rows(tuple(self._columns), rows)

    def _write_rows(self, columns: tuple[str, ...], rows: Iterable[Row]) -> None:
        if not self._header:
            self._header = (*columns, *self._added)
            self._write_row(self._header)
        for row in rows:
            self._write_row([row.get(name) for name in self._header])

    def _write_row(self, cells: Sequence[Any]) -> None:
        cells = [_json_text(cell) if isinstance(cell, (list, dict)) else cell for cell in cells]
        if self._tabs:  # a cell of TSV can hold neither tabs nor line ends
            cells = [
                " ".join(cell.split()) if isinstance(cell, str) and _BREAK.search(cell) else cell for cell in cells
            ]
        # Python's csv leaves a carriage return bare, where it would end the row.
        bare = any(isinstance(cell, str) and _BARE_RETURN.fullmatch(cell) for cell in cells)
        (self._quoting if bare else self._table).writerow(cells)


def write_json(file: TextIO, part: RowBatch, made: Sequence[Row]) -> None:
    """Write some rows, with the columns that are added to each, as JSONL."""
    for row in _merged(part, made):
        text = json.dumps(row, ensure_ascii=False, default=str)
        if SURROGATE.search(text):
            text = json.dumps(row, default=str)
        file.write(text + "\n")


class ParquetWriter(_ColumnWriter):
    """Writes Parquet: columns of a Parquet file as they are, others with types that hold all of their values."""

    def __init__(self, path: Path, added: Mapping[str, type]) -> None:
        import pyarrow as pa

        super().__init__(path.parent)
        self._path = path
        self._added = {name: pa.string() if kind is str else pa.float64() for name, kind in added.items()}

    def _write_part(self, part: RowBatch, columns: tuple[str, ...], made: Sequence[Row]) -> None:
        import pyarrow as pa

        batch = part.batch
        if batch is None:
            batch = pa.RecordBatch.from_pydict({name: _cells(part.rows, name, pa.string()) for name in columns})
        for name, kind in self._added.items():
            batch = batch.append_column(pa.field(name, kind), _cells(made, name, kind))
        self._write(batch)

    def _write(self, batch: Any) -> None:
        import pyarrow.parquet as pq

        if self._file is None:
            self._file = pq.ParquetWriter(self._path, batch.schema)
        self._file.write_batch(batch)

    def _write_spooled(self) -> None:
        import pyarrow as pa

        types: dict[str, Any] = dict.fromkeys(self._columns, pa.null())
        for rows in self._spooled():
            types = {name: _wider(kind, rows, name) for name, kind in types.items()}
        for rows in self._spooled():
            for name, kind in types.items():
                try:
                    _cells(rows, name, kind)
                except (pa.ArrowException, OverflowError):  # such as an integer that a float cannot hold
                    types[name] = None
        for rows in self._spooled():
            columns = {name: _cells(rows, name, kind) for name, kind in {**types, **self._added}.items()}
            self._write(pa.RecordBatch.from_pydict(columns))


def _wider(kind: Any, rows: Sequence[Row], name: str) -> Any:
    """A type that holds what `kind` holds and the column's values in these rows as well.

    None if there is none, or if Parquet has none for it: the column is then written as text.
    """
    import pyarrow as pa

    if kind is None:
        return None
    try:
        both = [pa.schema([("", each)]) for each in (kind, pa.array([row.get(name) for row in rows]).type)]
        wider = pa.unify_schemas(both, promote_options="permissive").field(0).type
    except (pa.ArrowException, OverflowError):
        return None
    return None if "struct<>" in str(wider) else wider


def _cells(rows: Sequence[Row], name: str, kind: Any) -> Any:
    """A column of these rows as an array of a type; None: as text."""
    import pyarrow as pa

    values = (row.get(name) for row in rows)
    return pa.array(map(_json_text, values) if kind is None else values, kind or pa.string())


def _json_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text_of_bytes(value: Any) -> Any:
    """Bytes that are UTF-8 as the text that they are, also inside of lists and mappings."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, (list, tuple)):
        return [_text_of_bytes(one) for one in value]
    return {key: _text_of_bytes(one) for key, one in value.items()} if isinstance(value, dict) else value


def _python(values: Any) -> list[Any]:
    """A column as Python's values, those that Python has none for as text."""
    import pyarrow as pa

    try:
        return list(values.to_pylist())
    except UnicodeDecodeError:
        raw = values.cast(pa.large_string()).view(pa.large_binary()).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]
    except (ValueError, OverflowError):  # such as a date beyond the year 9999
        return list(values.cast(pa.string()).to_pylist())
