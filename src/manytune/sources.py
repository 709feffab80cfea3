"""The rows of a task as they come: from the built-in grammar, a local GLUE folder or the Hugging Face hub.

Whether a row can be right is for `data.py` to say; here it is only found, with words for its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from manytune.errors import DataError
from manytune.tasks import Task

__all__ = ["GLUE_DIR_VARIABLE", "RawRows", "read_rows"]

GLUE_DIR_VARIABLE = "MANYTUNE_GLUE_DIR"
"""The environment variable that names a local GLUE folder."""


class RawRows(NamedTuple):
    """The rows of a split, before any check."""

    texts: Sequence[tuple[str, ...]]
    """N rows of one or two sentences."""
    labels: Sequence[object]
    """N labels, as text or as numbers."""
    source: str
    """A path, `hub:nyu-mll/glue@<revision>`, or `builtin`."""
    place: Callable[[int], str]
    """Row index to the words that let a user find the row."""


def read_rows(task: Task, split: str, data_dir: str | None = None) -> RawRows:
    """Read one split of a task from the first source that has it; `data.load_split` gives the order.

    Raises:
        DataError: there is no such file or folder, the hub cannot be reached, or a file is malformed.
    """
    if task.hub is None:
        return _from_builtin(task, split)
    if data_dir is not None:
        root = Path(data_dir).expanduser()
        folder = _task_folder(task, root)
        if folder is None:
            raise DataError(_no_folder(task, root))
        return _from_folder(task, split, folder)
    from_environment = os.environ.get(GLUE_DIR_VARIABLE)
    if from_environment and (folder := _task_folder(task, Path(from_environment).expanduser())):
        return _from_folder(task, split, folder)
    return _from_hub(task, split)


def _from_builtin(task: Task, split: str) -> RawRows:
    from manytune.builtin import acceptability, similarity

    grammars: dict[str, Callable[[Any], Sequence[tuple[Any, ...]]]] = {
        "builtin-acceptability": acceptability,
        "builtin-similarity": similarity,
    }
    rows = grammars[task.name](split)
    width = len(task.text_columns)
    return RawRows(
        texts=[tuple(row[:width]) for row in rows],
        labels=[row[width] for row in rows],
        source="builtin",
        place=lambda index: f"{task.name}, {split}, row {index + 1}",
    )


_FILE_NAMES = {"train": ("train.tsv",), "dev": ("dev.tsv", "validation.tsv")}


def _task_folder(task: Task, root: Path) -> Path | None:
    """The task's folder inside `root`, whatever its capitals: CoLA, cola, STS-B, stsb."""
    names = {(task.folder or "").lower(), task.name}
    return next((path for path in _listing(root) if path.is_dir() and path.name.lower() in names), None)


def _listing(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise DataError(f"{root}: cannot be listed: {error.strerror or error}") from error


def _no_folder(task: Task, root: Path) -> str:
    needed = f"it must be a folder that holds {task.folder}/train.tsv and {task.folder}/dev.tsv"
    if not root.is_dir():
        return f"data_dir: {root} is not a folder; {needed}"
    found = ", ".join(path.name for path in _listing(root)[:20]) or "nothing"
    return f"data_dir: {root} holds nothing for task {task.name}, but: {found}; {needed}"


def _from_folder(task: Task, split: str, folder: Path) -> RawRows:
    names = _FILE_NAMES[split]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder}: no {' or '.join(names)} for the {split} split of task {task.name}")
    lines = _lines(path)
    columns = task.file_columns or tuple(lines[0].split("\t"))
    first = 1 if task.file_columns else 2  # the line number of the first row
    text_at = [_column(columns, name, path) for name in task.text_columns]
    label_at = _column(columns, task.label_column, path)
    rows = [_fields(line, columns, path, number) for number, line in enumerate(lines[first - 1 :], start=first)]
    return RawRows(
        texts=[tuple(row[at] for at in text_at) for row in rows],
        labels=[row[label_at] for row in rows],
        source=str(path),
        place=lambda index: f"{path}, line {index + first}",
    )


