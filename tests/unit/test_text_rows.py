"""Files of rows whose cells cannot be told apart, whose encoding is another, or that are joined or damaged."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manytune.config import OwnTask
from manytune.data import rows
from manytune.data.rows import read_parts, read_placed
from manytune.data.splits import load_split, load_task
from manytune.data.tasks import TASKS
from manytune.data.text_lines import Dialect, FileFacts, encoding_of
from manytune.utils.errors import DataError

COLUMNS = ("text", "y")
ROWS = ["text,y\n", *(f"row {n},{'pos' if n % 2 else 'neg'}\n" for n in range(24))]


def read(tmp_path: Path, content: str | bytes, name: str = "a.csv", **more: Any) -> list[tuple[Any, ...]]:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    facts = more.pop("facts", None)
    return [tuple(row.values()) for _, row in read_placed(str(path), COLUMNS, Dialect(**more), facts=facts)]


def refusal(tmp_path: Path, content: str | bytes, name: str = "a.csv", **more: Any) -> str:
    with pytest.raises(DataError) as error:
        read(tmp_path, content, name, **more)
    assert len(str(error.value)) < 600 + len(str(tmp_path))
    return str(error.value)


def changed(lines: dict[int, str]) -> str:
    return "".join(lines.get(number, line) for number, line in enumerate(ROWS, 1))


# Quotes


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ({6: '"Great,pos\n'}, "line 6: the double quote that opens a cell here is never closed"),
        ({6: '"Great,pos\n', 17: '"again,pos\n'}, "line 6: the double quote that opens a cell here ends on line 17"),
        (
            {6: '"Great,pos\n', 17: 'loved it",pos\n'},
            "line 6: the double quote that opens a cell here closes on line 17",
        ),
        (
            {6: '"He said "hi" ok",pos\n'},
            "line 6: the double quote that opens a cell here ends on line 6 with text after",
        ),
        (
            {6: '"He said \\"hi\\" ok",pos\n'},
            'line 6: it has \\", but inside a quoted cell a double quote is written twice',
        ),
        ({6: 'a, "pos"\n'}, "line 6: a blank stands before the double quote that opens a cell"),
        ({6: 'so "a, b",pos\n'}, "line 6: 3 cells, but the header names 2 columns. A cell that holds commas begins"),
    ],
)
def test_quotes_that_may_have_been_meant_otherwise(tmp_path: Path, lines: dict[int, str], says: str) -> None:
    assert says in refusal(tmp_path, changed(lines))
    if "3 cells" not in says:
        assert "quoting: none" in refusal(tmp_path, changed(lines))
        assert len(read(tmp_path, changed(lines), quoting="none")) == 24


def test_quotes_that_are_clear(tmp_path: Path) -> None:
    content = 'text,y\n5" screen,pos\n"two\nlines, so",neg\n"a ""b"" c",pos\n" ""d""",pos\n'
    assert [text for text, _ in read(tmp_path, content)] == ['5" screen', "two\nlines, so", 'a "b" c', ' "d"']


def test_lines_and_rows_add_up(tmp_path: Path) -> None:
    facts = FileFacts()
    content = 'text,y\none,a\n\n"two\n\nlines",b\n\n'
    assert len(read(tmp_path, content, facts=facts)) == 2
    assert [*facts.notes("a.csv")] == [
        "a.csv: 2 rows from 7 lines; 1 row takes several lines, at most lines 4–6; 2 lines are blank."
    ]


def test_a_row_is_named_by_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,y\n"two\nlines",a\nb,c\n')
    places = [place for place, _ in read_placed(str(tmp_path / "a.csv"), COLUMNS)]
    assert [place.rpartition(", ")[2] for place in places] == ["line 2", "line 4"]


def test_a_tsv_has_quotes_if_that_is_said(tmp_path: Path) -> None:
    content = 'text\ty\n"a ""b"""\tpos\nc\tneg\n'
    facts = FileFacts()
    assert read(tmp_path, content, "a.tsv", facts=facts)[0] == ('"a ""b"""', "pos")
    assert "give the task quoting: double" in next(facts.notes("a.tsv"))
    assert read(tmp_path, content, "a.tsv", quoting="double")[0] == ('a "b"', "pos")
    assert "give quoting: double" in refusal(tmp_path, 'text\ty\n"a\nb"\tpos\n', "a.tsv")
    facts = FileFacts()
    read(tmp_path, content + '"d\tpos\n', "a.tsv", facts=facts)
    assert not [*facts.notes("a.tsv")], "these are no quotes that a program added"


