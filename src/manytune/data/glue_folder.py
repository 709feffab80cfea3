"""Read a task from a local folder in GLUE's own layout, each file with its quirks; quoting is off everywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from manytune.data.rows import RawRows
from manytune.data.tasks import UNLABELLED, Task
from manytune.data.text_lines import open_lines, refuse_undecodable
from manytune.data.text_rows import HEADER_AGAIN, refuse_twice
from manytune.utils.errors import DataError
from manytune.utils.text import no_column

_CUT_BY_IDS = "msr_paraphrase_train.txt"
"""Microsoft's file, of which dev_ids.tsv says which rows are dev: GLUE's script cuts it so."""


def task_folder(task: Task, root: Path) -> Path | None:
    """The task's folder in `root`, whatever its capitals: CoLA, cola, STS-B; a DataError if `root` cannot be listed."""
    names = {task.title.lower(), task.name}
    return next((path for path in _listing(root) if path.is_dir() and path.name.lower() in names), None)


def read_folder(task: Task, split: str, root: Path) -> RawRows:
    """Read one split from a GLUE folder that holds the task; a DataError if a file is missing or malformed."""
    files = task.files
    assert files is not None
    folder = task_folder(task, root)
    if folder is None:
        what = f"{root} is not a folder"
        if root.is_dir():
            found = ", ".join(path.name for path in _listing(root)[:20]) or "nothing"
            what = f"{root} holds nothing for task {task.name}, but: {found}"
        raise DataError(f"data_dir: {what}; it must be a folder that holds {needed_files(task)}")
    names = files.names[split]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder}: no {' or '.join(names)} for the {split} split of task {task.name}")
    lines = _lines(path)
    labelled = split not in UNLABELLED
    headless = bool(files.no_header) and labelled
    columns = files.no_header if headless else tuple(lines[0].split("\t"))
    first = 1 if headless else 2  # the line number of the first row
    text_at = [_column(columns, name, path) for name in files.text_columns]
    label_at = _column(columns, files.label_column, path) if labelled else None
    dev_rows = _dev_rows(path) if path.name == _CUT_BY_IDS else None
    ids_at = [_column(columns, name, path) for name in ("#1 ID", "#2 ID")] if dev_rows is not None else []
    texts, labels, places, left_out = [], [], [], []
    for number, line in enumerate(lines[first - 1 :], start=first):
        fields = line.split("\t")
        if len(fields) != len(columns):
            what = f"line {number}: {len(fields)} tab-separated fields, but {len(columns)} are needed"
            if not files.broken_lines:
                raise DataError(f"{path}, {what}: {', '.join(columns)}")
            if labelled:
                left_out.append(what)
                continue
            fields = [*fields, *[""] * len(columns)][: len(columns)]  # a test row must be predicted, whole or not
        if dev_rows is not None and (tuple(fields[at] for at in ids_at) in dev_rows) is not (split == "dev"):
            continue
        if line == lines[0] and not headless:
            raise DataError(f"{path}, line {number}: {HEADER_AGAIN}")
        for at in (*text_at, *([] if label_at is None else [label_at])):
            refuse_undecodable(fields[at], f"{path}, line {number}", columns[at])
        texts.append(tuple(fields[at] for at in text_at))
        labels.append(None if label_at is None else fields[label_at])
        places.append(number)
    return RawRows(texts, labels, str(path), lambda index: f"{path}, line {places[index]}", tuple(left_out))


def _dev_rows(path: Path) -> frozenset[tuple[str, ...]]:
    """The ids of the rows of Microsoft's file that are dev."""
    ids = path.with_name("dev_ids.tsv")
    if not ids.is_file():
        raise DataError(
            f"{path.parent}: {path.name} holds train and dev together, and dev_ids.tsv, which tells them apart, "
            "is missing; take it from GLUE's download script, or that script's train.tsv and dev.tsv"
        )
    return frozenset(tuple(line.strip().split("\t")) for line in _lines(ids))


def _listing(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise DataError(f"{root}: cannot be listed: {error.strerror or error}") from error


def needed_files(task: Task) -> str:
    """The files that training needs: CoLA/train.tsv and CoLA/dev.tsv."""
    assert task.files is not None
    return " and ".join(f"{task.title}/{task.files.names[split][0]}" for split in ("train", "dev"))


def as_own_task(task: Task, path: Path) -> str:
    """How to train on a file in GLUE's layout as on one's own: the lines of a study that say so."""
    files = task.files
    assert files is not None
    others = (path.with_name(name) for name in files.names["dev"])
    dev = path if path.name in files.names["dev"] else next((other for other in others if other.is_file()), None)
    trains = (path.with_name(name) for name in files.names["train"])
    train = next((other for other in trains if other.is_file()), path)
    entry = {
        "name": f"my-{task.name}",
        "train": os.path.abspath(train),
        "dev": 0.1 if dev is None or dev == train else os.path.abspath(dev),
        "text": list(files.text_columns),
        "label": files.label_column,
        "type": task.kind,
        "metric": list(task.metrics),
    }
    lines = yaml.safe_dump({"tasks": [entry]}, sort_keys=False, default_flow_style=None, width=1000)
    header = ""
    if files.no_header:
        names = ", ".join(files.no_header)
        header = f" and give these files a first line with the names of their columns, tabs between: {names}"
    return f"To train on these rows as they are, take a task of your own in the study file{header}:\n{lines}".rstrip()


def _lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file; only \n and \r\n end one, for the text may hold U+2028 and the like."""
    found = []
    try:
        with open_lines(str(path), newline="\n") as lines:
            for line in lines:
                found.append(line.removesuffix("\n").removesuffix("\r"))
                lines.begin()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    while found and not found[-1]:
        found.pop()
    if not any(line.strip() for line in found):
        raise DataError(f"{path}: the file is empty; take GLUE's own")
    return found


def _column(columns: Sequence[str], name: str, path: Path) -> int:
    if name not in columns:
        raise DataError(f"{path}, line 1: {no_column(name, columns)}")
    refuse_twice(f"{path}, line 1", columns, (name,))
    return columns.index(name)
