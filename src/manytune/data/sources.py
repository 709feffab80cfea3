"""The rows of a task as they come, from the first source that has it; `splits.py` says whether they can be right."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

from manytune.data.glue_folder import needed_files, read_folder, task_folder
from manytune.data.hub_rows import read_hub
from manytune.data.rows import RawRows, read_placed
from manytune.data.tasks import UNLABELLED, Task
from manytune.data.text_lines import FileFacts

GLUE_DIR_VARIABLE = "MANYTUNE_GLUE_DIR"
"""The environment variable that names a local GLUE folder."""

_BUILTIN = Path(__file__).with_name("builtin.jsonl.gz")


def read_rows(task: Task, split: str, data_dir: str | None = None) -> RawRows:
    """Read one split from the first source that has it, in the order of `load_split`, with the same errors."""
    if task.own is not None:
        return _from_user(task, task.own.train if split == "train" else str(task.own.dev))
    if task.files is None:
        return _from_builtin(task, split)
    if data_dir is not None:
        return read_folder(task, split, Path(data_dir).expanduser())
    from_environment = os.environ.get(GLUE_DIR_VARIABLE)
    if from_environment and task_folder(task, root := Path(from_environment).expanduser()):
        return read_folder(task, split, root)
    return _from_hub(task, split)


def _from_user(task: Task, where: str) -> RawRows:
    """Read the rows of a user's own task from a file, or from the split `where` of a dataset on the hub."""
    own = task.own
    assert own is not None
    if own.hub is not None:
        splits = "train and dev are names of splits" if isinstance(own.dev, str) else "train is the name of a split"
        cure = f"\nCheck hub and config of the task, and that its {splits} there."
        raw = read_hub(task, own.hub, own.config, where, task.label_column, cure=cure)
        if any(isinstance(label, str) for label in raw.labels):  # among names, -1 marks a row without a label
            return raw._replace(labels=[None if label == -1 else label for label in raw.labels])
        return raw
    texts, labels, places = [], [], []
    facts = FileFacts()
    columns = (*task.text_columns, task.label_column)
    for place, row in read_placed(where, columns, own.dialect, facts=facts):
        texts.append(tuple(row[column] for column in task.text_columns))
        labels.append(row[task.label_column])
        places.append(place)
    return RawRows(texts, labels, where, places.__getitem__, notes=tuple(facts.notes(where)))


def _from_builtin(task: Task, split: str) -> RawRows:
    """Read the built-in rows: a line of JSON about the file, then one a row; `scripts/builtin_data` writes them."""
    with gzip.open(_BUILTIN) as lines:
        next(lines)
        rows = [row for row in map(json.loads, lines) if row[:2] == [task.name, split]]
    return RawRows(
        texts=[tuple(texts) for _, _, texts, _, _ in rows],
        labels=[label for _, _, _, label, _ in rows],
        source="builtin",
        place=lambda index: f"{task.name}, {split}, row {index + 1}",
    )


def _from_hub(task: Task, split: str) -> RawRows:
    assert task.hub is not None
    name, configuration = task.hub
    other, _, hub_split = task.hub_splits[split].rpartition("/")
    given = os.environ.get(GLUE_DIR_VARIABLE)
    note = f"\n{GLUE_DIR_VARIABLE} names {given}, which holds no folder {task.title}." if given else ""
    cure = (
        f"{note}\nWithout the hub, give a folder that holds {needed_files(task)} (GLUE's own "
        f"files), as data_dir: in the study or in the environment as {GLUE_DIR_VARIABLE}; or use the built-in tasks, "
        "which need no download: builtin-acceptability, builtin-similarity."
    )
    label = None if split in UNLABELLED else "label"  # whatever GLUE's files call it
    return read_hub(task, name, other or configuration, hub_split, label, cure=cure)