def test_a_task_says_how_its_files_are_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,y\n"Hm,a\nNo",b\n\n')
    given = {"name": "t", "train": str(path), "dev": str(path), "text": "text", "label": "y"}
    _, splits = load_task(OwnTask(**given, quoting="none").to_task())
    assert splits["train"].texts == (('"Hm',), ('No"',))
    assert splits["train"].notes == (f"{path}: 2 rows from 4 lines; 1 line is blank.",)
    with pytest.raises(ValueError, match="quoting is of CSV and TSV files"):
        OwnTask(**given, hub="a/b", quoting="none")


# Headers and separators


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.csv",
            "text;y;a, b\na;b;c, d\n",
            "If a semicolon parts the cells: separator: semicolon in the task, --separator semicolon for a command.",
        ),
        ("a.csv", "text y\na b\n", "line 1: no column 'text'"),
        ("a.csv", "text,z\n", "line 1: no column 'y'"),
        ("a.csv", "text,y,y\na,b,c\n", "a column is there twice: y"),
        ("a.jsonl", '{"text": "a", "y": 1, "y": 2}\n', "line 1: a column is there twice: y"),
        ("a.csv", "text,y\na,b\n\ufefftext,y\nc,d\n", "line 3: the header is there once more"),
        ("a.csv", "text,y\na,b\ntext,y\nc,d\n", "line 3: the header is there once more"),
        ("a.csv.gz", b"\x1f\x8b", "Compressed files are not read"),
    ],
)
def test_headers_that_cannot_be(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    assert says in refusal(tmp_path, content, name)


@pytest.mark.parametrize(
    ("name", "content", "separator"),
    [
        ("a.csv", "text;y\na;b\n", ";"),
        ("a.csv", "\n\ufefftext;y\na;b\n", ";"),
        ("a.csv", '"text, whole"|text|y\n"x|y"|a|b\n', "|"),
        ("a.csv", "text\ty\na\tb\n", "\t"),
        ("a.tsv", 'text,y\n"a",b\n', ","),
        ("a.txt", "text\ty\na\tb\n", None),
        ("a.txt", "text;y\na;b\n", ";"),
        ("a.csv", "sep=;\ntext;y\na;b\n", ";"),
        ("-", "text;y\na;b\n", ";"),
    ],
)
def test_the_header_shows_what_parts_the_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, separator: str | None
) -> None:
    path = str(tmp_path / name) if name != "-" else name
    monkeypatch.setattr("sys.stdin", io.StringIO(content))
    (tmp_path / name).write_text(content)
    facts = FileFacts()
    assert [tuple(row.values()) for _, row in read_placed(path, COLUMNS, facts=facts)] == [("a", "b")]
    assert facts.separator == separator
    assert ("parts the cells, as the header shows" in "".join(facts.notes(name))) == (separator is not None)


def test_a_separator_and_an_encoding_that_are_given_hold(tmp_path: Path) -> None:
    content = "text;y;more, or less\nZürich, süß;b;x\n".encode("cp1252")
    assert read(tmp_path, content, separator="semicolon", encoding="cp1252") == [("Zürich, süß", "b")]
    assert read(tmp_path, '{"text": "süß", "y": "b"}'.encode("utf-16"), "a.jsonl", encoding="utf-16") == [("süß", "b")]
    assert "is not utf-16" in refusal(tmp_path, b"text,y\na", encoding="utf-16")
    assert "encoding: cp1252" in refusal(tmp_path, content, separator="semicolon")
    given = {"name": "t", "train": "a.csv", "text": "text", "label": "y"}
    assert OwnTask(**given, separator=";").to_task().own.dialect.separator == "semicolon"
    assert OwnTask(**given).model_dump().keys().isdisjoint(("separator", "encoding")), (
        "studies of before keep their hash"
    )
    for key, value in (("separator", "space"), ("encoding", "rot13"), ("encoding", "no-such")):
        with pytest.raises(ValueError, match=key):
            OwnTask(**given, **{key: value})


