"""Load a task's splits, from whatever source, and check them row by row; encode them; order the rows of each epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manytune.data.cells import is_empty, text_of
from manytune.data.glue_folder import as_own_task
from manytune.data.rows import RawRows
from manytune.data.sources import read_rows
from manytune.data.tasks import SPLITS, UNLABELLED, Task
from manytune.utils.errors import DataError, ModelError, StudyError, choices
from manytune.utils.text import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = NDArray[Any]

_CUT_AT_ONCE = 256  # rows
_UNEVEN = 10  # as many rows of one class as of another


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one split of a task, in the source's order."""

    texts: tuple[tuple[str, ...], ...]
    """N rows of one or two sentences, stripped, none of them empty."""
    labels: Array
    """`[N]`, as the task's type makes them: int64 class indices, or targets in float64 or float32."""
    fingerprint: str
    """SHA-256 (hex) over texts and labels: the same rows have the same one wherever they came from."""
    source: str
    """Where the rows came from: a path, `hub:nyu-mll/glue@<revision>`, or `builtin`."""
    left_out: tuple[str, ...] = ()
    """Which rows of the source are not among these, and why."""
    notes: tuple[str, ...] = ()
    """What a reader of the data should know of its file."""
    limited_from: int | None = None
    """How many rows there were before a study's limit; None without one."""
    place: Callable[[int], str] = lambda index: f"row {index + 1}"
    """Row index to the words that let a user find the row in the source."""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A split as token ids, all rows end to end, without padding."""

    ids: Array
    """`[tokens]` int64."""
    types: Array
    """`[tokens]` int64 token type ids; zeros where the tokenizer makes none."""
    offsets: Array
    """`[N + 1]` int64: row i is `ids[offsets[i]:offsets[i + 1]]`."""
    labels: Array
    """`[N]`, as in `Split`."""
    truncated: int
    """How many rows were cut at `max_length`."""

    @property
    def size(self) -> int:
        """The number of rows, N."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Array:
        """`[N]` int64: the tokens of each row, special ones included."""
        return np.diff(self.offsets)


def load_task(task: Task, data_dir: str | None = None) -> tuple[Task, dict[str, Split]]:
    """Load and check a task's splits: train, dev, and others that are scored; errors are as for `load_split`.

    Returned are the task, with what only its data says of a user's own task (classes, range and scale of the targets),
    and its splits by name.
    """
    if task.own is None:
        return task, {split: load_split(task, split, data_dir) for split in (*SPLITS, *task.also_scored)}
    raw = _read(task, "train")
    try:
        task = task.type.learn_classes(task, raw.labels)
    except ValueError as error:
        raise DataError(f"{raw.source}: {error}") from None
    train = _checked(task, "train", raw)
    task = task.type.learn_targets(task, train.labels)
    assert task.own is not None
    if isinstance(task.own.dev, str):
        return task, {"train": train, "dev": _checked(task, "dev", _read(task, "dev"))}
    what, cure = f"task {task.name}: dev: {task.own.dev:g}", "give more rows, or a file of rows as dev"
    kept, aside = train_split(len(train), 0, task.own.dev, train.labels, what=what, cure=cure)
    return task, {"train": _part(train, kept), "dev": replace(_part(train, aside), left_out=(), notes=())}


def load_split(task: Task, split: str, data_dir: str | None = None) -> Split:
    """Load and check one split of a built-in task or one of GLUE's, of which the classes must be known.

    GLUE's rows come from the first of: `data_dir`, a folder in GLUE's own layout, such as `data_dir/CoLA/train.tsv`;
    the folder that MANYTUNE_GLUE_DIR names if it holds the task; the Hugging Face hub (or its cache, offline). The
    labels of `tasks.UNLABELLED` splits are 0. Raises DataError where the data cannot be had, a row is malformed, or the
    split has another size than it must have.
    """
    known = (*SPLITS, *(name for name in task.hub_splits if name not in SPLITS))
    if split not in known:
        raise DataError(f"split of task {task.name}: {choices(split, known)}")
    return _checked(task, split, _read(task, split, data_dir))


def limited(task: Task, train: Split, limit: int) -> Split:
    """At most `limit` of the training rows, in their order: each class in its share, at least one of each.

    They are the same at every call, and those of a smaller limit are among those of a larger one. Raises DataError
    where there are more classes than rows.
    """
    if limit >= len(train):
        return train
    strata = train.labels if task.type.has_classes else np.zeros(len(train), dtype=np.int64)
    order = _permutation(len(train), 0, 0, _LIMIT_STREAM)
    position = np.empty(len(train))  # of each row in its class, from 0 to 1; below 0 for the first one
    classes = np.unique(strata)
    for label in classes:
        rows = order[strata[order] == label]
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
        position[rows[0]] -= 1.0
    if limit < len(classes):
        raise DataError(
            f"limit: {counted(limit, 'row')} of {task.name}, which has {len(classes)} classes in its training rows; "
            "give at least one row a class"
        )
    chosen = order[np.argsort(position[order], kind="stable")[:limit]]
    return replace(_part(train, np.sort(chosen)), limited_from=len(train))


