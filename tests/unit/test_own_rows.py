"""A user's own data: files of four kinds, a hub dataset, classes and scales that only the data knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manytune.config import OwnTask
from manytune.data.splits import load_task, uneven_classes
from manytune.data.tasks import Task
from manytune.utils.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"subject": "Invoice 12", "body": "Where is it?", "team": "billing"},
    {"subject": "Crash", "body": 'It says "error, again"\nand stops', "team": "support"},
    {"subject": "Refund 🙂", "body": "شكرا", "team": "billing"},
    {"subject": "Login", "body": "", "team": "support"},
]


def own(train: Path | str, **more: Any) -> Task:
    given = {"name": "tickets", "train": str(train), "dev": str(train), "text": ["subject", "body"], "label": "team"}
    return OwnTask(**{**given, **more}).to_task()


def csv_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def jsonl_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    ".csv": csv_file,
    ".jsonl": jsonl_file,
    ".parquet": parquet_file,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    task, splits = load_task(own(WRITERS[suffix](tmp_path / f"a{suffix}", ROWS)))
    assert task.labels == ("billing", "support")
    assert splits["train"].labels.tolist() == [0, 1, 0, 1]
    assert splits["train"].texts == tuple((row["subject"], row["body"]) for row in ROWS)
    assert splits["train"].fingerprint == load_task(own(csv_file(tmp_path / "b.csv", ROWS)))[1]["train"].fingerprint


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('subject\tbody\tteam\n"Hm\tyes\ta\nNo"\tso\tb\n')
    assert load_task(own(path))[1]["train"].texts == (('"Hm', "yes"), ('No"', "so"))


@pytest.mark.parametrize("values", [[3, 10, 2], [3.0, 10.0, 2.0], ["3", "10", "2"]])
def test_labels_that_are_numbers_are_names_in_their_order(tmp_path: Path, values: list[Any]) -> None:
    rows = [{"text": f"t{n}", "y": value} for n, value in enumerate([*values, values[0]])]
    task, splits = load_task(own(jsonl_file(tmp_path / "a.jsonl", rows), text="text", label="y"))
    assert task.labels == ("2", "3", "10")
    assert splits["train"].labels.tolist() == [1, 2, 0, 1]


def test_classes_that_are_given_keep_their_order(tmp_path: Path) -> None:
    task, splits = load_task(own(csv_file(tmp_path / "a.csv", ROWS), labels=["support", "billing", "sales"]))
    assert task.num_outputs == 3
    assert splits["train"].labels.tolist() == [1, 0, 1, 0]


def test_rows_without_a_text_or_a_label_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,y\none,a\n,a\ntwo,b\nthree,\n  ,b\n")
    _, splits = load_task(own(path, text="text", label="y"))
    assert splits["train"].texts == (("one",), ("two",))
    assert splits["train"].left_out == (
        f"{path}, line 3: text is empty",
        f"{path}, line 5: y is empty",
        f"{path}, line 6: text is empty",
    )


@pytest.mark.parametrize(("rare", "found"), [(2, (("rare", 2), ("often", 20))), (3, None)])
def test_uneven_classes_are_those_of_which_one_has_a_tenth(tmp_path: Path, rare: int, found: object) -> None:
    rows = [{"text": f"row {n}", "y": "rare" if n < rare else "often"} for n in range(20 + rare)]
    task, splits = load_task(own(csv_file(tmp_path / "a.csv", rows), text="text", label="y"))
    assert uneven_classes(task, splits["train"]) == found


def test_a_share_of_train_becomes_dev(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "y": "ab"[n % 4 == 0]} for n in range(200)]
    path = csv_file(tmp_path / "a.csv", rows)
    task = own(path, text="text", label="y", dev=0.2)
    _, splits = load_task(task)
    train, dev = splits["train"], splits["dev"]
    assert (len(train), len(dev)) == (160, 40)
    assert not set(train.texts) & set(dev.texts)
    assert np.bincount(dev.labels).tolist() == [30, 10], "each class in the same share"
    assert load_task(task)[1]["dev"].fingerprint == dev.fingerprint
    assert train.fingerprint != dev.fingerprint


def test_targets_are_scaled_by_the_training_rows(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "price": 1000.0 + 10 * n} for n in range(11)]
    train = csv_file(tmp_path / "a.csv", rows)
    dev = csv_file(tmp_path / "b.csv", [{"text": "x", "price": -5}, {"text": "y", "price": 99999.5}])
    task, splits = load_task(own(train, dev=str(dev), text="text", label="price", type="regression"))
    assert task.scale is not None
    assert task.target_range == (1000.0, 1100.0)
    inside = task.inside(splits["train"].labels)
    assert (inside.mean(), inside.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert splits["dev"].labels.tolist() == [-5.0, 99999.5], "dev may lie outside of the training targets"
    plain, _ = load_task(own(train, dev=str(dev), text="text", label="price", type="regression", scale=False))
    assert plain.scale is None
    assert plain.target_range == (1000.0, 1100.0)


def refusal(task: Task) -> str:
    with pytest.raises(DataError) as error:
        load_task(task)
    return str(error.value)


def test_a_column_of_another_name_is_suggested(tmp_path: Path) -> None:
    message = refusal(own(csv_file(tmp_path / "a.csv", [{"Subject": "a", "body": "b", "team": "c"}])))
    assert "no column 'subject'; the columns found are: Subject, body, team. Is it 'Subject'?" in message


def test_a_class_that_train_has_not(tmp_path: Path) -> None:
    dev = csv_file(tmp_path / "b.csv", [{"subject": "a", "body": "b", "team": "suport"}])
    message = refusal(own(csv_file(tmp_path / "a.csv", ROWS), dev=str(dev)))
    assert f"{dev}, line 2: team 'suport' is not one of: billing, support. Did you mean 'support'?" in message
    assert "give labels: all of them" in message


def test_numbers_as_classes_are_questioned(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "y": 0.37 * n} for n in range(30)]
    message = refusal(own(csv_file(tmp_path / "a.csv", rows), text="text", label="y"))
    assert "every row has another y" in message
    assert "type: regression" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; its first line must name the columns"),
        (b"text,y\n", "no rows, so there is nothing to learn from"),
        (b"text,y\n,a\n", "all 1 were left out, the first because of"),
        (b"text,y\na,b\nc\n", "line 3: 1 cell, but the header names 2 columns"),
        (b"text,y\na,b\ncaf\xe9,c\n", "line 3: byte 0xe9 in text is not valid UTF-8"),
        (b"text,y\na\0,b\n", "line 2: text holds a NUL character"),
        (b"text,y\na,b\nc,b\n", "in all 2 rows the label is 'b'"),
        (b"text,text\na,b\n", "a column is there twice: text"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert message in refusal(own(path, text="text", label="y"))


@pytest.mark.parametrize(("name", "message"), [("none.csv", "cannot be read"), ("a.xlsx", "a file of rows ends in")])
def test_files_that_are_none(tmp_path: Path, name: str, message: str) -> None:
    assert message in refusal(own(tmp_path / name))


def test_a_target_that_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,y\na,1\nb,inf\n")
    assert "line 3: y 'inf' is not a finite number" in refusal(own(path, text="text", label="y", type="regression"))


def test_f1_is_of_two_classes(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv", [*ROWS, {"subject": "a", "body": "b", "team": "sales"}])
    assert "the metric f1 is of two classes, but there are 3; take macro_f1" in refusal(own(path, metric="f1"))


def test_a_hub_dataset_gives_its_own_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        features = datasets.Features({"text": datasets.Value("string"), "y": datasets.ClassLabel(names=["neg", "pos"])})
        return datasets.Dataset.from_dict({"text": ["a", None, "c"], "y": [1, 0, 0]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = own("train", dev="validation", hub="them/films@v2", config="small", text="text", label="y")
    loaded, splits = load_task(task)
    assert loaded.labels == ("neg", "pos")
    assert splits["train"].labels.tolist() == [1, 0]
    assert splits["train"].left_out == ("them/films (small), split 'train', row 2: text is empty",)
    assert asked == [
        (("them/films", "small"), {"split": "train", "revision": "v2"}),
        (("them/films", "small"), {"split": "validation", "revision": "v2"}),
    ]


def test_classes_that_look_the_same_are_one_in_every_format_and_in_labels(tmp_path: Path) -> None:
    first = [{"text": f"a{n}", "y": "cafe\u0301" if n % 2 else "good\u200b"} for n in range(4)]
    second = [{"text": f"b{n}", "y": "caf\u00e9 " if n % 2 else "\ufeffgood\u00a0"} for n in range(4)]
    for suffix, write in WRITERS.items():
        train, dev = write(tmp_path / f"train{suffix}", first), write(tmp_path / f"dev{suffix}", second)
        for labels in ({}, {"labels": ["caf\u00e9", "g\u200bood"]}):
            task, splits = load_task(own(train, dev=str(dev), text="text", label="y", **labels))
            assert task.labels == ("caf\u00e9", "good")
            assert splits["dev"].labels.tolist() == [1, 0, 1, 0]


def test_a_class_is_the_same_number_in_csv_and_json(tmp_path: Path) -> None:
    train = csv_file(tmp_path / "a.csv", [{"text": f"t{n}", "y": n % 2} for n in range(4)])
    dev = jsonl_file(tmp_path / "b.jsonl", [{"text": f"d{n}", "y": float(n % 2)} for n in range(2)])
    assert load_task(own(train, dev=str(dev), text="text", label="y"))[1]["dev"].labels.tolist() == [0, 1]
    written = csv_file(tmp_path / "c.csv", [{"text": f"t{n}", "y": f"{n % 2}.0"} for n in range(4)])
    message = refusal(own(written, dev=str(dev), text="text", label="y"))
    assert "y '0' is not one of: 0.0, 1.0." in message
    assert "It differs from '0.0' in its spelling alone: write both alike." in message


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("text", ["a", "b"], "holds ['a', 'b'] (list), which is no text"),
        ("text", {"a": 1}, "holds {'a': 1} (dict), which is no text"),
        ("y", ["a"], "holds ['a'] (list), which is no text"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_cells_that_are_no_text_are_refused_with_their_place(
    tmp_path: Path, suffix: str, column: str, cell: object, reason: str
) -> None:
    rows = [{"text": "one", "y": "a"}, {"text": "two", "y": "b"}, {"text": "three", "y": "a", column: cell}]
    if suffix == ".parquet":  # a column is of one type there
        rows = [{**row, column: cell} for row in rows]
    path = WRITERS[suffix](tmp_path / f"a{suffix}", rows)
    place = f"{path}, line 3: {column}" if suffix == ".jsonl" else f"{path}, row 1: {column}"
    assert f"{place} {reason}" in refusal(own(path, text="text", label="y"))


def test_bytes_are_text(tmp_path: Path) -> None:
    rows = [{"text": f"caf\u00e9 {n}".encode(), "y": b"good" if n % 2 else b"bad"} for n in range(4)]
    task, splits = load_task(own(parquet_file(tmp_path / "a.parquet", rows), text="text", label="y"))
    assert task.labels == ("bad", "good")
    assert splits["train"].texts[0] == ("caf\u00e9 0",)


def test_numbers_of_rows_are_no_classes(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "y": f"id{n}" if n < 7 else "id0"} for n in range(9)]
    message = refusal(own(csv_file(tmp_path / "a.csv", rows), text="text", label="y"))
    assert "6 of 9 rows have another y than all others, such as id1, id2, id3" in message
    assert "regression" not in message, "they are no numbers"
    labels = [f"id{n}" for n in range(7)]
    assert load_task(own(tmp_path / "a.csv", text="text", label="y", labels=labels))[0].labels == tuple(labels)


def test_a_class_of_another_kind_is_said_shortly(tmp_path: Path) -> None:
    dev = csv_file(tmp_path / "b.csv", [{"subject": "a", "body": "b", "team": "x" * 10_000}])
    message = refusal(own(csv_file(tmp_path / "a.csv", ROWS), dev=str(dev), labels=["billing", "support"]))
    assert len(message) < 500
    assert "These are the task's labels:, or else the classes of the training rows" in message


def test_one_class_is_not_blamed_on_the_metric(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv", [{"text": f"t{n}", "y": "a"} for n in range(3)])
    assert "in all 3 rows the label is 'a'" in refusal(own(path, text="text", label="y", metric="f1"))


def test_a_hub_dataset_is_understood_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    names = datasets.ClassLabel(names=["bad", "go\u200bod"])

    def load(y: Any, text: Any, values: dict[str, list[Any]]) -> None:
        features = datasets.Features({"text": text, "y": y})
        made = datasets.Dataset.from_dict(values, features=features)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_options: made)

    task = own("train", dev="validation", hub="them/films", text="text", label="y")
    load(names, datasets.Value("binary"), {"text": [b"a", b"b", b"c"], "y": [1, 0, -1]})
    loaded, splits = load_task(task)
    assert loaded.labels == ("bad", "good")
    assert splits["train"].texts == (("a",), ("b",))
    assert splits["train"].left_out == ("them/films, split 'train', row 3: y is empty",)
    load(datasets.List(names), datasets.Value("string"), {"text": ["a", "b"], "y": [[1], [0]]})
    assert "split 'train', row 1: y holds [1] (list), which is no text" in refusal(task)
    load(names, names, {"text": [0, 1], "y": [0, 1]})
    assert load_task(task)[1]["train"].texts == (("bad",), ("go\u200bod",)), "a text's classes are their names too"
