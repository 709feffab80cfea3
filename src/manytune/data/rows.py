"""Rows of a split before any check, and files of rows, which may be larger than memory: read and written in parts.

CSV, TSV and other tables with a header line, JSONL, Parquet; `-` is standard input, or output, in CSV.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from manytune.data.row_writers import PART, ParquetWriter, Row, RowBatch, TableWriter, write_json
from manytune.data.text_lines import MOST_IN_CELL, Dialect, FileFacts, open_lines
from manytune.data.text_rows import Placed, json_rows, open_table, refuse_twice
from manytune.utils.errors import DataError
from manytune.utils.extras import require
from manytune.utils.files import check_output, is_stream, open_stream, output_file, writing
from manytune.utils.text import listed, no_column


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
    notes: tuple[str, ...] = ()
    """What a reader of the data should know of its file."""


_PART_SIZE = 1 << 25
"""Characters of a part, after which no row is added to it."""

_MOST_BYTES = 1 << 28
"""Most text in a part of a Parquet file: compressed and with dictionaries, a small one may stand for very much."""

_FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
_USUAL = Dialect()


def check_format(name: str, formats: Sequence[str] = (*_FORMATS, ".txt")) -> str:
    """The format of a file, by its ending; a DataError if it is none of `formats`, those that can be read.

    A DependencyError says that it is Parquet, and pyarrow is not installed.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if name == "-" or (not suffix and (name.startswith("/dev/") or path.is_fifo())):
        return ".csv"
    if suffix not in formats:
        compressed = suffix in (".gz", ".bz2", ".xz", ".zst", ".zip")
        packed = " Compressed files are not read: decompress it." if compressed else ""
        raise DataError(f"{name}: a file of rows ends in {', '.join(formats)}, or is -, which is CSV.{packed}")
    if suffix == ".parquet":
        require("pyarrow", "parquet", f"{name}: Parquet", " Or give the rows as .csv, .tsv or .jsonl.")
    return suffix


def read_parts(
    name: str,
    columns: Sequence[str],
    dialect: Dialect = _USUAL,
    *,
    added: Collection[str] = (),
    facts: FileFacts | None = None,
) -> Iterator[RowBatch]:
    """The rows of a file, or of `-`, some at a time; of a file without rows one empty part.

    It must have `columns`, and others are handed on; but it must not have those that will be `added`. `facts` and
    errors are as for `read_placed`.
    """
    if check_format(name) == ".parquet":
        with _open_parquet(name) as file:
            refuse_taken(name, file.schema_arrow.names, added)
            yield from _parquet_parts(name, file, columns, every=True)
        return
    facts = facts or FileFacts()
    with _open_text(name, columns, dialect, every=True, facts=facts) as (names, rows):
        refuse_taken(name, names or (), added)
        part: list[Row] = []
        size = 0
        for place, row, characters in rows:
            if names is None:
                refuse_taken(place, row, added)
            part.append(row)
            size += characters
            if len(part) == PART or size > _PART_SIZE:
                yield RowBatch(part, names)
                part, size = [], 0
        if part or not facts.rows:
            yield RowBatch(part, names if facts.rows else names or tuple(columns))


def read_placed(
    name: str, columns: Sequence[str], dialect: Dialect = _USUAL, *, facts: FileFacts | None = None
) -> Iterator[tuple[str, Row]]:
    """The rows of a file, or of `-`, each with the words that let a user find it; only `columns` are read.

    The counts in `facts` are complete when the last row is read.
    A DataError says that the file cannot be read, a row is malformed, or a column is missing or there twice.
    """
    if check_format(name) == ".parquet":
        with _open_parquet(name) as file:
            number = size = 0
            for part in _parquet_parts(name, file, columns, every=False):
                size += part.batch.nbytes
                if size > max(4 * _MOST_BYTES, 500 * Path(name).stat().st_size):
                    raise DataError(
                        f"{name} unpacks to more than {size:,} bytes until row {number:,}, which is too much"
                    )
                for row in part.rows:
                    number += 1
                    yield f"{name}, row {number}", row
        return
    with _open_text(name, columns, dialect, every=False, facts=facts or FileFacts()) as (_, rows):
        for place, row, _ in rows:
            yield place, row


def refuse_taken(place: str, names: Collection[str], added: Collection[str]) -> None:
    """Refuse, by a DataError, rows that have a column which will be added to them."""
    taken = [name for name in added if name in names]
    if taken:
        raise DataError(
            f"{place}: it has columns that the predictions are written to: {listed(taken, 5)}. Rename or remove them "
            "there, or give the file without predictions."
        )


def _unreadable(name: str, error: Exception) -> DataError:
    reason = _first_line(getattr(error, "strerror", None) or error)
    where = f", seen from {os.getcwd()}" if isinstance(error, FileNotFoundError) and not os.path.isabs(name) else ""
    return DataError(f"{name} cannot be read: {reason}{where}")


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _open_text(
    name: str, columns: Sequence[str], dialect: Dialect, *, every: bool, facts: FileFacts
) -> Iterator[tuple[tuple[str, ...] | None, Iterator[Placed]]]:
    """The columns of a CSV, TSV or JSONL file, of which the last has none of its own, and its rows."""
    suffix = check_format(name)
    try:
        if suffix == ".jsonl":
            with open_lines(name, facts=facts, encoding=dialect.encoding) as lines:
                yield None, json_rows(lines, columns, every=every)
        else:
            usual = "," if suffix == ".csv" else "\t"
            with open_table(name, usual, dialect, columns, every=every, facts=facts) as table:
                yield table
    except OSError as error:
        raise _unreadable(name, error) from error


