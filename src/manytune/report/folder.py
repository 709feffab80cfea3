"""The folder of a report: only files that a report wrote are replaced or removed there.

DIR/report-files.json lists them with their digests. It is written before the other files, with their old and new
digests, and again after them: so the files of a report that was killed in between are known too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path

from manytune.utils.errors import StoreError
from manytune.utils.files import locked, read_bytes, sweep_leftovers, write_file, writing
from manytune.utils.text import listed, parse_json

MANIFEST = "report-files.json"

_VERSION = 1
_SENTENCES = ("mistakes", "disagreements")  # tables that hold dev sentences
_NAME = re.compile(r"(?:tables|figures)/[^/]+|report\.md|summary\.json|index\.html")

Digests = dict[str, set[str]]
"""Path inside the folder → SHA-256 of every content that a report may have left there."""


def write_folder(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write a report's files, path inside the folder → content, and the manifest; remove the rest of an earlier report.

    Raises:
        StoreError: They cannot be written, or a file that no report wrote is in their way; then nothing has changed.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is not a directory. Give another --out.")
    with writing(folder):
        os.makedirs(os.path.realpath(folder), exist_ok=True)
        with locked(folder):  # `run` may write its report while `report --watch` does
            new = {name: {_digest(content)} for name, content in files.items()}
            before = _written(folder, new)
            either = {name: before.get(name, set()) | new.get(name, set()) for name in (*new, *before)}
            _refuse_others(folder, {name: either[name] for name in new})
            for each in (folder, folder / "tables", folder / "figures"):
                sweep_leftovers(each)
            write_file(folder / MANIFEST, _manifest(either))
            for name, content in files.items():
                write_file(folder / name, content)
            for name in before.keys() - new.keys():
                if _found(folder / name) in before[name]:
                    (folder / name).unlink()
            write_file(folder / MANIFEST, _manifest(new))


def _written(folder: Path, names: Collection[str]) -> Digests:
    """What earlier reports wrote, as their manifest says."""
    if not os.path.lexists(folder / MANIFEST):
        return _written_by_earlier_version(folder, names)
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes() if _found(folder / MANIFEST) else b"")
        if manifest["schema_version"] != _VERSION:
            raise ValueError
        files = manifest["files"]
        return {name: set(map(str, files[name])) for name in files if _NAME.fullmatch(name)}
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f"{folder / MANIFEST} does not say what an earlier report wrote. Delete the report, or give another --out."
        ) from None


def _written_by_earlier_version(folder: Path, names: Collection[str]) -> Digests:
    """What a version without manifests wrote, if the summary.json there is one of its summaries.

    These are the files of the names that are written now, and the tables of dev sentences, which may have to go now.
    """
    try:
        summary = parse_json(read_bytes(folder / "summary.json") or b"")
        if summary.keys() != {"schema_version", "studies", "complete", "tasks", "waiting"}:
            return {}
        keys = [str(task["key"]) for task in summary["tasks"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    tables = (f"tables/{key}-{table}.{form}" for key, table, form in product(keys, _SENTENCES, ("csv", "tex")))
    known = (name for name in (*names, *tables) if _NAME.fullmatch(name))
    return {name: {digest} for name in known if (digest := _found(folder / name))}


def _refuse_others(folder: Path, known: Digests) -> None:
    """Refuse where links, folders, or files whose digest is not a known one, are in the way of the known files."""
    for each in (folder / "tables", folder / "figures"):
        if os.path.lexists(each) and not stat.S_ISDIR(each.lstat().st_mode):
            raise StoreError(
                f"{each} is a link or no folder; a report does not write there. Move it, or give another --out."
            )
    present = (name for name in known if os.path.lexists(folder / name))
    if others := [name for name in present if _found(folder / name) not in known[name]]:
        raise StoreError(
            f"{folder} holds files that no report wrote, or that were changed since: {listed(others, 3)}. "
            "Move them, or give another folder as --out."
        )


def _found(path: Path) -> str | None:
    """The digest of a regular file; None for a link, a folder or nothing."""
    if not os.path.lexists(path) or not stat.S_ISREG(path.lstat().st_mode):
        return None
    return _digest(path.read_bytes())


def _manifest(digests: Digests) -> str:
    listed = {name: sorted(digests[name]) for name in sorted(digests)}
    return json.dumps({"schema_version": _VERSION, "files": listed}, indent=2, ensure_ascii=False) + "\n"


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
