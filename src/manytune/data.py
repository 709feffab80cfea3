"""Load a task's split, check it row by row, encode it, and say in which order rows are seen.

A split comes from the built-in grammar, a local GLUE folder or the Hugging Face hub. All three go through
the same checks: a row that cannot be right is refused with its place, never skipped.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manytune.errors import DataError, ModelError, StudyError, choices
from manytune.rows import RawRows
from manytune.sources import read_rows
from manytune.tasks import SPLITS, UNLABELLED, Scale, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Encoded",
    "Split",
    "encode",
    "epoch_order",
    "leaked",
    "load_split",
    "load_task",
    "train_split",
    "uneven_classes",
]

Array = NDArray[Any]

_CUT_AT_ONCE = 256  # rows
_SHOWN = 20  # classes that a message names
_UNEVEN = 10  # as many rows of one class as of another


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one split of a task, in the source's order."""

    texts: tuple[tuple[str, ...], ...]
    """N rows of one or two sentences, stripped, none of them empty."""
    labels: Array
    """`[N]`: int64 class indices, or float32 targets."""
    fingerprint: str
    """SHA-256 (hex) over texts and labels: the same rows have the same one wherever they came from."""
    source: str
    """Where the rows came from: a path, `hub:nyu-mll/glue@<revision>`, or `builtin`."""
    left_out: tuple[str, ...] = ()
    """Which rows of the source are not among these, and why."""
    notes: tuple[str, ...] = ()
    """What a reader of the data should know of its file."""

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
    """Load and check a task's train and dev splits, and whatever else of it is scored.

    Returns:
        The task, with what only its data says of a user's own task: classes, range and scale of the targets; and
        its splits by name.

    Raises:
        DataError: As for `load_split`.
    """
    if task.own is None:
        return task, {split: load_split(task, split, data_dir) for split in (*SPLITS, *task.also_scored)}
    raw = read_rows(task, "train")
    if task.kind == "classification":
        task = replace(task, labels=task.labels or _classes(task, raw))
        if "f1" in task.metrics and len(task.labels) != 2:
            raise DataError(
                f"task {task.name}: the metric f1 is of two classes, but there are {len(task.labels)}; take macro_f1"
            )
    train = _checked(task, "train", raw)
    if task.kind == "regression":
        task = _learned(task, train.labels)
    assert task.own is not None
    if isinstance(task.own.dev, str):
        return task, {"train": train, "dev": _checked(task, "dev", read_rows(task, "dev"))}
    kept, aside = train_split(len(train), 0, task.own.dev, train.labels)
    rest = replace(_part(train, kept, train.left_out), notes=train.notes)
    return task, {"train": rest, "dev": _part(train, aside, ())}


def load_split(task: Task, split: str, data_dir: str | None = None) -> Split:
    """Load and check one split of a task.

    A built-in task is generated. Else rows come from the first of: `data_dir`, the folder that
    MANYTUNE_GLUE_DIR names if it holds the task, the Hugging Face hub (or its cache, offline).

    Arguments:
        task: what the rows must look like; its classes must be known.
        split: "train", "dev" or another that the task has. The labels of `tasks.UNLABELLED` ones are 0.
        data_dir: a folder in GLUE's own layout, such as `data_dir/CoLA/train.tsv`.

    Raises:
        DataError: the data cannot be found or reached, a row is malformed, or the split has not the
            size that it must have.
    """
    known = (*SPLITS, *(name for name in task.hub_splits if name not in SPLITS))
    if split not in known:
        raise DataError(f"split of task {task.name}: {choices(split, known)}")
    return _checked(task, split, read_rows(task, split, data_dir))


def leaked(train: Split, dev: Split) -> list[int]:
    """The dev rows whose texts are those of a training row, whatever its label."""
    known = set(train.texts)
    return [index for index, row in enumerate(dev.texts) if row in known]


def uneven_classes(task: Task, train: Split) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """The rarest class and the commonest, each with its rows, where the one has a tenth of the other's or less."""
    if task.kind == "regression":
        return None
    counts = np.bincount(train.labels, minlength=len(task.labels))
    few, many = ((task.labels[int(at)], int(counts[at])) for at in (counts.argmin(), counts.argmax()))
    return (few, many) if many[1] >= _UNEVEN * max(few[1], 1) else None