def set_aside(train: Split) -> dict[str, Split]:
    """Training rows in two parts, on which the trials of a search train and are compared: a tenth stands in for dev."""
    kept, aside = train_split(len(train), 0, labels=train.labels, what="search.select: train-split", cure="add rows")
    return {"train": _part(train, kept), "dev": replace(_part(train, aside), left_out=(), notes=(), limited_from=None)}


def leaked(train: Split, dev: Split) -> list[int]:
    """The dev rows whose texts are those of a training row, whatever its label."""
    known = set(train.texts)
    return [index for index, row in enumerate(dev.texts) if row in known]


def uneven_classes(task: Task, train: Split) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """The rarest class that has rows and the commonest, where the one has a tenth of the other's rows or less."""
    counts = sorted(task.type.class_counts(task, train.labels).items(), key=lambda item: item[1])
    found = [item for item in counts if item[1] > 0]
    return (found[0], found[-1]) if found and found[-1][1] >= _UNEVEN * found[0][1] else None


def _read(task: Task, split: str, data_dir: str | None = None) -> RawRows:
    """The rows of a split with their texts as text and, of a user's own task, labels in one way of writing."""
    raw = read_rows(task, split, data_dir)

    def understood(understand: Callable[[object], Any], cell: object, column: str, index: int) -> Any:
        try:
            return understand(cell)
        except ValueError as error:
            raise DataError(f"{raw.place(index)}: {column} {error}") from None

    texts = [
        tuple(understood(text_of, cell, column, index) for column, cell in zip(task.text_columns, row, strict=True))
        for index, row in enumerate(raw.texts)
    ]
    labels = raw.labels
    if task.own is not None:
        read = task.type.read_cell
        labels = [understood(read, label, task.label_column, index) for index, label in enumerate(labels)]
    return raw._replace(texts=texts, labels=labels)


def _checked(task: Task, split: str, raw: RawRows) -> Split:
    """The rows that have texts and a label. A user's own rows without are left out; GLUE's are refused."""
    parse = task.type.parser(task)
    kept: list[int] = []
    values: list[Any] = []
    left_out: list[str] = []
    for index, row in enumerate(raw.texts):
        try:
            if split not in UNLABELLED and not task.is_whole(row):
                if task.own is None:
                    empty = task.text_columns[row.index("")]
                    raise ValueError(f"{empty} is empty; give it a text or leave the row out")
                what = " and ".join(task.text_columns) + (" is empty" if len(row) == 1 else " are empty")
                left_out.append(f"{raw.place(index)}: {what}")
            elif task.own is not None and is_empty(raw.labels[index]):
                left_out.append(f"{raw.place(index)}: {task.label_column} is empty")
            else:
                values.append(0 if split in UNLABELLED else parse(raw.labels[index]))
                kept.append(index)
        except ValueError as error:
            raise DataError(f"{raw.place(index)}: {error}") from None
    if not kept:
        reason = f": all {len(raw.texts)} were left out, the first because of {left_out[0]}" if left_out else ""
        raise DataError(f"{raw.source}: no rows, so there is nothing to learn from or to score{reason}")
    labels = task.type.as_array(task, values)
    wanted = task.sizes.get(split)
    if wanted not in (None, len(kept)):
        own = f". {as_own_task(task, Path(raw.source))}" if task.files and Path(raw.source).is_file() else ""
        raise DataError(
            f"{raw.source}: {counted(len(kept), 'row')}, but {task.title}'s {split} split has {wanted or 0:,}. "
            "The usual cause is a copy written by a reader with quoting on: GLUE's text contains bare double quotes, "
            "so such a reader joins or drops rows without a word (pandas' default, bad lines skipped, leaves 5706 and "
            "1465 rows "
            f"of STS-B's 5749 and 1500). Use GLUE's own files, unchanged, read with csv.QUOTE_NONE{own}"
        )
    if split == "train" and (alike := all_alike(task, labels)):
        raise DataError(f"{raw.source}: in all {len(kept)} rows the {alike}; there is nothing to tell apart")
    rows = tuple(raw.texts[index] for index in kept)
    left = (*raw.left_out, *left_out)
    prints = _fingerprint(rows, labels)
    return Split(rows, labels, prints, raw.source, left, raw.notes, place=lambda index: raw.place(kept[index]))


