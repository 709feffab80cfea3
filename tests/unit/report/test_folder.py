"""A report's folder belongs to its user: only what a report wrote is replaced or removed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from manytune.report import folder as module
from manytune.report.folder import MANIFEST, write_folder
from manytune.utils.errors import StoreError

SUMMARY = {"schema_version": 1, "studies": ["s"], "complete": True, "tasks": [{"key": "cola"}], "waiting": []}
FIRST = {
    "tables/cola-scores.csv": "1",
    "tables/stsb-scores.csv": "1",
    "figures/cola-curves.png": b"1",
    "report.md": "1",
    "summary.json": json.dumps(SUMMARY),
    "index.html": "1",
}
SECOND = {name: f"{content!r}, again" for name, content in FIRST.items() if "stsb" not in name}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def as_bytes(files: dict[str, str | bytes] | dict[str, str]) -> dict[str, bytes]:
    return {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}


def put(path: Path, content: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_files_of_others_stay_and_those_of_an_earlier_report_go(tmp_path: Path) -> None:
    mine = ["figures/photo.png", "tables/stsb-notes.csv", "paper.tex", "figures/.old.svg.0badcafe.tmp"]
    for name in mine:
        put(tmp_path / name)
    write_folder(tmp_path, FIRST)
    write_folder(tmp_path, SECOND)
    assert contents(tmp_path) == as_bytes(SECOND) | dict.fromkeys(mine, b"mine")


@pytest.mark.parametrize("name", ["index.html", "tables/cola-scores.csv", MANIFEST, "tables", "figures"])
def test_what_no_report_wrote_is_not_replaced(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    with pytest.raises(StoreError, match=f"{name}.*--out"):
        write_folder(tmp_path, FIRST)
    assert [path.read_text() for path in tmp_path.iterdir() if path.is_file()] + [
        path.read_text() for path in tmp_path.glob("*/*")
    ] == ["mine"]


def test_what_was_changed_since_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path, FIRST)
    put(tmp_path / "tables/stsb-scores.csv", "changed")  # which the next report has not
    write_folder(tmp_path, SECOND)
    assert contents(tmp_path) == as_bytes(SECOND) | {"tables/stsb-scores.csv": b"changed"}
    put(tmp_path / "report.md", "changed")
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=r"changed since: tables/stsb-scores\.csv, report\.md\."):
        write_folder(tmp_path, FIRST)
    assert contents(tmp_path) == before
    (tmp_path / "report.md").unlink()
    (tmp_path / "tables/stsb-scores.csv").unlink()
    write_folder(tmp_path, FIRST)
    assert contents(tmp_path) == as_bytes(FIRST)


@pytest.mark.parametrize("name", ["tables", "figures", "index.html", "tables/stsb-scores.csv", MANIFEST])
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "r", FIRST)
    (tmp_path / "r" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "r" / name).symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=name):
        write_folder(tmp_path / "r", {**SECOND, "tables/stsb-scores.csv": "2"})
    assert contents(tmp_path) == before


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "index.html" / "mine")
    with pytest.raises(StoreError, match=r"index\.html"):
        write_folder(tmp_path, FIRST)
    assert contents(tmp_path) == {"index.html/mine": b"mine"}


def test_a_report_of_an_earlier_version_is_renewed(tmp_path: Path) -> None:
    write_folder(tmp_path, FIRST)
    (tmp_path / MANIFEST).unlink()
    put(tmp_path / "tables/cola-mistakes.tex", "a sentence that must not be handed on")
    put(tmp_path / "tables/mine.csv")
    write_folder(tmp_path, SECOND)
    assert contents(tmp_path) == as_bytes(SECOND) | {"tables/mine.csv": b"mine", "tables/stsb-scores.csv": b"1"}


@pytest.mark.parametrize("stop", range(7))
def test_a_report_that_was_killed_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    class Killed(BaseException):
        pass

    write = module.write_file
    left = stop

    def until_killed(path: Path, content: str | bytes) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        write(path, content)

    write_folder(tmp_path, FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_file", until_killed)
        with pytest.raises(Killed):
            write_folder(tmp_path, SECOND)
    write_folder(tmp_path, {**FIRST, "index.html": "third"})
    assert contents(tmp_path) == as_bytes({**FIRST, "index.html": "third"})


def damaged(manifest: str) -> str:
    return manifest[:-20]


def newer(manifest: str) -> str:
    return manifest.replace('"schema_version": 1', '"schema_version": 2')


@pytest.mark.parametrize("change", [damaged, newer])
def test_a_manifest_that_says_nothing_is_named(tmp_path: Path, change: Callable[[str], str]) -> None:
    write_folder(tmp_path, FIRST)
    (tmp_path / MANIFEST).write_text(change((tmp_path / MANIFEST).read_text()))
    with pytest.raises(StoreError, match=f"{MANIFEST} does not say"):
        write_folder(tmp_path, SECOND)
    assert contents(tmp_path) == as_bytes(FIRST)


def test_a_manifest_names_nothing_outside(tmp_path: Path) -> None:
    mine = put(tmp_path / "mine.csv")
    write_folder(tmp_path / "r", {**FIRST, "tables/../../mine.csv": "mine", "../mine.csv": "mine"})
    write_folder(tmp_path / "r", FIRST)
    assert mine.exists()


def test_several_reports_at_once_end_as_one(tmp_path: Path) -> None:
    writers = [
        threading.Thread(target=write_folder, args=(tmp_path, {**FIRST, "index.html": str(n)})) for n in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "index.html").read_text() in map(str, range(8))
    write_folder(tmp_path, SECOND)
    assert contents(tmp_path) == as_bytes(SECOND)


def test_a_file_in_the_place_of_the_folder_is_refused_and_a_link_to_one_is_used(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a directory"):
        write_folder(put(tmp_path / "file"), FIRST)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write_folder(tmp_path / "link", FIRST)
    assert contents(tmp_path / "new") == as_bytes(FIRST)
    assert os.path.islink(tmp_path / "link")
