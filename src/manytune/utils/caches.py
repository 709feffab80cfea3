"""The user's cache: where it is, and entries that are used only if they are as they were written.

An entry's name ends with the SHA-256 of its content: CACHE/encoded/<key>-<digest>.npz, CACHE/<key>-<digest>.so. An
entry that is damaged, or that another user could have written, is removed and made again: compiled kernels are code.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from manytune.utils.errors import StoreError
from manytune.utils.files import OTHERS_WRITE, open_regular, replacing, sweep_leftovers, trusted_users


def user_cache() -> Path:
    """The user's folder for files that may be deleted at any time; it may not exist yet.

    It is MANYTUNE_CACHE_DIR; else `manytune` in XDG_CACHE_HOME or in `~/.cache`; else a folder in the system's
    temporary directory with the user's number in its name: in a container a user may have no home. platformdirs has
    no such last choice.
    """
    if given := os.environ.get("MANYTUNE_CACHE_DIR"):
        return Path(os.path.expanduser(given)).absolute()
    if os.path.isabs(given := os.environ.get("XDG_CACHE_HOME", "")):  # XDG's specification: ignore a relative one
        return Path(given, "manytune")
    home = os.path.expanduser("~")  # unlike Path.home, it raises nothing where no home is known
    folder = Path(home, ".cache", "manytune")
    if os.path.isabs(home) and _can_be_written(folder):
        return folder
    try:
        return Path(tempfile.gettempdir(), f"manytune-{os.geteuid()}")
    except OSError:  # not even a temporary directory can be written
        return folder.absolute()


def settle_caches() -> None:
    """Where the home folder cannot hold caches, point libraries that have caches of their own to ours.

    Without a home, they would make a folder named `~` in the working directory. torch calls `getpass.getuser`, which
    fails for a user number without a name.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or not _can_be_written(Path(home, ".cache")):
        with suppress(StoreError):
            folder = own_folder(user_cache())
            os.environ["MANYTUNE_CACHE_DIR"] = str(folder)
            os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
            if not os.path.isabs(home):
                os.environ["HOME"] = str(folder)
            elif not os.path.exists(os.path.join(home, ".cache", "huggingface")):  # an existing one can still be read
                os.environ.setdefault("HF_HOME", str(folder / "huggingface"))
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.geteuid())


def own_folder(path: Path) -> Path:
    """Make a folder that only this user can write to; a StoreError where another user owns it or may write to it."""
    advice = "Name a folder of your own in MANYTUNE_CACHE_DIR."
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owners, mode = {path.stat().st_uid, path.lstat().st_uid}, path.stat().st_mode
    except OSError as error:
        raise StoreError(f"the folder {path} cannot be made: {error.strerror}. {advice}") from error
    if not owners <= trusted_users():
        raise StoreError(f"the folder {path} belongs to another user. {advice}")
    if mode & OTHERS_WRITE and "MANYTUNE_CACHE_DIR" not in os.environ and os.geteuid() in owners:
        with suppress(OSError):  # earlier versions made it with the umask's permissions
            path.chmod(stat.S_IMODE(mode) & ~OTHERS_WRITE)
            return path
    if mode & OTHERS_WRITE:
        raise StoreError(f"others can write to the folder {path}. Run `chmod go-w` on it. {advice}")
    return path


def _can_be_written(path: Path) -> bool:
    """Whether a folder can be written to, or made."""
    there = next(each for each in (path, *path.parents) if os.path.exists(each))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def read_entry(folder: Path, key: str, suffix: str) -> tuple[Path, bytes] | None:
    """An entry's file and content; None if there is none that is as it was written. `key` digests its inputs."""
    for path in sorted(folder.glob(f"{key}-*{suffix}")):
        content = b""
        with suppress(OSError), open_regular(path, own=True) as file:
            content = file.read()
        if path.name == _entry_name(key, content, suffix):
            return path, content
        with suppress(OSError):
            path.unlink()
    return None


def write_entry(folder: Path, key: str, content: bytes, suffix: str) -> Path:
    """Write an entry as a whole, and remove what killed processes left beside it; a StoreError where that fails."""
    sweep_leftovers(folder)
    path = folder / _entry_name(key, content, suffix)
    with replacing(path, private=True) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o600)  # whatever the umask: see `open_regular`
    return path


def _entry_name(key: str, content: bytes, suffix: str) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
