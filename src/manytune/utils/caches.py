"""The user's cache: where it is, and entries that are used only as they were written.

An entry's name ends with the SHA-256 of its content: CACHE/encoded/<key>-<digest>.npz, CACHE/<key>-<digest>.so.
One that is damaged, or that others could have written, is removed and made anew.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from manytune.utils.errors import StoreError
from manytune.utils.files import replacing, sweep_leftovers

__all__ = ["own_folder", "read_entry", "read_own", "settle_caches", "user_cache", "write_entry"]

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


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
    """Make a folder that only this user can write to; what others can write to may hold anything.

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
    if mode & _OTHERS_WRITE and "MANYTUNE_CACHE_DIR" not in os.environ and os.geteuid() in owners:
        with suppress(OSError):  # an earlier version made it, by the user's umask
            path.chmod(stat.S_IMODE(mode) & ~_OTHERS_WRITE)
            return path
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


def _trusted() -> set[int]:
    return {0, os.geteuid()}


def _can_be_written(path: Path) -> bool:
    """Whether a folder can be written to, or made."""
    there = next(each for each in (path, *path.parents) if os.path.exists(each))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def read_entry(folder: Path, key: str, suffix: str) -> tuple[Path, bytes] | None:
    """An entry's file and content; None if there is none that is as it was written.

    Args:
        folder: Where it is.
        key: All that its content depends on, as a digest.
        suffix: Its ending, such as `.npz`.
    """
    for path in sorted(folder.glob(f"{key}-*{suffix}")):
        content = b""
        with suppress(OSError):
            content = read_own(path)
        if path.name == _entry_name(key, content, suffix):
            return path, content
        with suppress(OSError):
            path.unlink()
    return None


def write_entry(folder: Path, key: str, content: bytes, suffix: str) -> Path:
    """Write an entry, whole or not at all; what killed processes left half-written beside it is removed.

    Raises:
        StoreError: It cannot be written.
    """
    sweep_leftovers(folder)
    path = folder / _entry_name(key, content, suffix)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o600)  # whatever the umask: see `read_own`
    return path


def _entry_name(key: str, content: bytes, suffix: str) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