def _checked(task: Task, split: str, raw: RawRows) -> Split:
    texts = [tuple(text.strip() for text in row) for row in raw.texts]
    for index, row in enumerate(texts):
        for column, text in zip(task.text_columns, row, strict=True):
            if "\0" in text:
                raise DataError(f"{raw.place(index)}: {column} holds a NUL character; is the file text at all?")
    kept, left_out = _whole_rows(task, split, raw, texts)
    if not kept:
        reason = f": all {len(texts)} were left out, the first because of {left_out[0]}" if left_out else ""
        raise DataError(f"{raw.source}: no rows, so there is nothing to learn from or to score{reason}")
    if split in UNLABELLED:
        values: list[float] = [0] * len(kept)
    else:
        parse = _class_parser(task) if task.kind == "classification" else _parse_target
        values = [parse(task, raw.labels[index], raw.place, index) for index in kept]
    labels = np.array(values, dtype=np.int64 if task.kind == "classification" else np.float32)
    _check_size(task, split, len(kept), raw.source)
    if split == "train" and (labels == labels[0]).all():
        what = f"label is {values[0]}" if task.kind == "classification" else f"target is {values[0]:g}"
        raise DataError(f"{raw.source}: in all {len(kept)} rows the {what}; there is nothing to tell apart")
    rows = tuple(texts[index] for index in kept)
    return Split(rows, labels, _fingerprint(rows, labels), raw.source, (*raw.left_out, *left_out), raw.notes)


def _whole_rows(
    task: Task, split: str, raw: RawRows, texts: Sequence[tuple[str, ...]]
) -> tuple[Sequence[int], tuple[str, ...]]:
    """The rows that have texts and a label, and why the others are left out; of GLUE's, none may lack a text."""
    kept, left_out = [], []
    for index, row in enumerate(texts):
        if task.is_whole(row) or split in UNLABELLED:
            if task.own is not None and raw.labels[index] == "":
                left_out.append(f"{raw.place(index)}: {task.label_column} is empty")
            else:
                kept.append(index)
        elif task.own is not None:
            left_out.append(f"{raw.place(index)}: {_empty(task.text_columns)}")
        else:
            column = task.text_columns[row.index("")]
            raise DataError(f"{raw.place(index)}: {column} is empty; give it a text or leave the row out")
    return kept, tuple(left_out)


def _empty(columns: Sequence[str]) -> str:
    return f"{' and '.join(columns)} {'is' if len(columns) == 1 else 'are'} empty"


def _classes(task: Task, raw: RawRows) -> tuple[str, ...]:
    """The classes that the labels name: numbers in their order, else by the alphabet."""
    counts = Counter(str(label) for label in raw.labels if label != "")
    if len(counts) > 2 and len(counts) == counts.total():
        raise DataError(
            f"{raw.source}: every row has another {task.label_column}, such as {', '.join([*counts][:3])}; "
            "for numbers to be predicted, give the task type: regression"
        )
    try:
        return tuple(sorted(counts, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(counts))


def _learned(task: Task, targets: Array) -> Task:
    """The task with the range of its training targets, and their scale if it is scaled."""
    scale = None
    if task.own is not None and task.own.scaled:
        wide = targets.astype(np.float64)
        scale = Scale(float(wide.mean()), float(wide.std()))
    return replace(task, target_range=(float(targets.min()), float(targets.max())), scale=scale)


def _part(whole: Split, rows: Array, left_out: tuple[str, ...]) -> Split:
    texts, labels = tuple(whole.texts[row] for row in rows), whole.labels[rows]
    return Split(texts, labels, _fingerprint(texts, labels), whole.source, left_out)


def _class_parser(task: Task) -> Callable[[Task, object, Callable[[int], str], int], int]:
    by_name = {name: value for value, name in enumerate(task.labels)}
    # GLUE's files have numbers or names; a user's own labels are names, of which one may look like a number.
    known = by_name if task.own is not None else {**{str(value): value for value in by_name.values()}, **by_name}

    def parse(task: Task, label: object, place: Callable[[int], str], index: int) -> int:
        value = known.get(str(label))
        if value is not None:
            return value
        if task.own is not None:
            raise DataError(
                f"{place(index)}: {task.label_column} {choices(str(label), task.labels[:_SHOWN])} These are the "
                f"{len(task.labels)} classes of the training rows; where it is another one, give labels: all of them."
            )
        if str(label) == "-1":
            raise DataError(_unlabelled(place(index)))
        meanings = ", ".join(f"{value} ({name})" for value, name in enumerate(task.labels))
        raise DataError(f"{place(index)}: label {label!r} is not one of: {meanings}")

    return parse


def _parse_target(task: Task, label: object, place: Callable[[int], str], index: int) -> float:
    try:
        value = float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"{place(index)}: {task.label_column} {label!r} is not a number") from None
    low, high = task.target_range or (-math.inf, math.inf)
    if math.isfinite(value) and (task.own is not None or low <= value <= high):
        return value
    if value == -1.0 and task.own is None:
        raise DataError(_unlabelled(place(index)))
    wanted = "a finite number" if task.own is not None else f"between {low:g} and {high:g}"
    raise DataError(f"{place(index)}: {task.label_column} {label!r} is not {wanted}")