@contextmanager
def _open_parquet(name: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without a buffer, a row group's part of a column would be read at once, whatever its size.
        with pq.ParquetFile(name, buffer_size=1 << 20) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(name, error) from error


def _parquet_parts(name: str, file: Any, columns: Sequence[str], *, every: bool) -> Iterator[RowBatch]:
    import pyarrow as pa

    schema = file.schema_arrow
    refuse_twice(name, schema.names, None if every else columns)
    for column in columns:
        if column not in schema.names:
            raise DataError(f"{name}: {no_column(column, schema.names)}")
    if not every:
        schema = pa.schema([schema.field(column) for column in columns])
    at_once = _rows_at_once(name, file.metadata, schema)
    first = 1
    for batch in file.iter_batches(at_once, columns=schema.names):
        values = [_wanted(name, first, column, batch.column(column)) for column in columns]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
        yield RowBatch(rows, tuple(schema.names), batch)
        first += batch.num_rows
    if first == 1:
        yield RowBatch([], tuple(schema.names), pa.RecordBatch.from_pylist([], schema=schema))


def _rows_at_once(name: str, metadata: Any, schema: Any) -> int:
    """How many rows may be read together: a small file can hold huge texts; a DataError for absurd sizes."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names = frozenset(schema.names)
    for group, index in product(range(metadata.num_row_groups), range(metadata.num_columns)):
        chunk = metadata.row_group(group).column(index)
        unpacked, packed = chunk.total_uncompressed_size, chunk.total_compressed_size
        path = chunk.path_in_schema
        column = path if path in names else path.partition(".")[0]
        if column in names and unpacked > max(_MOST_BYTES, 500 * packed):
            raise DataError(
                f"{name}: {column[:40]} unpacks from {packed:,} to {unpacked:,} bytes in row group {group + 1}. "
                "If that is right, write the file in smaller row groups."
            )
    # One value of a dictionary can stand for many rows. Each dictionary is there with the first row of its group.
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary)
    texts = [field.name for field in schema if any(kind(field.type) for kind in kinds)]
    longest = 1
    with pq.ParquetFile(name, read_dictionary=texts, buffer_size=1 << 20) as file:
        for group in range(metadata.num_row_groups if texts else 0):
            for batch in islice(file.iter_batches(1, row_groups=[group], columns=texts), 1):
                for column in batch.columns:
                    if pa.types.is_dictionary(column.type) and not pa.types.is_primitive(column.type.value_type):
                        longest = max(longest, pc.max(pc.binary_length(column.dictionary)).as_py() or 0)
    return max(1, min(PART, _MOST_BYTES // longest))


def _wanted(name: str, first: int, column: str, values: Any) -> list[Any]:
    """A column as Python's values; a cell that has none, or a far too long one, is named."""
    found: list[Any] = []
    for index, value in enumerate(values):
        try:
            found.append(value.as_py())
        except (ValueError, OverflowError) as error:
            raise DataError(f"{name}, row {first + index}: {column} cannot be read: {_first_line(error)}") from error
        if isinstance(found[-1], str) and len(found[-1]) > MOST_IN_CELL:
            raise DataError(f"{name}, row {first + index}: {column} has more than {MOST_IN_CELL:,} characters")
    return found


@contextmanager
def writer(name: str, added: Mapping[str, type]) -> Iterator[Callable[[RowBatch, Sequence[Row]], None]]:
    """Give a function that writes some rows, and the columns added to each, to `-`, a device or a named pipe as they
    come, or to a file, which is there when the context ends without an error, and else as it was before.

    `added` is the type, `str` or `float`, of each column that is added to the rows. Errors are as for `output_format`;
    a DataError also says that the format cannot hold a value.
    """
    suffix, path, folder = output_format(name), Path(name), None
    try:
        with ExitStack() as stack:
            if name == "-":
                file = sys.stdout
            elif is_stream(path):
                stack.enter_context(writing(path))
                file = stack.enter_context(open_stream(path))
            else:
                path = stack.enter_context(output_file(path))
                if suffix == ".parquet":
                    yield stack.enter_context(ParquetWriter(path, added)).write
                    return
                folder = path.parent
                # Bytes of the input that are not UTF-8 are handed on as they were.
                file = stack.enter_context(path.open("w", encoding="utf-8", errors="surrogateescape", newline=""))
            if suffix == ".jsonl":
                yield partial(write_json, file)
            else:
                table = TableWriter(file, tabs=suffix == ".tsv", added=added, folder=folder)
                yield stack.enter_context(table).write
    except UnicodeEncodeError as error:
        raise DataError(
            f"A cell of the input holds {error.object[error.start : error.start + 1]!a}, which {error.encoding} cannot "
            "hold. Mend it there, or write to a .jsonl file."
        ) from error


def output_format(name: str, source: str = "-") -> str:
    """The format that rows of the file `source` are written in: a file's by its ending, else CSV.

    `name` is a file, a device, a named pipe, or `-`. A DataError says that its format cannot be written there, or that
    it is the source itself; a StoreError, that it cannot be written.
    """
    path = Path(name)
    if name == "-" or (is_stream(path) and path.suffix.lower() not in _FORMATS):
        return ".csv"
    suffix = check_format(name, _FORMATS)
    check_output(path, streams=True)
    if is_stream(path) and suffix == ".parquet":
        raise DataError(
            f"{name}: Parquet needs a file, and cannot go through a pipe or to a device; give .csv or .jsonl"
        )
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise DataError(f"{name} is the file that the rows are read from; give another name")
    return suffix
