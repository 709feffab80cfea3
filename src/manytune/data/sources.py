"""The rows of a task as they come, from the first source that has it.

Whether a row can be right is for `data.py` to say; here it is only found, with words for its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manytune.data.glue_folder import needed_files, read_folder, task_folder
from manytune.data.hub_rows import read_hub
from manytune.data.own_rows import read_own
from manytune.data.rows import RawRows
from manytune.data.tasks import UNLABELLED, Task

__all__ = ["GLUE_DIR_VARIABLE", "read_rows"]

GLUE_DIR_VARIABLE = "MANYTUNE_GLUE_DIR"
"""The environment variable that names a local GLUE folder."""

_HUB_LABEL = "label"


def read_rows(task: Task, split: str, data_dir: str | None = None) -> RawRows:
    """Read one split of a task from the first source that has it; `data.load_split` gives the order.

    Raises:
        DataError: there is no such file or folder, the hub cannot be reached, or a file is malformed.
    """
    if task.own is not None:
        return read_own(task, task.own.train if split == "train" else str(task.own.dev))
    if task.files is None:
        return _from_builtin(task, split)
    if data_dir is not None:
        return read_folder(task, split, Path(data_dir).expanduser())
    from_environment = os.environ.get(GLUE_DIR_VARIABLE)
    if from_environment and task_folder(task, root := Path(from_environment).expanduser()):
        return read_folder(task, split, root)
    return _from_hub(task, split)


def _from_builtin(task: Task, split: str) -> RawRows:
    from manytune.data.builtin import acceptability, similarity

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


def _from_hub(task: Task, split: str) -> RawRows:
    assert task.hub is not None
    assert task.files is not None
    name, configuration = task.hub
    other, _, hub_split = task.hub_splits[split].rpartition("/")
    given = os.environ.get(GLUE_DIR_VARIABLE)
    note = f"\n{GLUE_DIR_VARIABLE} names {given}, which holds no folder {task.files.folder}." if given else ""
    cure = (
        f"{note}\nWithout the hub, give a folder that holds {needed_files(task.files)} (GLUE's own "
        f"files), as data_dir: in the study or in the environment as {GLUE_DIR_VARIABLE}; or use the built-in tasks, "
        "which need no download: builtin-acceptability, builtin-similarity."
    )
    label = None if split in UNLABELLED else _HUB_LABEL
    return read_hub(task.name, name, other or configuration, hub_split, task.text_columns, label, cure=cure)