def _unlabelled(place: str) -> str:
    return (
        f"{place}: label -1 marks a row without a label, as GLUE's test splits have; "
        "only labelled rows can be trained on or scored"
    )


def _check_size(task: Task, split: str, rows: int, source: str) -> None:
    wanted = task.sizes.get(split)
    if wanted is None or rows == wanted:
        return
    raise DataError(
        f"{source}: {rows} rows, but {task.title}'s {split} split has {wanted}. The usual cause is a copy "
        "written by a reader with quoting on: GLUE's text contains bare double quotes, so such a reader "
        "joins or drops rows without a word (pandas' default, bad lines skipped, leaves 5706 and 1465 rows "
        "of STS-B's 5749 and 1500). Use GLUE's own files, unchanged, read with csv.QUOTE_NONE"
    )


def _fingerprint(texts: Iterable[tuple[str, ...]], labels: Array) -> str:
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
    """Turn the rows of a split into token ids.

    Arguments:
        split: the rows.
        tokenizer: a transformers tokenizer.
        template: "native", the tokenizer's own form; or "spaced", its separators set off by spaces:
            `<s> {s} </s>` and `<s> {s1} </s></s> {s2} </s>`, or `[CLS] {s1} [SEP] {s2} [SEP]`.
        max_length: the longest row, in tokens, special ones included. Of a pair, the longer sentence is
            cut first; the separators stay.

    Raises:
        StudyError: there is no such template, or `max_length` leaves no room for a token of each sentence.
        ModelError: the template needs separators that the tokenizer has not.
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
    form = _spaced_form(tokenizer)
    pair = len(columns) == 2
    heads = [f"{form.cls} {first} {form.sep * (form.between if pair else 1)}" for first in columns[0]]
    whole = [f"{head} {second} {form.sep}" for head, second in zip(heads, columns[1], strict=True)] if pair else heads
    ids = _tokenize(tokenizer, [whole], add_special_tokens=False).ids
    # Special tokens split the text before anything else does: a row begins as its head alone would.
    head_ids = _tokenize(tokenizer, [heads], add_special_tokens=False).ids if pair else ids
    ends = [len(head) for head in head_ids]
    types = [[0] * end + [form.second_type] * (len(row) - end) for row, end in zip(ids, ends, strict=True)]
    long = [index for index, row in enumerate(ids) if len(row) > max_length]
    for index in long:
        kept = _kept(len(ids[index]), ends[index], form.between, max_length)
        ids[index] = [ids[index][at] for at in kept]
        types[index] = [types[index][at] for at in kept]
    return _Rows(ids, types), len(long)


class _SpacedForm(NamedTuple):
    cls: str
    sep: str
    between: int  # separators between the sentences of a pair: 2 for RoBERTa, 1 for BERT
    second_type: int  # the token type of a pair's second sentence


def _spaced_form(tokenizer: Any) -> _SpacedForm:
    """Read from the tokenizer's native form how it sets sentences apart."""
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    refusal = f"template: spaced cannot be used with {type(tokenizer).__name__}; use template: native. "
    if cls is None or sep is None:
        raise ModelError(f"{refusal}It has no cls and sep tokens")
    pair = _tokenize(tokenizer, [["a"], ["b"]])
    between = pair.ids[0].count(tokenizer.sep_token_id) - 1
    spaced = _tokenize(tokenizer, [[f"{cls} a {sep}"]], add_special_tokens=False).ids[0]
    if between < 1 or spaced[0] != tokenizer.cls_token_id or spaced[-1] != tokenizer.sep_token_id:
        raise ModelError(f"{refusal}Its form of a pair is not: {cls} first {sep} second {sep}")
    return _SpacedForm(cls, sep, between, pair.types[0][-1])