def _lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file; only \n and \r\n end one, for the text may hold U+2028 and the like."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not valid UTF-8; "
            "save the file as UTF-8, or take GLUE's own"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; take GLUE's own")
    return [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]


def _column(columns: Sequence[str], name: str, path: Path) -> int:
    if name in columns:
        return columns.index(name)
    raise DataError(f"{path}, line 1: no column {name!r}; the columns found are: {', '.join(columns)}")


def _fields(line: str, columns: Sequence[str], path: Path, number: int) -> list[str]:
    # Quoting is off: in GLUE's files a double quote is a character like any other.
    fields = line.split("\t")
    if len(fields) == len(columns):
        return fields
    raise DataError(
        f"{path}, line {number}: {len(fields)} tab-separated fields, but {len(columns)} are needed: "
        f"{', '.join(columns)}"
    )


_HUB_LABEL = "label"


def _from_hub(task: Task, split: str) -> RawRows:
    assert task.hub is not None
    name, configuration = task.hub
    hub_split = task.hub_splits[split]
    where = f"{name} ({configuration}), split {hub_split!r}"
    try:
        table, revision = _load_table(name, configuration, hub_split)
    # Whatever keeps the hub or its cache from answering (connection, proxy, disk, a damaged cache, the
    # library's many exceptions) has the same cure for the user, and belongs in one message.
    except Exception as error:
        raise DataError(_unreachable(task, where, error)) from error
    missing = [column for column in (*task.text_columns, _HUB_LABEL) if column not in table.column_names]
    if missing:
        found = ", ".join(table.column_names)
        raise DataError(f"{where}: no column {', '.join(map(repr, missing))}; the columns found are: {found}")
    columns = [[text or "" for text in table[column]] for column in task.text_columns]
    return RawRows(
        texts=list(zip(*columns, strict=True)),
        labels=list(table[_HUB_LABEL]),
        source=f"hub:{name}@{revision}" if revision else f"hub:{name}",
        place=lambda index: f"{where}, row {index + 1}",
    )


def _load_table(name: str, configuration: str, split: str) -> tuple[Any, str | None]:
    """Load a split from the hub or from its caches, with the commit that it was read at, if known."""
    import datasets
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _quiet(datasets):
        try:
            table = datasets.load_dataset(name, configuration, split=split)
            return table, _revision(file["filename"] for file in table.cache_files)
        except ConnectionError as unreachable:
            # Offline, `datasets` reads its own cache alone, not the hub's, which `hf download` fills.
            try:
                snapshot = Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
            except LocalEntryNotFoundError:
                raise unreachable from None
            files = sorted(str(path) for path in (snapshot / configuration).glob(f"{split}-*.parquet"))
            if not files:
                raise
            return datasets.Dataset.from_parquet(files), _revision(files)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep progress bars and remarks about the cache off the terminal; the study draws its own."""
    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _revision(paths: Iterable[str]) -> str | None:
    """The commit that names a folder on the way to a cached file; None if there is none."""
    parts = (part for path in paths for part in reversed(Path(path).parts))
    return next((part for part in parts if re.fullmatch(r"[0-9a-f]{40}", part)), None)


def _unreachable(task: Task, where: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    given = os.environ.get(GLUE_DIR_VARIABLE)
    note = f"\n{GLUE_DIR_VARIABLE} names {given}, which holds no folder {task.folder}." if given else ""
    return (
        f"task {task.name}: cannot load {where} from the Hugging Face hub ({reason}).{note}\n"
        f"Without the hub, give a folder that holds {task.folder}/train.tsv and {task.folder}/dev.tsv "
        f"(GLUE's own files), as data_dir: in the study or in the environment as {GLUE_DIR_VARIABLE}; "
        "or use the built-in tasks, which need no download: builtin-acceptability, builtin-similarity."
    )
