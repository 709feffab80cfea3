from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from manytune.data.glue_zip import FILES, check_zip, write_zip
from manytune.utils.errors import DataError, StoreError

ELEVEN = ["AX", "CoLA", "MNLI-m", "MNLI-mm", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "WNLI"]


def test_the_eleven_files_and_their_rows() -> None:
    assert sorted(FILES) == sorted(f"{name}.tsv" for name in ELEVEN)
    assert {name: file.rows for name, file in FILES.items()} == {
        "CoLA.tsv": 1063,
        "SST-2.tsv": 1821,
        "MRPC.tsv": 1725,
        "STS-B.tsv": 1379,
        "QQP.tsv": 390965,
        "MNLI-m.tsv": 9796,
        "MNLI-mm.tsv": 9847,
        "QNLI.tsv": 5463,
        "RTE.tsv": 3000,
        "WNLI.tsv": 146,
        "AX.tsv": 1104,
    }


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("CoLA.tsv", 1, "1"),
        ("WNLI.tsv", 0, "0"),
        ("RTE.tsv", 1, "not_entailment"),
        ("QNLI.tsv", 0, "entailment"),
        ("MNLI-mm.tsv", 2, "contradiction"),
        ("AX.tsv", 1, "neutral"),
        ("STS-B.tsv", 3.14159, "3.142"),
        ("STS-B.tsv", -0.3, "0.000"),
        ("STS-B.tsv", 5.2, "5.000"),
    ],
)
def test_predictions_are_written_as_the_server_reads_them(name: str, value: float, text: str) -> None:
    assert FILES[name].written(value) == text
    assert FILES[name].problem(text) is None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("glue") / "glue.zip"
    write_zip(path, {"WNLI.tsv": [1] * 146, "STS-B.tsv": [9.0] * 1379})
    return path


@pytest.fixture
def right(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(written, tmp_path))


def test_what_is_written_is_right(right: Path) -> None:
    assert check_zip(right) == []
    with zipfile.ZipFile(right) as archive:
        assert archive.read("WNLI.tsv").decode().splitlines()[:3] == ["index\tprediction", "0\t1", "1\t1"]
        assert archive.read("STS-B.tsv").decode().splitlines()[-1] == "1378\t5.000"
        assert archive.read("RTE.tsv").decode().splitlines()[-1] == "2999\tentailment", "a placeholder"


def test_the_same_predictions_are_the_same_bytes(right: Path, tmp_path: Path) -> None:
    write_zip(tmp_path / "again.zip", {"WNLI.tsv": [1] * 146, "STS-B.tsv": [9.0] * 1379})
    assert (tmp_path / "again.zip").read_bytes() == right.read_bytes()


def test_an_earlier_submission_alone_is_replaced_also_through_a_link(right: Path, tmp_path: Path) -> None:
    (tmp_path / "link.zip").symlink_to(right)
    write_zip(tmp_path / "link.zip", {"WNLI.tsv": [0] * 146})
    assert (tmp_path / "link.zip").is_symlink()
    with zipfile.ZipFile(right) as archive:
        assert archive.read("WNLI.tsv").decode().splitlines()[1] == "0\t0"
    (tmp_path / "empty").touch()
    write_zip(tmp_path / "empty", {})
    assert check_zip(tmp_path / "empty") == []
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("mine.txt", "mine")
    before = (tmp_path / "mine.zip").read_bytes()
    with pytest.raises(StoreError, match="is no submission to GLUE"):
        write_zip(tmp_path / "mine.zip", {})
    assert (tmp_path / "mine.zip").read_bytes() == before
    with pytest.raises(StoreError, match="a device or a pipe"):
        write_zip(Path("/dev/stdout"), {})


def changed(right: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> list[str]:
    """The problems of a zip of which each file was changed."""
    path = right.with_name("changed.zip")
    with zipfile.ZipFile(right) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if (kept := change(name, old.read(name))) is not None:
                new.writestr(*kept)
    return check_zip(path)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("index\tprediction", "id\tlabel", "WNLI.tsv, line 1: the header must be index and prediction"),
        ("\n5\t1\n", "\n5\tentailment\n", "WNLI.tsv, line 7: 'entailment' is not one of: 0, 1"),
        ("\n5\t1\n", "\n", "WNLI.tsv, line 7: the index must be 5, not '6'"),
        ("\n145\t1\n", "\n", "WNLI.tsv, it has 145 predictions, but 146 are wanted"),
        ("\n5\t1\n", "\n5,1\n", "WNLI.tsv, line 7: the index must be 5, not '5,1'"),
    ],
)
def test_a_wrong_file_is_said(right: Path, old: str, new: str, problem: str) -> None:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        return name, content.replace(old.encode(), new.encode(), 1) if name == "WNLI.tsv" else content

    found = changed(right, change)
    assert any(each.startswith(problem) for each in found), found
    assert len(found) <= 4, "many problems of one file are cut short"


def test_a_score_out_of_range(right: Path) -> None:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        return name, content.replace(b"\n7\t5.000\n", b"\n7\t5.5\n") if name == "STS-B.tsv" else content

    assert changed(right, change) == ["STS-B.tsv, line 9: '5.5' is no number from 0 to 5"]


def test_missing_nested_and_foreign_files(right: Path) -> None:
    moves = {"AX.tsv": "submission/AX.tsv", "RTE.tsv": None, "QNLI.tsv": "qnli.tsv"}

    def change(name: str, content: bytes) -> tuple[str, bytes] | None:
        to = moves.get(name, name)
        return None if to is None else (to, content)

    assert changed(right, change) == [
        "QNLI.tsv is missing.",
        "RTE.tsv is missing.",
        "AX.tsv is missing. It is in a folder, as submission/AX.tsv; it must be at the top.",
        "qnli.tsv is no file of a submission.",
    ]


def test_bytes_that_are_no_text(right: Path) -> None:
    assert changed(right, lambda name, content: (name, b"\xff" if name == "AX.tsv" else content)) == [
        "AX.tsv, it is not UTF-8"
    ]


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (b"PK no zip", "cannot be read as a zip")])
def test_what_is_no_zip(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        check_zip(path)
