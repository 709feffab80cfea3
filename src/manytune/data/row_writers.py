"""Write rows as CSV, TSV, JSONL or Parquet, some at a time."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

from manytune.data.text_rows import SURROGATE
from manytune.utils.errors import DataError

__all__ = ["PART", "Csv", "JsonWriter", "ParquetWriter", "Row", "RowBatch", "RowWriter", "TableWriter", "Tsv"]

PART = 1024
"""Rows at a time."""

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


class RowWriter(Protocol):
    """Takes rows, in order."""

    def write(self, part: RowBatch, made: Sequence[Row]) -> None:
        """Write some rows, and beside each the columns that are added to it."""


class Csv(csv.excel):
    """Cells are quoted where they need it; a line ends as on Unix."""

    lineterminator = "\n"


class Tsv(csv.Dialect):
    """Tabs separate cells, and a double quote is a character like any other, as in GLUE's files."""

    delimiter = "\t"
    quoting = csv.QUOTE_NONE
    quotechar = None
    lineterminator = "\n"


def _merged(part: RowBatch, made: Sequence[Row]) -> Iterator[Row]:
    return ({**row, **own} for row, own in zip(part.whole(), made, strict=True))


@contextmanager
def _encodable() -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        raise DataError(
            f"A cell of the input holds {error.object[error.start : error.start + 1]!a}, which {error.encoding} cannot "
            "hold. Mend it there, or write to a .jsonl file."
        ) from error


class _Spool:
    """Rows on disk until all are there, as each may bring another column."""

    def __init__(self, folder: Path | None) -> None:
        self.columns: dict[str, None] = {}
        """In the order in which they were found."""
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115 (`close` closes it)

    def add(self, part: RowBatch, made: Sequence[Row]) -> None:
        for row, own in zip(part.rows, made, strict=True):
            self.columns.update(dict.fromkeys(row))
            self._file.write(json.dumps({**row, **own}) + "\n")

    def parts(self) -> Iterator[list[Row]]:
        """All rows, some at a time."""
        self._file.seek(0)
        while part := [json.loads(line) for line in islice(self._file, PART)]:
            yield part

    def close(self) -> None:
        self._file.close()


class TableWriter:
    """Writes CSV or TSV, a header first."""

    def __init__(self, file: TextIO, dialect: type[csv.Dialect], added: Iterable[str], folder: Path | None) -> None:
        self._table = csv.writer(file, dialect)
        self._quoting = csv.writer(file, dialect, quoting=csv.QUOTE_ALL) if dialect is Csv else self._table
        self._tsv = dialect is Tsv
        self._added = tuple(added)
        self._folder = folder
        self._header: tuple[str, ...] = ()
        self._spool: _Spool | None = None

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._spool is not None:
            with closing(self._spool):
                for rows in self._spool.parts() if kind is None else ():
                    self._write(tuple(self._spool.columns), rows)

    def write(self, part: RowBatch, made: Sequence[Row]) -> None:
        """As `RowWriter.write`."""
        if part.columns is None:
            self._spool = self._spool or _Spool(self._folder)
            self._spool.add(part, made)
        else:
            self._write(part.columns, _merged(part, made))

    def _write(self, columns: tuple[str, ...], rows: Iterable[Row]) -> None:
        with _encodable():
            if not self._header:
                self._header = (*columns, *self._added)
                self._write_row(self._header)
            for row in rows:
                self._write_row([row.get(name) for name in self._header])

    def _write_row(self, cells: Sequence[Any]) -> None:
        cells = [_json_text(cell) if isinstance(cell, (list, dict)) else cell for cell in cells]
        if self._tsv:
            cells = [_in_a_cell(cell) for cell in cells]
        # Python's csv leaves a carriage return bare, where it would end the row.
        bare = any(isinstance(cell, str) and _BARE_RETURN.fullmatch(cell) for cell in cells)
        (self._quoting if bare else self._table).writerow(cells)


def _in_a_cell(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) and any(c in value for c in "\t\r\n") else value


class JsonWriter:
    """Writes JSONL."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, part: RowBatch, made: Sequence[Row]) -> None:
        """As `RowWriter.write`."""
        for row in _merged(part, made):
            text = json.dumps(row, ensure_ascii=False, default=str)
            if SURROGATE.search(text):
                text = json.dumps(row, default=str)
            self._file.write(text + "\n")


class ParquetWriter:
    """Writes Parquet: columns of a Parquet file as they are, others with types that hold all of their values."""

    def __init__(self, path: Path, added: Mapping[str, type]) -> None:
        import pyarrow as pa

        self._path = path
        self._added = {name: pa.string() if kind is str else pa.float64() for name, kind in added.items()}
        self._file: Any = None
        self._spool: _Spool | None = None
        self._types: dict[str, Any] = {}
        """Type of each spooled column; None where its values have none in common, and are written as text."""

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self._spool is not None:
                self._unspool(self._spool)
        finally:
            if self._spool is not None:
                self._spool.close()
            if self._file is not None:
                self._file.close()

    def write(self, part: RowBatch, made: Sequence[Row]) -> None:
        """As `RowWriter.write`."""
        import pyarrow as pa

        with _encodable():
            if part.columns is None:
                self._spool = self._spool or _Spool(self._path.parent)
                self._spool.add(part, made)
                self._widen(part.rows)
                return
            batch = part.batch
            if batch is None:
                cells = [pa.array([row[name] for row in part.rows], pa.string()) for name in part.columns]
                batch = pa.RecordBatch.from_arrays(cells, names=list(part.columns))
            for name, kind in self._added.items():
                batch = batch.append_column(pa.field(name, kind), pa.array([row[name] for row in made], kind))
            self._write(batch)

    def _write(self, batch: Any) -> None:
        import pyarrow.parquet as pq

        if self._file is None:
            self._file = pq.ParquetWriter(self._path, batch.schema)
        self._file.write_batch(batch)

    def _widen(self, rows: Sequence[Row]) -> None:
        """Find types that hold the values of these rows as well."""
        import pyarrow as pa

        for name in dict.fromkeys(name for row in rows for name in row):
            known = self._types.get(name, pa.null())
            try:
                new = pa.array([row.get(name) for row in rows]).type
                both = [pa.schema([("", kind)]) for kind in (known, new) if kind is not None]
                unified = pa.unify_schemas(both, promote_options="permissive").field(0).type
                self._types[name] = None if known is None else unified
            except (pa.ArrowException, OverflowError):
                self._types[name] = None

    def _unspool(self, spool: _Spool) -> None:
        """Write the spooled rows; a column whose values turn out not to fit its type is written as text."""
        import pyarrow as pa

        types = {name: None if "struct<>" in str(kind) else kind for name, kind in self._types.items()}
        types |= self._added
        for rows in spool.parts():
            columns = {}
            for name, kind in types.items():
                values = [row.get(name) for row in rows]
                try:
                    columns[name] = pa.array(
                        values if kind is not None else map(_json_text, values), kind or pa.string()
                    )
                except pa.ArrowException:  # such as an integer that a float cannot hold
                    self._types[name] = None
                    if self._file is not None:
                        self._file.close()
                        self._file = None
                    return self._unspool(spool)
            self._write(pa.RecordBatch.from_pydict(columns))
        return None


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
