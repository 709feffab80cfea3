"""Files that take the place of others, and what killed processes leave of them."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from manytune.storage.directory import Store
from manytune.utils import files
from manytune.utils.files import replacing, replacing_directory, sweep_leftovers, write_atomically

KILLED = """
import os, signal, sys
from pathlib import Path
from manytune.utils.files import replacing, replacing_directory
with {writer}(Path(sys.argv[1])) as temporary:
    (temporary / "new" if temporary.is_dir() else temporary).write_text("half")
    {before}
    os.kill(os.getpid(), signal.SIGKILL)
"""
BETWEEN = "os.rename(sys.argv[1], temporary.with_suffix('.old'))"
LONG_AGO = time.time() - 2 * 24 * 3600


def killed(path: Path, writer: str = "replacing", before: str = "") -> None:
    """Have a process killed while it writes."""
    program = KILLED.format(writer=writer, before=before)
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -9
    assert leftovers(path.parent)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix in (".tmp", ".old")]


def test_the_next_write_removes_what_killed_ones_left_of_the_same_file_alone(tmp_path: Path) -> None:
    killed(tmp_path / "a.csv")
    killed(tmp_path / "b.csv")
    write_atomically(tmp_path / "a.csv", "whole")
    assert [name[:6] for name in leftovers(tmp_path)] == [".b.csv"]
    sweep_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["a.csv"]


def test_what_lives_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with replacing(path) as mine, replacing_directory(tmp_path / "d") as folder:
        (folder / "x").write_text("x")
        mine.write_text("first")
        for each in (mine, folder):
            os.utime(each, (LONG_AGO, LONG_AGO))
        write_atomically(path, "second")
        sweep_leftovers(tmp_path, alone=True)
        assert mine.exists()
        assert (folder / "x").exists()
    assert path.read_text() == "first"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", [".a.csv.0badcafe.tmp", ".a.csv.zzzz0badcafe.tmp", ".a.csv.00000badcafe.tmp"])
def test_of_another_machine_or_an_earlier_version_only_what_is_old_goes(tmp_path: Path, name: str) -> None:
    left = tmp_path / name
    left.write_text("half")
    write_atomically(tmp_path / "a.csv", "whole")
    assert left.exists()
    os.utime(left, (LONG_AGO, LONG_AGO))
    write_atomically(tmp_path / "a.csv", "whole again")
    assert left.exists() == ("zzzz" in name)  # which is no name of ours


def test_where_locks_are_unknown_only_what_is_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(handle: int, operation: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    path = tmp_path / "a.csv"
    with replacing(path) as mine:
        mine.write_text("first")
        sweep_leftovers(tmp_path, alone=True)
        assert mine.exists()
    killed(path)
    (left,) = leftovers(tmp_path)
    os.utime(tmp_path / left, (LONG_AGO, LONG_AGO))
    sweep_leftovers(tmp_path)
    assert leftovers(tmp_path) == []


def test_a_link_that_is_named_like_a_leftover_stays(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    link = tmp_path / ".a.csv.0badcafe.tmp"
    link.symlink_to(precious)
    sweep_leftovers(tmp_path, alone=True)
    assert link.is_symlink()
    assert (precious / "file").exists()


def test_a_directory_that_was_set_aside_is_put_back(tmp_path: Path) -> None:
    there = tmp_path / "best"
    there.mkdir()
    (there / "only copy").touch()
    killed(there, "replacing_directory", BETWEEN)
    assert not there.exists()
    sweep_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["best"]
    assert os.listdir(there) == ["only copy"]


def test_a_directory_that_was_replaced_is_not_put_back(tmp_path: Path) -> None:
    there = tmp_path / "best"
    there.mkdir()
    (there / "old").touch()
    killed(there, "replacing_directory", f"{BETWEEN}; os.rename(temporary, sys.argv[1])")
    with replacing_directory(there) as temporary:
        (temporary / "newer").touch()
    assert os.listdir(tmp_path) == ["best"]
    assert os.listdir(there) == ["newer"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + "x.csv")
    assert len(os.fsencode(path.name)) == 255
    killed(path)
    write_atomically(path, "whole")
    assert os.listdir(tmp_path) == [path.name]


def test_permissions_of_what_is_replaced_are_kept(tmp_path: Path) -> None:
    path, new, folder = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "d"
    path.touch()
    path.chmod(0o640)
    folder.mkdir(mode=0o700)
    before = os.umask(0o027)
    try:
        write_atomically(path, "text")
        write_atomically(new, "text")
        with replacing_directory(folder) as temporary:
            (temporary / "x").touch()
    finally:
        os.umask(before)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, new, folder)] == [0o640, 0o640, 0o700]


def test_a_library_that_writes_for_the_owner_alone_makes_ordinary_files_all_the_same(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "a.safetensors") as path:
            save_file({"x": torch.zeros(1)}, path)
        with replacing_directory(tmp_path / "folder") as folder:
            save_file({"x": torch.zeros(1)}, folder / "b.safetensors")
            (folder / "b.safetensors").chmod(0o600)  # as safetensors may or may not do
    finally:
        os.umask(before)
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert [stat.S_IMODE(each.stat().st_mode) for each in files] == [0o644, 0o644]


def test_a_study_is_swept_but_for_what_others_write_in_it(tmp_path: Path) -> None:
    names = [f"runs/r/.record.json.{files._machine()}0badcafe.tmp", "packs/p/.1.json.0badcafe.tmp", ".lock.ab.tmp"]
    others = ["report/.index.html.0badcafe.tmp", ".notes.old", "runs/.mine.tmp"]
    for name in (*names, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with replacing(tmp_path / "report" / "report.md") as page:
        page.touch()
        Store(tmp_path).sweep()
    assert [name for name in names if (tmp_path / name).exists()] == []
    assert all((tmp_path / name).exists() for name in others)
    assert (tmp_path / "report" / "report.md").exists()
