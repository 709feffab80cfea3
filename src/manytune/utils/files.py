"""Files that are whole or not there: the study directory and the user's cache are written with these functions.

Every file is written under a temporary name, synced to the disk, and then renamed: a reader, or a process that starts
after a crash, sees the old file or the new one, never a part of one. The filelock package is no help here: the lock
must be on the temporary file itself, and must tell a dead writer's file from a living one's.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import TextIO

from manytune.utils.errors import StoreError

# Earlier versions wrote 8 digits.
_LEFTOVER = re.compile(r"\.(?P<stem>.+)\.(?P<token>[0-9a-f]{8}|[0-9a-f]{12})\.(?P<kind>tmp|old)", re.DOTALL)
_LONGEST_STEM = 255 - len("..123456789abc.tmp")
"""Bytes; file systems allow names of 255."""

_ABANDONED_SECONDS = 24 * 3600.0
"""The age at which a temporary counts as abandoned, where locks cannot tell."""

MOST_BYTES = 2**26
"""The largest file that is read whole, unless the caller gives another limit."""

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file as a whole unless it holds the same already; a StoreError where it cannot be written."""
    data = content.encode() if isinstance(content, str) else content
    try:
        same = read_bytes(path, len(data)) == data
    except StoreError:  # longer, or unreadable: it is replaced
        same = False
    if not same:
        write_atomically(path, data)


def read_text(path: Path, most: int = MOST_BYTES, *, pipe: bool = False) -> str | None:
    """The text of a file in UTF-8; None if it is not there. As `read_bytes`."""
    data = read_bytes(path, most, pipe=pipe)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} cannot be read: it is not a text file in UTF-8 (byte {error.start}).") from error


def read_bytes(path: Path, most: int = MOST_BYTES, *, pipe: bool = False) -> bytes | None:
    """The content of a file, or with `pipe` of a pipe, which is waited for; None if it is not there.

    A StoreError says that it cannot be read, has more than `most` bytes, or is no regular file.
    """
    try:
        with open_regular(path, pipe=pipe) as file:
            large = os.fstat(file.fileno()).st_size > most
            data = b"" if large else file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: the name has a null character
        raise StoreError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if large or len(data) > most:
        raise StoreError(f"{path} cannot be read: it has more than {most:,} bytes.")
    return data


def open_regular(path: Path, *, pipe: bool = False, own: bool = False) -> BufferedReader:
    """Open a regular file for reading; a pipe, which would have to be waited for, only with `pipe`.

    An OSError says that it cannot be opened, is another kind of file, or, with `own`, is a link or a file that another
    user (but root) could have written.
    """
    handle = os.open(path, os.O_RDONLY | (0 if pipe else os.O_NONBLOCK) | (os.O_NOFOLLOW if own else 0))
    status = os.fstat(handle)
    mode = status.st_mode
    if own and (status.st_uid not in trusted_users() or mode & OTHERS_WRITE):
        os.close(handle)
        raise PermissionError(errno.EPERM, "others can have written it", str(path))
    if stat.S_ISREG(mode) or (pipe and stat.S_ISFIFO(mode)):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no regular file", str(path))


def trusted_users() -> set[int]:
    """Numbers of the users whose files are believed: root and this one."""
    return {0, os.geteuid()}


def digest_of(path: Path) -> str:
    """The SHA-256 of a file; an OSError where it cannot be read or is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an error for the user."""
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe closed it: no error, as for `head`
        raise
    except OSError as error:
        name = Path(os.fsdecode(error.filename or path))
        raise StoreError(
            f"{path if _LEFTOVER.fullmatch(name.name) else name} cannot be written: {error.strerror or error}. "
            "Check its permissions and the free space, or give another --out."
        ) from error