def all_alike(task: Task, labels: Array) -> str | None:
    """What all labels are, such as "label is 'billing'" or "target is 3"; None if they are not the same."""
    return None if (labels != labels[0]).any() else task.type.all_alike(task, labels[0])


def _part(whole: Split, rows: Array) -> Split:
    texts, labels = tuple(whole.texts[row] for row in rows), whole.labels[rows]
    prints, place = _fingerprint(texts, labels), lambda index: whole.place(int(rows[index]))
    return replace(whole, texts=texts, labels=labels, fingerprint=prints, place=place)


def _fingerprint(texts: Iterable[tuple[str, ...]], labels: Array) -> str:
    if labels.dtype == np.float64:
        # Earlier versions had targets in fp32; fp64 is only used where fp32 would make different targets equal.
        with np.errstate(over="ignore"):
            rounded = labels.astype(np.float32)
        labels = rounded if len(np.unique(rounded)) == len(np.unique(labels)) else labels
    digest = hashlib.sha256()
    for row in texts:
        for text in row:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))  # the length keeps "ab","c" from "a","bc"
            digest.update(encoded)
    digest.update(labels.astype(labels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


class _Rows(NamedTuple):
    """Token ids and token type ids, row by row."""

    ids: list[list[int]]
    types: list[list[int]]


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, *, template: str, max_length: int) -> Encoded:
    """Turn the rows of a split into token ids, at most `max_length` of them a row, special ones included.

    Of a pair that is too long, the longer sentence is cut first; the separators stay. `template` is "native", the
    tokenizer's own form, or "spaced", with its separators set off by spaces: `<s> {s} </s>` and
    `<s> {s1} </s></s> {s2} </s>`, or `[CLS] {s1} [SEP] {s2} [SEP]`.

    Raises:
        StudyError: There is no such template, or `max_length` leaves no room for a token of each sentence.
        ModelError: The template needs separators that the tokenizer has not.
    """
    if template not in _TEMPLATES:
        raise StudyError(f"template: {choices(template, _TEMPLATES)}")
    pair = len(split.texts[0]) == 2
    least = tokenizer.num_special_tokens_to_add(pair=pair) + len(split.texts[0])
    if max_length < least:
        raise StudyError(
            f"training.max_length: {max_length} tokens leave no room for the special tokens and a token of "
            f"each sentence; it must be at least {least}"
        )
    columns = [list(column) for column in zip(*split.texts, strict=True)]
    rows, truncated = _TEMPLATES[template](tokenizer, columns, max_length)
    lengths = np.fromiter(map(len, rows.ids), dtype=np.int64, count=len(rows.ids))
    total = int(lengths.sum())
    return Encoded(
        ids=np.fromiter(chain.from_iterable(rows.ids), dtype=np.int64, count=total),
        types=np.fromiter(chain.from_iterable(rows.types), dtype=np.int64, count=total),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
        labels=split.labels,
        truncated=truncated,
    )


def _tokenize(tokenizer: Any, columns: Sequence[list[str]], **options: Any) -> _Rows:
    has_types = "token_type_ids" in tokenizer.model_input_names
    output = tokenizer(*columns, return_attention_mask=False, return_token_type_ids=has_types, verbose=False, **options)
    ids = output["input_ids"]
    return _Rows(ids, output["token_type_ids"] if has_types else [[0] * len(row) for row in ids])


def _native(tokenizer: Any, columns: Sequence[list[str]], max_length: int) -> tuple[_Rows, int]:
    rows = _tokenize(tokenizer, columns)
    long = [index for index, row in enumerate(rows.ids) if len(row) > max_length]
    # A few at a time: the library keeps every piece that it cuts off, gigabytes of them where most rows are cut.
    for first in range(0, len(long), _CUT_AT_ONCE):
        few = long[first : first + _CUT_AT_ONCE]
        texts = [[column[index] for index in few] for column in columns]
        cut = _tokenize(tokenizer, texts, truncation="longest_first", max_length=max_length)
        for index, ids, types in zip(few, cut.ids, cut.types, strict=True):
            rows.ids[index], rows.types[index] = ids, types
    return rows, len(long)


def _spaced(tokenizer: Any, columns: Sequence[list[str]], max_length: int) -> tuple[_Rows, int]:
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    refusal = f"template: spaced cannot be used with {type(tokenizer).__name__}; use template: native. "
    if cls is None or sep is None:
        raise ModelError(f"{refusal}It has no cls and sep tokens")
    # How the tokenizer separates a pair is read from its native form.
    native = _tokenize(tokenizer, [["a"], ["b"]])
    separators = native.ids[0].count(tokenizer.sep_token_id) - 1  # between the sentences: RoBERTa has 2, BERT 1
    spaced = _tokenize(tokenizer, [[f"{cls} a {sep}"]], add_special_tokens=False).ids[0]
    if separators < 1 or spaced[0] != tokenizer.cls_token_id or spaced[-1] != tokenizer.sep_token_id:
        raise ModelError(f"{refusal}Its form of a pair is not: {cls} first {sep} second {sep}")
    pair = len(columns) == 2
    firsts = [f"{cls} {first} {sep * (separators if pair else 1)}" for first in columns[0]]
    rows = [f"{first} {second} {sep}" for first, second in zip(firsts, columns[1], strict=True)] if pair else firsts
    ids = _tokenize(tokenizer, [rows], add_special_tokens=False).ids
    # Special tokens split the text before anything else does: a row begins as its first part alone would.
    first_ids = _tokenize(tokenizer, [firsts], add_special_tokens=False).ids if pair else ids
    ends = [len(first) for first in first_ids]
    second_type = native.types[0][-1]
    types = [[0] * end + [second_type] * (len(row) - end) for row, end in zip(ids, ends, strict=True)]
    long = [index for index, row in enumerate(ids) if len(row) > max_length]
    for index in long:
        kept = _kept(len(ids[index]), ends[index], separators, max_length)
        ids[index] = [ids[index][position] for position in kept]
        types[index] = [types[index][position] for position in kept]
    return _Rows(ids, types), len(long)


def _kept(length: int, end: int, separators: int, max_length: int) -> list[int]:
    """The positions that stay when a spaced row of `length` tokens, cls to sep, is cut to `max_length` tokens.

    A pair's first sentence ends at `end`, with the `separators` between the sentences, which all stay; for a single
    sentence `end` is `length`.
    """
    last = length - 1
    if end == length:
        return [*range(max_length - 1), last]
    first, second = end - separators - 1, last - end  # tokens of each sentence
    room = max_length - (length - first - second)
    # As the tokenizers library cuts longest first: of equals, the second one keeps an odd token.
    shorter = min(first, second, room // 2)
    first, second = (shorter, room - shorter) if first <= second else (room - shorter, shorter)
    return [*range(1 + first), *range(end - separators, end + second), last]


_TEMPLATES = {"native": _native, "spaced": _spaced}

# Words of Philox's counter that keep the two uses of a seed apart.
_EPOCH_STREAM = 1
_SELECTION_STREAM = 2
_LIMIT_STREAM = 3


def train_split(
    n: int,
    seed: int,
    share: float = 0.1,
    labels: Array | None = None,
    *,
    what: str = "selection: train-split",
    cure: str = "use selection: dev",
) -> tuple[Array, Array]:
    """Set a seeded share of the `n` training rows aside, to select snapshots on.

    Args:
        n: The number of training rows.
        seed: Says which rows go; how many never depends on it.
        share: The part to set aside, above 0 and below 1.
        labels: `[n]`; rows of each integer are split in the same share, at least one on either side where there are
            two. Other numbers are not looked at.
        what: The setting that asks for it, for the message of the DataError where there are too few rows.
        cure: What to do then, likewise.

    Returns:
        The rows to train on and the rows to select on: int64, ascending, disjoint, all of `n` together.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share {share} is not above 0 and below 1")
    order = _permutation(n, seed, 0, _SELECTION_STREAM)
    if labels is None or not np.issubdtype(labels.dtype, np.integer):
        labels = np.zeros(n, dtype=np.int64)
    parts = [order[labels[order] == label] for label in np.unique(labels)]
    sizes = [min(len(rows) - 1, max(1, math.floor(len(rows) * share + 0.5))) for rows in parts]
    selecting = np.sort(np.concatenate([order[:0], *(rows[:size] for rows, size in zip(parts, sizes, strict=True))]))
    if selecting.size == 0:
        no_two = "there is one training row alone" if n == 1 else f"no class has two rows among the {n} training rows"
        raise DataError(f"{what} sets training rows of each class aside, but {no_two}; {cure}")
    return np.setdiff1d(np.arange(n), selecting, assume_unique=True), selecting


def epoch_order(n: int, seed: int, epoch: int) -> Array:
    """The order in which an epoch sees the rows: `[n]` int64, a permutation keyed by seed and epoch."""
    return _permutation(n, seed, epoch, _EPOCH_STREAM)


def _permutation(n: int, seed: int, epoch: int, stream: int) -> Array:
    # Philox's raw words are the same in every version of numpy.
    key = np.array([seed, epoch], dtype=np.uint64)
    philox = np.random.Philox(counter=np.array([0, 0, 0, stream], dtype=np.uint64), key=key)
    return np.argsort(philox.random_raw(n), kind="stable").astype(np.int64)
