"""Read the rows of a user's own task: from a file of rows, or a dataset on the Hugging Face hub."""

from __future__ import annotations

from manytune.data.hub_rows import read_hub
from manytune.data.rows import FileFacts, RawRows, read_placed
from manytune.data.tasks import Task

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
        splits = "train and dev are names of splits" if isinstance(own.dev, str) else "train is the name of a split"
        cure = f"\nCheck hub and config of the task, and that its {splits} there."
        columns, label = task.text_columns, task.label_column
        raw = read_hub(task.name, name, own.config, where, columns, label, revision=revision or None, cure=cure)
        if any(isinstance(label, str) for label in raw.labels):  # among names, -1 marks a row without a label
            return raw._replace(labels=[None if label == -1 else label for label in raw.labels])
        return raw
    texts, labels, places = [], [], []
    facts = FileFacts()
    columns = (*task.text_columns, task.label_column)
    for place, row in read_placed(where, columns, quoting=own.quoting, facts=facts):
        texts.append(tuple(row[column] for column in task.text_columns))
        labels.append(row[task.label_column])
        places.append(place)
    return RawRows(texts, labels, where, places.__getitem__, notes=tuple(facts.notes(where)))