def check_output(path: Path, *, streams: bool = False) -> None:
    """Refuse a path that a user gave for output and that cannot be written as a file, before anything is computed.

    A link stands for the file that it leads to. With `streams`, a device such as /dev/null or a named pipe will do. The
    refusal is a StoreError.
    """
    real = Path(os.path.realpath(path))
    folder = next(each for each in real.parents if os.path.exists(each))
    if not folder.is_dir():
        raise StoreError(f"{folder} cannot be written into: it is not a directory. Give another name than {path}.")
    with writing(path), suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if streams and is_stream(path):
            return
        if is_stream(path) or not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "a device or a pipe, or where our own output goes"
            raise StoreError(f"{path} is {what}; give the name of a file.")
    for each in (real, folder):
        if each.exists() and not os.access(each, os.W_OK):
            raise StoreError(
                f"{path} cannot be written: {each} is not writable. Change its permissions, or give another name."
            )


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or where our own output goes: no file may take its place."""
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode) or _own_output(found) is not None


def open_stream(path: Path) -> TextIO:
    """Open a path that `is_stream`, to write UTF-8 to it; an OSError where it cannot be written."""
    if sys.stdout is not None:  # it is None where the caller closed it
        sys.stdout.flush()
    number = _own_output(path.stat())
    # Opening by name a file that the shell opened for us would write from its beginning, over what is there.
    return open(path if number is None else os.dup(number), "w", encoding="utf-8", newline="")


def _own_output(found: os.stat_result) -> int | None:
    """Which of standard output and standard error goes to a file; None if neither does."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(found, os.fstat(number)):
                return number
    return None


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Like `replacing`, for a file that a user names: a link stays, and the file that it leads to is replaced."""
    check_output(path)
    with replacing(Path(os.path.realpath(path))) as new:
        yield new


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is whole or as it was before, even if the machine stops at any moment."""
    with replacing(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary path to write a file at, which then takes the place of `path`: whole, or not at all.

    A file that is there hands on its permissions and its owner; a new one has those that the umask says, or, if it is
    `private`, those that the caller gives the temporary file. What killed processes left of the same file is removed.
    A StoreError says that it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as new:
            usual = stat.S_IMODE(new.stat().st_mode)
            _hand_on_permissions(path, new, stat.S_IRUSR | stat.S_IWUSR)
            yield new
            # A file that is there hands on its own permissions below; until then nobody else may read the new content.
            sync(new, 0 if private or path.exists() else usual)
            _hand_on_permissions(path, new)
            os.replace(new, path)
        sync(path.parent)


@contextmanager
def replacing_directory(path: Path, *, empty: bool = False) -> Iterator[Path]:
    """Give a directory to fill, which then replaces `path`, if that is there: whole, or not at all.

    With `empty`, a directory that is not empty is not replaced. An OSError says that it cannot be written; what was
    there before is there again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary(path, directory=True) as new:
        yield new
        sync_tree(new, new.stat().st_mode & 0o666)
        _hand_on_permissions(path, new)
        try:
            new.rename(path)
            return
        except OSError as error:
            if empty or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # Two renames, as no portable call exchanges two directories. A process killed between them leaves the only
        # copy as `.old`; `sweep_leftovers` puts it back, unless the lock says that this process still lives.
        old = new.with_suffix(".old")
        with locked(path):
            path.rename(old)
            try:
                new.rename(path)
            except OSError:
                old.rename(path)
                raise
        shutil.rmtree(old, ignore_errors=True)


def sweep_leftovers(folder: Path, *, only: Path | None = None, alone: bool = False) -> None:
    """Remove what killed processes left half-written in a folder (not below it), and put back what they set aside.

    What a living process is writing now stays, whichever process, thread or machine it is of. Nothing is raised: what
    cannot be removed stays too.

    Args:
        folder: Where to look; it may be missing.
        only: The one file or directory in it whose leftovers are meant; None for all.
        alone: Whether no other machine writes there, because the caller holds the directory's lock.
    """
    start = "." if only is None else f".{_stem(only)}."
    with suppress(OSError):
        for name in os.listdir(folder):
            found = _LEFTOVER.fullmatch(name) if name.startswith(start) else None
            if found is None or (only is not None and found["stem"] != _stem(only)):
                continue
            path, target = folder / name, only or folder / found["stem"]
            local = alone or found["token"].startswith(_machine())
            with suppress(OSError), _abandoned(path, local=local) as abandoned:
                if not abandoned:
                    continue
                if found["kind"] == "old" and not os.path.lexists(target):
                    path.rename(target)
                elif path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def left_over(path: Path, *, alone: bool = False) -> bool:
    """Whether a file or directory named *.tmp or *.old is half-written and no living process goes on with it.

    A name that is not quite one of ours is believed to be; but one *.old only where what took its place is there.
    """
    found = _LEFTOVER.fullmatch(path.name)
    if path.suffix == ".old" and (found is None or not os.path.lexists(path.with_name(found["stem"]))):
        return False
    local = alone or found is None or found["token"].startswith(_machine())
    with suppress(OSError), _abandoned(path, local=local) as abandoned:
        return abandoned
    return False


@contextmanager
def _abandoned(path: Path, *, local: bool) -> Iterator[bool]:
    """Whether no living process writes a temporary file or directory; none begins to before the context ends.

    Its writer holds a lock (flock) on it, which ends with the process, however that ends. A lock that is free is enough
    only where the writer was of this machine since its last start (`local`): file systems that machines share may have
    no locks, or keep them to one machine. Elsewhere, what nobody has touched for a day is abandoned too. An OSError
    says that the file is gone or may not be read.
    """
    found = path.lstat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # a link, say: never ours
        yield False
        return
    old = time.time() - found.st_mtime > _ABANDONED_SECONDS
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            abandoned = local or old
        except BlockingIOError:  # its writer lives
            abandoned = False
        except OSError:  # no locks on this file system
            abandoned = old
        yield abandoned
    finally:
        os.close(handle)


@contextmanager
def temporary(path: Path, *, directory: bool = False) -> Iterator[Path]:
    """A new temporary file or directory beside `path`, on the same file system; removed unless it was renamed."""
    sweep_leftovers(path.parent, only=path)
    while True:
        new = path.with_name(f".{_stem(path)}.{_machine()}{os.urandom(4).hex()}.tmp")
        if directory:
            new.mkdir()
        else:
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        with locked(new) as mine:
            if not mine:  # somebody swept between the two calls
                continue
            try:
                yield new
            finally:
                if directory:
                    shutil.rmtree(new, ignore_errors=True)
                else:
                    new.unlink(missing_ok=True)
            return


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock on a file or directory, if the file system has locks; gives whether the path is still there."""
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS wants the right to write for a lock
    except FileNotFoundError:
        yield False
        return
    try:
        with suppress(OSError):  # no locks on this file system: `sweep_leftovers` goes by the age of the file
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield os.path.lexists(path) and os.path.samestat(os.fstat(handle), path.lstat())
    finally:
        os.close(handle)


def _hand_on_permissions(path: Path, new: Path, more: int = 0) -> None:
    """Give a temporary the owner and permissions of what it replaces, and the permissions `more`, where allowed."""
    with suppress(OSError):
        found = path.stat()
        with suppress(PermissionError):
            os.chown(new, found.st_uid, found.st_gid)
        new.chmod(stat.S_IMODE(found.st_mode) | more)


def _stem(path: Path) -> str:
    """A file's name as its temporaries have it, which must not be longer than file systems allow."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= _LONGEST_STEM else hashlib.sha256(name).hexdigest()


@cache
def _machine() -> str:
    """Four digits for this machine since its last start; processes in its containers have the same."""
    return hashlib.sha256((boot_id() or os.uname().nodename).encode()).hexdigest()[:4]


def boot_id() -> str | None:
    """What tells this machine since its last start from every other; None where the system has no such id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def sync_tree(directory: Path, allow: int = 0) -> None:
    """Bring to the disk every file below a directory, with the permissions `allow` added, and their names."""
    for folder, _, files in os.walk(directory):
        for name in files:
            sync(Path(folder, name), allow)
        sync(Path(folder))


def sync(path: Path, allow: int = 0) -> None:
    """Bring a file's content, or a directory's names, to the disk; `allow` are permissions to add to its own."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe there would be waited for
    try:
        if allow:  # safetensors writes its files for their owner alone
            os.fchmod(handle, stat.S_IMODE(os.fstat(handle).st_mode) | allow)
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a directory
            raise
    finally:
        os.close(handle)
