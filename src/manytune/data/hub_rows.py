"""Read rows from a dataset on the Hugging Face hub, or from the caches of its libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manytune.data.rows import RawRows
from manytune.data.tasks import Task
from manytune.utils.errors import DataError
from manytune.utils.extras import require
from manytune.utils.text import no_column


def read_hub(task: Task, name: str, configuration: str | None, split: str, label: str | None, *, cure: str) -> RawRows:
    """Read the columns of a task's texts, and of the label if `label` names one, from a split of a dataset.

    `name` may end with `@` and a branch, tag or commit, else the newest is read; `configuration` is None for the only
    one; `split` is the hub's name of the split. A DataError says that a column is missing, or that the hub does not
    answer, and then ends with `cure`; a DependencyError, that the package datasets is missing.
    """
    require("datasets", "hub", f"task {task.name}: reading rows from the Hugging Face hub", cure)
    name, _, revision = name.partition("@")
    where = f"{name} ({configuration}), split {split!r}" if configuration else f"{name}, split {split!r}"
    try:
        table, commit = _load_table(name, configuration, split, revision or None)
    # Whatever keeps the hub or its cache from answering (connection, proxy, disk, a damaged cache, the
    # library's many exceptions) has the same cure for the user, and belongs in one message.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"task {task.name}: cannot load {where} from the Hugging Face hub ({reason}).{cure}") from error
    for column in (*task.text_columns, *([label] if label else [])):
        if column not in table.column_names:
            raise DataError(f"{where}: {no_column(column, table.column_names)}")
    columns = [_named(table, column) for column in task.text_columns]
    return RawRows(
        texts=list(zip(*columns, strict=True)),
        labels=_named(table, label) if label else [None] * len(columns[0]),
        source=f"hub:{name}@{commit}" if commit else f"hub:{name}",
        place=lambda index: f"{where}, row {index + 1}",
    )


def _named(table: Any, column: str) -> list[object]:
    """A column's cells; classes by their names, where the dataset has names for them."""
    names = getattr(table.features[column], "names", None)
    known = {} if names is None else dict(enumerate(names))
    return [known.get(value, value) for value in table[column]] if known else list(table[column])


def _load_table(name: str, configuration: str | None, split: str, revision: str | None) -> tuple[Any, str | None]:
    """Load a split from the hub or from its caches, with the commit that it was read at, if known."""
    import datasets
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    with _quiet(datasets):
        try:
            table = datasets.load_dataset(name, configuration, split=split, **at)
            return table, _revision(file["filename"] for file in table.cache_files)
        except ConnectionError as unreachable:
            # Offline, `datasets` reads its own cache alone, not the hub's, which `hf download` fills.
            try:
                snapshot = Path(snapshot_download(name, repo_type="dataset", local_files_only=True, **at))
            except LocalEntryNotFoundError:
                raise unreachable from None
            files = sorted(str(path) for path in (snapshot / (configuration or "")).rglob(f"{split}-*.parquet"))
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
