"""Rows with predictions beside them, in each format: no column is lost, and no value changed."""

from __future__ import annotations

import datetime
import io
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manytune.data.rows import read_parts, writer
from manytune.utils.errors import DataError
from row_files import read_rows_of as read

ADDED: dict[str, type] = {"prediction": str, "p_a": float}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def convert(source: Path, target: Path) -> None:
    """What predict does with a file, its predictions aside."""
    with writer(str(target), ADDED) as write:
        for part in read_parts(str(source), ["text"], added=ADDED):
            write(part, [{"prediction": "a", "p_a": 0.5}] * len(part))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("later", [1, 1500])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_key_that_a_later_row_has_is_kept(tmp_path: Path, suffix: str, later: int) -> None:
    rows: list[dict[str, Any]] = [{"text": f"row {n}"} for n in range(2000)]
    rows[later]["note"] = "here"
    target = tmp_path / f"made{suffix}"
    convert(jsonl(tmp_path / "a.jsonl", rows), target)
    made = read(target)
    assert [n for n, row in enumerate(made) if row.get("note")] == [later]
    assert made[later] == {"text": f"row {later}", "note": "here", "prediction": "a", "p_a": made[0]["p_a"]}
    assert len([*tmp_path.iterdir()]) == 2, "nothing of the way there is left"


@pytest.mark.parametrize(
    ("early", "late", "kept"),
    [
        (1, 1.5, [1.0, 1.5]),
        (None, "z", [None, "z"]),
        (1, "z", ["1", "z"]),
        (True, 2, ["true", "2"]),
        (2**60 + 1, 0.5, [str(2**60 + 1), "0.5"]),
        (2**70, 1, [str(2**70), "1"]),
        ({"k": 1}, {"j": [2]}, [{"k": 1, "j": None}, {"k": None, "j": [2]}]),
        ({"k": 1}, [2], ['{"k": 1}', "[2]"]),
        ({}, {}, ["{}", "{}"]),
        ("ü", [1], ["ü", "[1]"]),
    ],
)
@pytest.mark.parametrize("later", [1, 1500])
def test_types_hold_every_value(tmp_path: Path, early: Any, late: Any, kept: list[Any], later: int) -> None:
    rows = [{"text": "a", "x": early if n < later else late} for n in range(later + 1)]
    convert(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "made.parquet")
    made = read(tmp_path / "made.parquet")
    assert len(made) == len(rows)
    assert [made[0]["x"], made[-1]["x"]] == kept


def test_columns_of_parquet_go_through_unchanged(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", None], pa.large_string()),
            "day": pa.array([4_000_000, None], pa.date32()),
            "price": pa.array([Decimal("1.50"), None]),
            "nested": pa.array([{"q": [1, 2]}, None]),
            "raw": pa.array([b"\xff", None]),
            "time": pa.array([datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), None], pa.timestamp("ns", "UTC")),
            "kind": pa.array(["u", "v"]).dictionary_encode(),
            "large": pa.array([2**63, None], pa.uint64()),
            "nothing": pa.nulls(2),
        }
    ).replace_schema_metadata({"k": "v"})
    pq.write_table(table, tmp_path / "a.parquet")
    convert(tmp_path / "a.parquet", tmp_path / "made.parquet")
    given, made = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("a", "made"))
    assert made.select(table.column_names).equals(given)
    assert (made.schema.metadata, made.column_names[-2:]) == ({b"k": b"v"}, ["prediction", "p_a"])
    assert made.schema.field("p_a").type == pa.float64()
    convert(tmp_path / "a.parquet", tmp_path / "made.csv")
    assert read(tmp_path / "made.csv")[0]["day"] == "12921-08-18"


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
def test_a_file_without_rows_keeps_its_columns(tmp_path: Path, source: str, target: str) -> None:
    path = tmp_path / f"a{source}"
    if source == ".parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_text("" if source == ".jsonl" else "text\n")
    made = tmp_path / f"made{target}"
    convert(path, made)
    if target == ".parquet":
        assert pq.read_table(made).column_names == ["text", "prediction", "p_a"]
    else:
        mark = "\t" if target == ".tsv" else ","
        assert made.read_text() == ("" if target == ".jsonl" else mark.join(["text", "prediction", "p_a"]) + "\n")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_that_predictions_would_overwrite(tmp_path: Path, suffix: str) -> None:
    convert(jsonl(tmp_path / "a.jsonl", [{"text": "a"}]), tmp_path / f"made{suffix}")
    with pytest.raises(
        DataError, match=r"made.*: it has columns that the predictions are written to: prediction, p_a\."
    ):
        convert(tmp_path / f"made{suffix}", tmp_path / f"again{suffix}")
    assert not (tmp_path / f"again{suffix}").exists()


def test_bytes_that_are_no_text_go_through(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,z\na,\xff\n")
    convert(tmp_path / "a.csv", tmp_path / "made.csv")
    assert (tmp_path / "made.csv").read_bytes() == b"text,z,prediction,p_a\na,\xff,a,0.5\n"
    convert(tmp_path / "a.csv", tmp_path / "made.jsonl")
    assert read(tmp_path / "made.jsonl")[0]["z"] == "\udcff"
    with pytest.raises(DataError, match="which utf-8 cannot hold"):
        convert(tmp_path / "a.csv", tmp_path / "made.parquet")
    jsonl(tmp_path / "a.jsonl", [{"text": "a", "z": "\ud83d"}])
    convert(tmp_path / "a.jsonl", tmp_path / "made.jsonl")
    assert read(tmp_path / "made.jsonl")[0]["z"] == "\ud83d"
    with pytest.raises(DataError, match="which utf-8 cannot hold"):
        convert(tmp_path / "a.jsonl", tmp_path / "made.csv")


def test_a_carriage_return_stays_in_its_cell(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "a\rb"}, {"text": "c\r\nd"}])
    convert(tmp_path / "a.jsonl", tmp_path / "made.csv")
    assert (tmp_path / "made.csv").read_bytes().endswith(b'\n"c\r\nd",a,0.5\n')
    assert [row["text"] for part in read_parts(str(tmp_path / "made.csv"), ["text"]) for row in part.rows] == [
        "a\rb",
        "c\r\nd",
    ]


def test_a_screen_gets_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", screen := io.StringIO())
    convert(jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b", "n": 1}]), Path("-"))
    assert screen.getvalue() == "text,n,prediction,p_a\na,,a,0.5\nb,1,a,0.5\n"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_bytes_are_written_as_their_text_and_lists_as_json(tmp_path: Path, suffix: str) -> None:
    source, target = tmp_path / "a.parquet", tmp_path / f"made{suffix}"
    rows = [{"text": "café".encode(), "l": ["é", None], "s": {"a": b"b"}}, {"text": b"plain", "l": None, "s": None}]
    pq.write_table(pa.Table.from_pylist(rows), source)
    convert(source, target)
    assert b"b'" not in target.read_bytes()
    if suffix == ".jsonl":
        assert read(target)[0] == {"text": "café", "l": ["é", None], "s": {"a": "b"}, "prediction": "a", "p_a": 0.5}
    else:
        lines = target.read_bytes().splitlines()
        assert lines[1].startswith("café".encode())
        assert b"null]" in lines[1]


def test_lists_of_json_are_json_in_csv(tmp_path: Path) -> None:
    target = tmp_path / "made.csv"
    convert(jsonl(tmp_path / "a.jsonl", [{"text": "a", "v": {"k": [True, None]}}]), target)
    assert json.loads(read(target)[0]["v"]) == {"k": [True, None]}
