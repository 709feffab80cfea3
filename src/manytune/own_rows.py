"""Read the rows of a user's own task: from a file of rows, or a dataset on the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from manytune.hub_rows import read_hub
from manytune.rows import Facts, RawRows, read_placed
from manytune.tasks import Task

__all__ = ["read_own"]


def read_own(task: Task, where: str) -> RawRows:
    """Read the rows of one split.

    Args:
        task: Of a user.
        where: Its file, or the split on the hub.

    Raises:
        DataError: It cannot be had, a column is missing, or a row is malformed.
    """
    own = task.own
    assert own is not None
    if own.hub is not None:
        name, _, revision = own.hub.partition("@")
        cure = "\nCheck hub and config of the task, and that its train and dev are names of splits there."
        columns, label = task.text_columns, task.label_column
        at = revision or None
        raw = read_hub(task.name, name, own.config, where, columns, label, revision=at, unlabelled=None, cure=cure)
        return raw._replace(labels=[_as_text(label) for label in raw.labels])
    texts, labels, places = [], [], []
    facts = Facts()
    columns = (*task.text_columns, task.label_column)
    for place, row in read_placed(where, columns, quoting=own.quoting, facts=facts):
        texts.append(tuple(_as_text(row[column]) for column in task.text_columns))
        labels.append(_as_text(row[task.label_column]))
        places.append(place)
    return RawRows(texts, labels, where, places.__getitem__, notes=tuple(facts.notes(where)))


def _as_text(cell: Any) -> str:
    """A cell as CSV would hold it: a null is empty, and 1.0 is 1, as tools write whole numbers beside nulls."""
    if cell is None or cell != cell:  # a float that is no number
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()
