"""Files that are whole or not there: what the study directory, and the user's cache, are written with.

Every file is written under a temporary name, brought to the disk, and then renamed: a reader, or a start
after a crash, sees the old file or the new one, never a part of one.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from manytune.errors import StoreError

__all__ = [
    "MOST_BYTES",
    "open_regular",
    "read_bytes",
    "read_text",
    "replacing",
    "replacing_directory",
    "sync",
    "sync_tree",
    "user_cache",
    "write_atomically",
    "write_file",
    "writing",
]

MOST_BYTES = 2**26
"""Of a file that is read whole, where nobody says otherwise."""


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; one that holds the same already is left alone.

    Raises:
        StoreError: It cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    if read_bytes(path) != data:
        write_atomically(path, data)


def read_text(path: Path, most: int = MOST_BYTES, *, pipe: bool = False) -> str | None:
    """The text of a file in UTF-8; None if it is not there. As `read_bytes`."""
    data = read_bytes(path, most, pipe=pipe)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} cannot be read: it is not a text file in UTF-8 (byte {error.start}).") from error


def read_bytes(path: Path, most: int = MOST_BYTES, *, pipe: bool = False) -> bytes | None:
    """The content of a file; None if it is not there.

    Args:
        path: The file.
        most: Bytes that it may have.
        pipe: Whether it may be a pipe, which is waited for.

    Raises:
        StoreError: It cannot be read, is larger, or is no regular file.
    """
    try:
        with open_regular(path, pipe=pipe) as file:
            large = os.fstat(file.fileno()).st_size > most
            data = b"" if large else file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a ValueError of a name with a null character
        raise StoreError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if large or len(data) > most:
        raise StoreError(f"{path} cannot be read: it has more than {most:,} bytes.")
    return data


def open_regular(path: Path, *, pipe: bool = False) -> BufferedReader:
    """Open a file for reading, and nothing that would have to be waited for or never ends.

    Args:
        path: The file.
        pipe: Whether it may be a pipe as well, which is waited for.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if pipe else os.O_NONBLOCK))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or (pipe and stat.S_ISFIFO(mode)):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no regular file", str(path))


def user_cache() -> Path:
    """The user's folder for what may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manytune"


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
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe there would be waited for
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a directory
            raise
    finally:
        os.close(handle)
