"""Files that are whole or not there: what the study directory, and the user's cache, are written with.

Every file is written under a temporary name, brought to the disk, and then renamed: a reader, or a start
after a crash, sees the old file or the new one, never a part of one.
"""

from __future__ import annotations

import errno
import getpass
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from manytune.errors import StoreError

__all__ = [
    "own_folder",
    "read_bytes",
    "read_own",
    "read_text",
    "replacing",
    "replacing_directory",
    "settle_caches",
    "sync",
    "sync_tree",
    "user_cache",
    "write_atomically",
    "write_file",
    "writing",
]


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; one that holds the same already is left alone.

    Raises:
        StoreError: It cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    if read_bytes(path) != data:
        write_atomically(path, data)


def read_text(path: Path) -> str | None:
    """The text of a file; None if it is not there."""
    data = read_bytes(path)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error


def read_bytes(path: Path) -> bytes | None:
    """The content of a file; None if it is not there."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error


def user_cache() -> Path:
    """The user's folder for what may be deleted at any time; it need not be there yet.

    It is MANYTUNE_CACHE_DIR; else `manytune` in XDG_CACHE_HOME, or in the home folder's `.cache`; else, as in a
    container whose user has no home, a folder among the temporary files that has the user's number in its name.
    """
    if given := os.environ.get("MANYTUNE_CACHE_DIR"):
        return Path(os.path.expanduser(given)).absolute()
    if os.path.isabs(given := os.environ.get("XDG_CACHE_HOME", "")):  # a relative one is to be ignored, says XDG
        return Path(given, "manytune")
    home = os.path.expanduser("~")  # unlike Path.home, it raises nothing where no home is known
    folder = Path(home, ".cache", "manytune")
    if os.path.isabs(home) and _can_be_written(folder):
        return folder
    try:
        return Path(tempfile.gettempdir(), f"manytune-{os.geteuid()}")
    except OSError:  # no folder at all can be written
        return folder.absolute()


def settle_caches() -> None:
    """Where the home folder cannot hold caches, give libraries that have caches of their own another place.

    Without a home `~` would become a folder below the working one, and without a name in the system's list of users
    `getpass.getuser` raises an error.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or not _can_be_written(Path(home, ".cache")):
        with suppress(StoreError):
            folder = own_folder(user_cache())
            os.environ["MANYTUNE_CACHE_DIR"] = str(folder)
            os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
            if not os.path.isabs(home):
                os.environ["HOME"] = str(folder)
            elif not os.path.exists(os.path.join(home, ".cache", "huggingface")):  # what is there can still be read
                os.environ.setdefault("HF_HOME", str(folder / "huggingface"))
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.geteuid())


def own_folder(path: Path) -> Path:
    """Make a folder that only this user can write to; what is in one of others may be anything.

    Raises:
        StoreError: It cannot be made, belongs to another user, or can be written by others.
    """
    advice = "Name a folder of your own in MANYTUNE_CACHE_DIR."
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owners, mode = {path.stat().st_uid, path.lstat().st_uid}, path.stat().st_mode
    except OSError as error:
        raise StoreError(f"the folder {path} cannot be made: {error.strerror}. {advice}") from error
    if not owners <= _trusted():
        raise StoreError(f"the folder {path} belongs to another user. {advice}")
    if mode & _OTHERS_WRITE:
        raise StoreError(f"others can write to the folder {path}. Run `chmod go-w` on it. {advice}")
    return path


def read_own(path: Path) -> bytes:
    """The content of a regular file that only this user, or root, can have written.

    Raises:
        OSError: It cannot be read, or is something else.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # neither a link nor a pipe that blocks
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in _trusted() or status.st_mode & _OTHERS_WRITE:
            raise PermissionError(errno.EPERM, "others can have written it", str(path))
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def _trusted() -> set[int]:
    return {0, os.geteuid()}


def _can_be_written(path: Path) -> bool:
    """Whether a folder can be written to, or made."""
    there = next(each for each in (path, *path.parents) if os.path.exists(each))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an error for the user."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or path} cannot be written: {error.strerror or error}. "
            "Check its permissions and the free space, or give another --out."
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is whole or as it was before, even if the machine stops at any moment."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write a file at, which then takes the place of `path`: whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # same directory: a rename, no copy
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Give a directory to fill, which then takes the place of `path`: whole, or not at all.

    Raises:
        OSError: It cannot be written; what was there before is there again.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    old = temporary.with_suffix(".old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        sync_tree(temporary)
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_tree(directory: Path) -> None:
    """Bring to the disk every file below a directory, and their names."""
    for folder, _, files in os.walk(directory):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def sync(path: Path) -> None:
    """Bring a file's content, or a directory's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a directory
            raise
    finally:
        os.close(handle)
