"""What a file of rows holds is found, and said; where several things may be meant, it is asked for."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from manytune.config import Study
from manytune.config.quick_study import Size, quick_study, quick_task, quick_text
from manytune.data.recognise import Recognised, recognise
from manytune.data.row_writers import RowBatch
from manytune.data.rows import writer
from manytune.data.text_lines import Dialect
from manytune.utils.errors import DataError

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "runs", "far", "away", "from", "here")


def sentence(n: int, more: int = 0) -> str:
    return " ".join(WORDS[(n * step) % len(WORDS)] for step in range(1, 5 + more)) + f" {n}"


def table(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], separator: str = ",", **more: Any
) -> str:
    with path.open("w", newline="", **more) as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])
    return str(path)


def found_in(path: str, **given: Any) -> tuple[tuple[str, ...], str, str]:
    found = recognise(path, **given)
    return found.text, found.label, found.kind


def refusal(path: str, **given: Any) -> str:
    with pytest.raises(DataError) as error:
        recognise(path, **given)
    return str(error.value)


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        (("text", "label"), lambda n: (sentence(n), n % 2), (("text",), "label", "classification")),
        (("Comment", "Class"), lambda n: (sentence(n), "ab"[n % 2]), (("Comment",), "Class", "classification")),
        (("text", "price"), lambda n: (sentence(n), n + 0.5), (("text",), "price", "regression")),
        (("text", "score"), lambda n: (sentence(n), n), (("text",), "score", "regression")),
        (("review", "stars"), lambda n: (sentence(n), n % 5 + 1), (("review",), "stars", "classification")),
        (("id", "text", "team"), lambda n: (n, sentence(n), "ab"[n % 2]), (("text",), "team", "classification")),
        (
            ("sentence1", "sentence2", "score"),
            lambda n: (sentence(n), sentence(n + 1), n / 7),
            (("sentence1", "sentence2"), "score", "regression"),
        ),
        (
            ("premise", "hypothesis", "label"),
            lambda n: (sentence(n), sentence(n + 1), n % 3),
            (("premise", "hypothesis"), "label", "classification"),
        ),
        (
            ("label", "title", "body", "score"),
            lambda n: (n % 2, sentence(n), sentence(n, 9), n % 3),
            (("body",), "label", "classification"),
        ),
    ],
)
def test_columns_and_kind(tmp_path: Path, header: Sequence[str], row: Any, expected: Any) -> None:
    path = table(tmp_path / "rows.csv", header, [row(n) for n in range(60)])
    assert found_in(path) == expected


def test_what_was_taken_is_said_with_the_way_to_say_otherwise(tmp_path: Path) -> None:
    rows = [(sentence(n), sentence(n, 9), n % 5 + 1) for n in range(60)]
    rows[3], rows[4] = ("", "", 1), (sentence(4), sentence(4), "")
    said = "\n".join(recognise(table(tmp_path / "rows.csv", ("title", "body", "rating"), rows)).found)
    assert "60 rows, columns title, body, rating." in said
    assert "2 rows without a text or a label: left out." in said
    assert "the longest of the texts (others: title). A pair of them: --text title --text body" in said
    assert "label: rating" in said
    assert "Another: --label COLUMN" in said
    assert "5 classes" in said
    assert "as of ratings: --type regression" in said


def test_a_name_decides_where_the_values_do_not_speak_against_it(tmp_path: Path) -> None:
    """Numbers that are not whole are neither ids nor counts; of few values, each is one of several grades."""
    for score in (lambda n: n / 7, lambda n: n % 5 + 1):
        rows = [(sentence(n), score(n), "ab"[n % 2], n) for n in range(60)]
        path = table(tmp_path / "rows.csv", ("text", "score", "team", ""), rows)
        found = recognise(path)
        assert found.label == "score"
        assert "by its name (of few values too: team). Another: --label COLUMN" in "\n".join(found.found)
    assert recognise(path, label="team").label == "team"


def test_how_the_rows_were_read_is_said_with_the_option_that_says_otherwise(tmp_path: Path) -> None:
    rows = "".join(f'"{sentence(n)}"|{n % 2}\n' for n in range(30))
    (tmp_path / "rows.txt").write_text(f"text|label\n{rows}")
    said = recognise(str(tmp_path / "rows.txt"), dialect=Dialect(quoting="none")).found
    assert "A pipe parts the cells, as the header shows (other: --separator)." in said
    assert any("30 rows stand in double quotes" in line and line.endswith("--quoting double") for line in said)


def test_what_is_given_holds(tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv", ("a", "b", "c"), [(sentence(n), sentence(n, 9), n % 5 + 1) for n in range(60)])
    given = {"text": ("a", "b"), "label": "c", "kind": "regression"}
    assert found_in(path, **given) == (("a", "b"), "c", "regression")
    assert "no column 'd'" in refusal(path, label="d")


@pytest.mark.parametrize(
    ("separator", "encoding"), [(";", "cp1252"), ("\t", "utf-8"), ("|", "utf-8-sig"), ("\t", "utf-16")]
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.txt"])
def test_separators_and_encodings_are_found(tmp_path: Path, name: str, separator: str, encoding: str) -> None:
    rows = [(f"süß, {sentence(n)}", ["gut", "schlecht"][n % 2]) for n in range(40)]
    path = table(tmp_path / name, ("Text", "Bewertung"), rows, separator, encoding=encoding)
    found = recognise(path)
    assert (found.text, found.label, found.rows) == (("Text",), "Bewertung", 40)
    assert found.dialect.encoding == (None if encoding.startswith("utf-8") else encoding)
    study = Study.from_dict(quick_study(quick_task(path, found), Size(1, None, 3)))
    assert study.task("rows").own.dialect == found.dialect, "the study says it too"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    with writer(str(tmp_path / name), {}) as write:
        write(RowBatch([{"text": sentence(n), "label": "ab"[n % 2]} for n in range(30)], ("text", "label")), [{}] * 30)
    assert found_in(str(tmp_path / name)) == (("text",), "label", "classification")


REFUSED = {
    "nothing to read": (("n", "m", "label"), lambda n: (n, 2 * n, n % 2), "no column holds text. Say which one does"),
    "no label": (
        ("a", "b"),
        lambda n: (sentence(n), sentence(n + 7)),
        "Say which one is to be predicted, with --label",
    ),
    "two labels": (
        ("text", "team", "prio"),
        lambda n: (sentence(n), "ab"[n % 2], "xyz"[n % 3]),
        "the label may be one of several columns: team (2 different: a, b), prio (3 different: x, y, z). Say which",
    ),
    "a score that may be a count": (
        ("text", "team", "score"),
        lambda n: (sentence(n), "ab"[n % 2], 3 * n),
        "several columns: team (2 different: a, b), score (60 different: 0, 3, 6, …). Say which, such as --label team.",
    ),
    "a label without a name": (
        ("text", ""),
        lambda n: (sentence(n), "ab"[n % 2]),
        "the label, one without a name (2 different: a, b), cannot be used: the first line has no name",
    ),
    "a text without a name": (
        ("", "label"),
        lambda n: (sentence(n), "ab"[n % 2]),
        "the text, one without a name (60 different: ",
    ),
    "one of several labels without a name": (
        ("text", "", "score"),
        lambda n: (sentence(n), "ab"[n % 2], 3 * n),
        "Say which, such as --label score. To take the one without a name, write a name for it into the first line.",
    ),
    "one class": (("text", "label"), lambda n: (sentence(n), "x"), "is x in every row: there is nothing to tell apart"),
    "almost unique": (("text", "label"), lambda n: (sentence(n), f"class {n}"), "60 different values in 60 rows"),
    "no header": ((sentence(99), "1"), lambda n: (sentence(n), n % 2), "'1' looks like a cell"),
    "another separator": (
        ("text;label;a", " b"),
        lambda n: (f"{sentence(n)};{n % 2};x",),
        "2 columns. If a semicolon parts the cells: separator: semicolon in the task, --separator semicolon for a",
    ),
    "twice": (("text", "text", "label"), lambda n: (1, 2, 3), "a column is there twice: text"),
    "decimal commas": (("text", "score"), lambda n: (sentence(n), f"{n},5"), "Write them with a point, 0.5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, case: str) -> None:
    header, row, message = REFUSED[case]
    assert message in refusal(table(tmp_path / "rows.csv", header, [row(n) for n in range(60)]))


def test_files_that_are_none(tmp_path: Path) -> None:
    few = table(tmp_path / "few.csv", ("text", "label"), [(sentence(n), "ab"[n % 2]) for n in range(3)])
    assert "3 rows with a text (text) and a label (label)" in refusal(few)
    assert "at least 20 are needed" in refusal(few)
    assert "cannot be read: No such file" in refusal(str(tmp_path / "none.csv"))
    (tmp_path / "a.csv").write_bytes(bytes(range(256)) * 9)
    assert "no text" in refusal(str(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text("")
    assert "is empty" in refusal(str(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text("text,label\n")
    assert "has no rows" in refusal(str(tmp_path / "a.csv"))
    words = table(tmp_path / "words.csv", ("text", "label"), [(sentence(n), "ab"[n % 2]) for n in range(60)])
    assert "'a' is none. Leave --type out" in refusal(words, kind="regression")


@pytest.mark.parametrize("limit", [None, 500])
def test_the_study_file_is_commented_and_reads_back(tmp_path: Path, limit: int | None) -> None:
    found = Recognised(Dialect(separator="semicolon"), 9000, ("a: b", "c"), "#d", "regression", ("one", "two"))
    study = quick_study(quick_task("my data.csv", found), Size(3, limit, 2))
    text = quick_text(study, made_by="manytune quick 'my data.csv'", run="manytune run x", found="one\ntwo")
    file = tmp_path / "study.yaml"
    file.write_text(text)
    assert Study.from_file(file) == Study.from_dict(study)
    assert text.startswith("# Written by: manytune quick 'my data.csv'\n#   one\n#   two\n")
    assert text.count("\n\n# ") == len(study), "each key has its comment"
    (task,) = study["tasks"]
    assert (task["name"], task["dev"]) == ("my-data", pytest.approx(1000 / 9000, abs=1e-4))
    assert quick_task("cola.csv", found)["name"] == "cola-file", "cola is a task of GLUE"