def _kept(length: int, end: int, between: int, max_length: int) -> list[int]:
    """The positions that stay when a spaced row is cut to `max_length` tokens: all separators among them.

    Arguments:
        length: the row's tokens, the first being cls and the last sep.
        end: where a pair's first sentence ends, its separators included; `length` for a single sentence.
        between: the separators between the sentences of a pair.
        max_length: how many positions stay.
    """
    last = length - 1
    if end == length:
        return [*range(max_length - 1), last]
    one, two = end - between - 1, last - end  # tokens of each sentence
    room = max_length - (length - one - two)
    # As the tokenizers library cuts longest first: of equals, the second one keeps an odd token.
    short = min(one, two, room // 2)
    one, two = (short, room - short) if one <= two else (room - short, short)
    return [*range(1 + one), *range(end - between, end + two), last]


_TEMPLATES: dict[str, Callable[[Any, Sequence[list[str]], int], tuple[_Rows, int]]] = {
    "native": _native,
    "spaced": _spaced,
}

# Words of Philox's counter that keep the two uses of a seed apart.
_EPOCH_STREAM = 1
_SELECTION_STREAM = 2


def train_split(n: int, seed: int, share: float = 0.1, labels: Array | None = None) -> tuple[Array, Array]:
    """Set a seeded share of the training rows aside, to select snapshots on.

    Arguments:
        n: the number of training rows.
        seed: which rows go; how many never depends on it.
        share: the part to set aside, above 0 and below 1.
        labels: `[n]`; classes (integers) are each split in the same share, at least one row of every
            class that has two on either side. Numbers are not looked at.

    Returns:
        The rows to train on and the rows to select on: int64, ascending, disjoint, all of `n` together.

    Raises:
        DataError: there are too few rows to have one on either side.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share {share} is not above 0 and below 1")
    order = _permutation(n, seed, 0, _SELECTION_STREAM)
    stratified = labels is not None and np.issubdtype(labels.dtype, np.integer)
    groups = labels if labels is not None and stratified else np.zeros(n, dtype=np.int64)
    parts = [order[groups[order] == group] for group in np.unique(groups)]
    selecting = np.sort(np.concatenate([order[:0], *(rows[: _quota(len(rows), share)] for rows in parts)]))
    if selecting.size == 0:
        raise DataError(
            f"selection: train-split sets rows of each class aside, but no class has two rows "
            f"among the {n} training rows; use selection: dev"
        )
    return np.setdiff1d(np.arange(n), selecting, assume_unique=True), selecting


def _quota(rows: int, share: float) -> int:
    return max(1, min(rows - 1, math.floor(rows * share + 0.5))) if rows > 1 else 0


def epoch_order(n: int, seed: int, epoch: int) -> Array:
    """The order in which an epoch sees the rows: `[n]` int64, a permutation keyed by seed and epoch.

    It is drawn from Philox's raw words, which numpy keeps the same from version to version.
    """
    return _permutation(n, seed, epoch, _EPOCH_STREAM)


def _permutation(n: int, seed: int, epoch: int, stream: int) -> Array:
    key = np.array([seed, epoch], dtype=np.uint64)
    philox = np.random.Philox(counter=np.array([0, 0, 0, stream], dtype=np.uint64), key=key)
    return np.argsort(philox.random_raw(n), kind="stable").astype(np.int64)