@pytest.mark.parametrize(
    ("content", "encoding"),
    [("süß", "utf-8"), ("süß", "cp1252"), ("süß", "utf-16"), ("s\x81", "latin-1"), ("", "utf-8"), ("süß", "utf-8-sig")],
)
def test_an_encoding_is_recognised(tmp_path: Path, content: str, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode(encoding))
    assert encoding_of(tmp_path / "a.csv") == (None if encoding.startswith("utf-8") else encoding)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "sep=,\ntext,y\na,b\n"),
        ("a.csv", "\n\ntext,y\na,b\n"),
        ("a.csv", "text,y\ra,b\r"),
        ("a.csv", "text,y,,\na,b,,\n"),
        ("a.csv", "z,text,y,z\n1,a,b,2\n"),
        ("a.csv", b"text,y,z\na,b,\xff\n"),
        ("a.csv", '\ufefftext,y\n\ufeff"a",b\n'),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "a", "y": "b", "z": "\xff"}\n\n'),
        ("a.jsonl", '{"text": "a", "y": "b", "z": 1, "z": 2, "w": {"v": 1, "v": 2}}\n'),
    ],
)
def test_what_is_not_needed_does_not_matter(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read(tmp_path, content, name) == [("a", "b")]


# Encodings

OTHERS = {
    "utf-16": "is UTF-16, and cannot be read",
    "utf-16-le": "is UTF-16 or UTF-32 without a byte order mark",
    "utf-16-be": "is UTF-16 or UTF-32 without a byte order mark",
    "utf-32": "is UTF-32, and cannot be read",
    "latin-1": "byte 0xe9 in text is not valid UTF-8",
}


@pytest.mark.parametrize("encoding", OTHERS)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "-"])
def test_other_encodings_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, encoding: str
) -> None:
    lines = {".csv": "text,y\ncafé,b\n", ".tsv": "text\ty\ncafé\tb\n", ".jsonl": '{"text": "café", "y": 1}\n'}
    content = lines.get(Path(name).suffix, lines[".csv"]).encode(encoding)
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        with pytest.raises(DataError) as error:
            list(read_placed("-", COLUMNS))
        assert OTHERS[encoding] in str(error.value)
    else:
        message = refusal(tmp_path, content, name)
        assert OTHERS[encoding] in message
    folder = tmp_path / "CoLA"
    folder.mkdir()
    (folder / "test.tsv").write_bytes("index\tsentence\n0\tcafé\n".encode(encoding))
    with pytest.raises(DataError, match=OTHERS[encoding].replace("in text", "in sentence")):
        load_split(TASKS["cola"], "test", str(tmp_path))


def test_standard_input_has_a_byte_order_mark_and_its_own_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO('\ufefftext,y\n"a\r\nb",c\n'.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert [row for _, row in read_placed("-", COLUMNS)] == [{"text": "a\r\nb", "y": "c"}]
    assert not stdin.buffer.closed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x1f\x8b\x08\x00", "is compressed by gzip"),
        (b"PK\x03\x04", "is a zip archive or an Excel workbook"),
        (b"PAR1", "is Parquet"),
    ],
)
def test_files_under_a_wrong_name(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in refusal(tmp_path, content)


def test_half_of_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    assert "text holds \\ud83d, half of a surrogate pair" in refusal(
        tmp_path, '{"text": "\\ud83d", "y": 1}\n', "a.jsonl"
    )
    assert read(tmp_path, '{"text": "a", "y": "b", "z": "\\ud83d"}\n', "a.jsonl") == [("a", "b")]


def test_glue_files_joined_with_a_second_header(tmp_path: Path) -> None:
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2/test.tsv").write_text("index\tsentence\n0\ta\n\ufeffindex\tsentence\n0\tb\n")
    with pytest.raises(DataError, match="line 3: the header is there once more"):
        load_split(TASKS["sst2"], "test", str(tmp_path))


# Sizes


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"text,y\n" + b"x" * 10_000_001 + b",b\n", "line 2: a cell has more than 10,000,000 characters"),
        (
            "a.jsonl",
            b'{"text": "' + b"x" * 10_000_001 + b'", "y": 1}\n',
            "line 1: text has more than 10,000,000 characters",
        ),
        ("a.csv", b"text,y\n" + b"x,b " * 10_000_001, "line 2: the row that begins here has more than 40,000,000"),
        ("a.csv", ",".join(map(str, range(100_000))).encode(), "17, 18, 19 and 99,980 more"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b', "y": 1}\n', "it is nested too deeply"),
        ("a.jsonl", b'{"text": "a", "y": ' + b"1" * 100_000 + b"}\n", "an integer has thousands of digits"),
    ],
)
def test_sizes_have_bounds(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    assert says in refusal(tmp_path, content, name)


def test_a_part_of_long_rows_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_PART_SIZE", 10_000)
    (tmp_path / "a.csv").write_text("text,y\n" + ("x" * 1_000 + ",b\n") * 70)
    assert max(map(len, read_parts(str(tmp_path / "a.csv"), COLUMNS))) == 10


# Parquet


def test_of_parquet_only_what_is_needed_is_read(tmp_path: Path) -> None:
    invalid = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array([4_000_000], pa.date32()), invalid, invalid]
    table = pa.Table.from_arrays(columns, names=["text", "y", "day", "z", "z"])
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    assert [row for _, row in read_placed(str(path), COLUMNS)] == [{"text": "a", "y": "b"}]
    with pytest.raises(DataError, match="a column is there twice: z"):
        list(read_placed(str(path), ["text", "z"]))
    with pytest.raises(DataError, match="a column is there twice: z"):
        list(read_parts(str(path), COLUMNS))
    with pytest.raises(DataError, match="row 1: day cannot be read"):
        list(read_placed(str(path), ["day"]))


