"""Where the user's cache is, and from which folders and files nothing is taken."""

from __future__ import annotations

import getpass
import os
import pwd
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

from manytune.utils import caches, files
from manytune.utils.caches import own_folder, settle_caches, user_cache
from manytune.utils.errors import StoreError
from manytune.utils.files import open_regular

VARIABLES = ("MANYTUNE_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "MPLCONFIGDIR", "HF_HOME", "USER", "LOGNAME", "LNAME")


def unknown(*_: Any) -> NoReturn:
    raise KeyError("uid not found")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a home, in an environment that says nothing of one."""
    for name in (*VARIABLES, "USERNAME"):
        monkeypatch.setenv(name, "")  # so that whatever a test sets is gone after it
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder / f"manytune-{os.geteuid()}"


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"HOME": "home"}, "home/.cache/manytune"),
        ({"HOME": "home", "XDG_CACHE_HOME": "xdg"}, "xdg/manytune"),
        ({"HOME": "home", "XDG_CACHE_HOME": "xdg", "MANYTUNE_CACHE_DIR": "own"}, "own"),
    ],
)
def test_the_environment_says_where(
    environment: dict[str, str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert user_cache() == tmp_path / place
    assert not user_cache().exists()


@pytest.mark.parametrize("home", [None, "", "relative", "FILE"])
def test_without_a_home_it_is_a_temporary_folder(
    home: str | None, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    if home is not None:
        monkeypatch.setenv("HOME", home.replace("FILE", str(tmp_path / "file")))
    if home == "":  # which means the root folder, and that root can write to
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == temporary


def test_a_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    made = own_folder(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    assert own_folder(made) == made


@pytest.mark.parametrize("mode", [0o770, 0o757, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(mode)
    with pytest.raises(StoreError, match=r"others can write to the folder .*chmod go-w.*MANYTUNE_CACHE_DIR"):
        own_folder(tmp_path)


def test_a_folder_of_ones_own_that_nobody_named_is_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions made it by the umask, which lets the group write on many systems."""
    monkeypatch.delenv("MANYTUNE_CACHE_DIR", raising=False)
    tmp_path.chmod(0o775)
    assert own_folder(tmp_path).stat().st_mode & 0o777 == 0o755


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "trusted_users", lambda: {os.geteuid() + 1})
    with pytest.raises(StoreError, match="belongs to another user"):
        own_folder(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot be made"):
            own_folder(path)


def read_own(path: Path) -> bytes:
    with open_regular(path, own=True) as file:
        return file.read()


def test_only_a_file_of_ones_own_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, link, pipe = (tmp_path / name for name in ("whole", "link", "pipe"))
    whole.write_bytes(b"content")
    whole.chmod(0o600)
    assert read_own(whole) == b"content"
    link.symlink_to(whole)
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path):
        with pytest.raises(OSError, match=r"symbolic|it is a pipe|directory"):
            read_own(path)
    whole.chmod(0o620)
    with pytest.raises(PermissionError, match="others can have written it"):
        read_own(whole)
    whole.chmod(0o600)
    monkeypatch.setattr(files, "trusted_users", lambda: {os.geteuid() + 1})
    with pytest.raises(PermissionError, match="others can have written it"):
        read_own(whole)


def test_libraries_find_a_place_where_there_is_no_home(temporary: Path) -> None:
    settle_caches()
    assert os.path.expanduser("~") == str(temporary)
    assert os.environ["MPLCONFIGDIR"] == str(temporary / "matplotlib")
    assert user_cache() == temporary
    assert getpass.getuser() == str(os.geteuid())


def test_a_home_that_cannot_be_written_is_still_read(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(caches, "_can_be_written", lambda path: False)
    hub = tmp_path / ".cache" / "huggingface"
    hub.mkdir(parents=True)
    settle_caches()
    assert os.environ["HOME"] == str(tmp_path)
    assert "HF_HOME" not in os.environ
    hub.rmdir()
    settle_caches()
    assert os.environ["HF_HOME"] == str(temporary / "huggingface")


def test_a_home_that_can_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "somebody")
    before = dict(os.environ)
    settle_caches()
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "temporary"]