def test_a_small_parquet_file_that_stands_for_much_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_MOST_BYTES", 1 << 20)
    path = tmp_path / "a.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 10_000]))
    pq.write_table(pa.table({"text": texts, "y": ["a"] * 2000}), path, store_schema=False, compression="zstd")
    assert path.stat().st_size < 10_000
    assert max(map(len, read_parts(str(path), ["y"]))) <= 104, "no more than 1 MB is unpacked at once"
    assert len([*read_placed(str(path), ["y"])]) == 2000
    with pytest.raises(DataError, match="unpacks to more than"):
        list(read_placed(str(path), ["text"]))
    pq.write_table(pa.table({"text": ["x" * 4_000_000]}), path, use_dictionary=False, compression="zstd")
    with pytest.raises(DataError, match=r"text unpacks from .* bytes in row group 1"):
        list(read_placed(str(path), ["text"]))


def test_json_text_of_any_line_end(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"t\u2028{n}", "y": n}, ensure_ascii=False) for n in range(3)]
    assert [y for _, y in read(tmp_path, "\r\n".join(lines), "a.jsonl")] == [0, 1, 2]


def numbered(first: str, later: str = "") -> str:
    """Rows of a number, a text and a number, with some of `first` before them."""
    return f"id,text,y\n{first}" + "".join(f"{n + 10},row {n},{n / 7:.3f}\n" for n in range(9)) + later


@pytest.mark.parametrize(
    "content",
    [
        'text,y\n"unclosed,pos\nnext,neg\nends",pos\n' + "".join(ROWS[1:]),
        'text,y\n"unclosed,pos\n\nnext,neg\nends",pos\n' + "".join(ROWS[1:]),
        'y,text\npos,"unclosed\nneg,next\npos,ends"\n'
        + "".join(f"{'pos' if n % 2 else 'neg'},{n}a\n" for n in range(9)),
        numbered('1,"unclosed,0.1\n2,next,0.2\n3,ends",0.3\n'),
        numbered("", '1,"unclosed,0.1\n2,next,0.2\n3,ends",0.3\n'),
        "".join(ROWS).replace("pos", "p" * 99) + f'"unclosed,{"p" * 99}\nends",{"p" * 99}\n',
    ],
)
def test_rows_inside_of_a_cell_are_seen_wherever_they_stand(tmp_path: Path, content: str) -> None:
    assert "look like rows of their own" in refusal(tmp_path, content)
    assert "quoting: none" in refusal(tmp_path, content), "and what to do"


def test_letters_and_addresses_are_one_cell(tmp_path: Path) -> None:
    letter = '"Dear Sir,\nhello",pos\n'
    assert len(read(tmp_path, "".join(ROWS) + "no class,\n" + letter)) == 26
    assert len(read(tmp_path, numbered('1,"Dear A,\n10, rue X",0.5\n'))) == 10
    quoted = '"id","text","y"\n' + "".join(f'"{n}","{n},a,{n}\n{n},b,{n}","{n}"\n' for n in range(9))
    assert len(read(tmp_path, quoted)) == 9


def test_byte_order_marks_of_two_programs(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff\ufeff" + "".join(ROWS)) == read(tmp_path, "".join(ROWS))


def test_utf_16_of_any_script_is_recognised(tmp_path: Path) -> None:
    assert "is UTF-16" in refusal(tmp_path, "текст,класс\nда,нет\n".encode("utf-16-le"))


def test_a_column_in_other_characters_that_look_the_same_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,e\u0301\na,b\n")
    with pytest.raises(DataError, match=r"look the same: 'e\\u0301', not '\\xe9'"):
        next(read_placed(str(path), ["\u00e9"]))
