"""A study's tasks ready to train: rows as token ids, and what each run trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from manytune.config import Study
from manytune.config.plan import Run, total_steps, warmup_steps
from manytune.data.baselines import SETTINGS, score_baselines
from manytune.data.encodings import encode_cached
from manytune.data.splits import (
    Encoded,
    Split,
    encode,
    leaked,
    limited,
    load_task,
    set_aside,
    train_split,
    uneven_classes,
)
from manytune.data.tasks import SPLITS, Task
from manytune.methods import Adaptation, ParameterCount, count_parameters
from manytune.models.loading import load_tokenizer, model_spec
from manytune.models.spec import ModelSpec
from manytune.packing.heads import reach
from manytune.storage.artifacts import Baselines, TaskArtifacts
from manytune.training.learnable import refuse_unlearnable
from manytune.training.loop import PackData
from manytune.utils.errors import DataError, ModelError, StoreError
from manytune.utils.text import counted, listed

_NEVER = 10**9  # tokens; no row is so long
_REASONS = 3  # why rows were left out, in a note
_MOST_FITS = 3  # seeds whose rows baselines learn from, where each seed has rows of its own


@dataclass(frozen=True)
class TaskWork:
    """One task of a study, encoded for its backbone."""

    study: Study
    task: Task
    train: Encoded
    dev: Encoded
    model_spec: ModelSpec  # the backbone's tensors and the task's head, without values
    fingerprint: str  # SHA-256 over all splits
    sources: tuple[str, ...]  # where the rows of each split came from
    dev_texts: tuple[tuple[str, ...], ...]  # the dev split's sentences, one or two a row
    also: Mapping[str, Encoded] = field(default_factory=dict)  # other splits that a run's best snapshot is scored on
    limited_from: int | None = None  # training rows before the study's limit; None without one
    data_notes: tuple[str, ...] = ()  # what was found in the rows that a reader of the results should know
    baselines: Baselines | None = None  # where they were asked for

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know of the data."""
        most, whose = longest(self.study, self.model_spec)
        limit = (
            [] if self.limited_from is None else [f"{self.task.name}: the limit leaves {self.rows_used} to train on."]
        )
        cut = [
            counted(data.truncated, f"{name} row", of=data.size)
            for name, data in (("train", self.train), ("dev", self.dev))
            if data.truncated
        ]
        verb = "was" if self.train.truncated + self.dev.truncated == 1 else "were"
        notes = [f"{self.task.name}: {' and '.join(cut)} {verb} cut at {most} tokens, {whose}."] if cut else []
        return [*limit, *self.data_notes, *notes]

    @property
    def rows_used(self) -> str:
        """The training rows, in words: "800 of 8,551 rows"; those that are set aside to select or compare included."""
        search = self.study.search
        used = self.train.size + (self.dev.size if search is not None and search.select == "train-split" else 0)
        if self.limited_from is None:
            return counted(used, "row")
        return f"{used:,} of {counted(self.limited_from, 'row')}"

    @property
    def width(self) -> int:
        """Hidden width of the backbone."""
        return next(iter(self.model_spec.linears.values()))[0]

    @cached_property
    def train_size(self) -> int:
        """Rows that each run trains on."""
        return len(self._split(seed=0)[0])

    @cached_property
    def evaluated_tokens(self) -> int:
        """Tokens of the rows that select a run's snapshot, which each evaluation goes through."""
        selecting = self.train if self.study.selection == "train-split" else self.dev
        return int(selecting.lengths[self._split(seed=0)[1]].sum())

    def adaptation(self, run: Run) -> Adaptation:
        """What a run trains. Raises StudyError where its method does not fit the backbone."""
        return run.method.adapt(self.model_spec)

    def parameters(self, run: Run) -> ParameterCount:
        """How many parameters a run has and trains."""
        return count_parameters(self.model_spec, self.adaptation(run))

    def pack_data(self, runs: Sequence[Run]) -> PackData:
        """The rows that each run trains on and is selected by."""
        if self.study.selection != "train-split":  # all runs share two arrays
            train, select = self._split(seed=0)
            # A search compares what trials come to at their ends, because its winners train again to theirs.
            selects = self.study.selection == "dev" and self.study.search is None
            return PackData(self.train, self.dev, (train,) * len(runs), (select,) * len(runs), selects)
        return PackData(self.train, self.train, *zip(*(self._split(run.seed) for run in runs), strict=True))

    def warnings(self, runs: Sequence[Run]) -> Iterator[str]:
        """Settings that cannot work as they are meant, for the user to know before training."""
        alike = {run.training or self.study.training: run.label for run in reversed(runs)}
        for training, label in reversed(alike.items()):
            total = total_steps(training, self.train_size)
            if (warmup := warmup_steps(training, total)) >= total:
                whose = "no run" if len(alike) == 1 else f"{label} never"
                key = "warmup_steps" if training.warmup_ratio is None else "warmup_ratio"
                yield (
                    f"{self.task.name}: the warm-up takes {counted(warmup, 'step', of=total)}, so {whose} reaches its "
                    f"learning rate. Lower training.{key}, or train longer."
                )
        yield from self._limited_heads(runs)
        notes = dict.fromkeys(note for run in runs for note in run.method.notes(self.model_spec))
        yield from (f"{self.task.name}: {note}" for note in notes)

    def _limited_heads(self, runs: Sequence[Run]) -> Iterator[str]:
        """Heads whose weights do not train, and whose predictions cannot reach all targets of a regression."""
        if self.task.target_range is None:
            return
        lowest, highest = self.task.inside(np.array(self.task.target_range))
        for run in {run.label: run for run in runs if run.method.head != "full"}.values():
            far = reach(self.model_spec.head, run.seed)
            center = (lowest + highest) / 2 if run.method.head == "bias" else 0.0
            if center - far > lowest or center + far < highest:
                yield (
                    f"{self.task.name}: {run.label} keeps the head's random weights, so its predictions "
                    f"cannot span more than {2 * far:.2g}, from {center - far:.2g} to {center + far:.2g}, "
                    f"while targets go from {lowest:g} to {highest:g}. Train the head (head: full) to reach them."
                )

    def _split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return selection_rows(self.study, self.train.labels, self.dev.size, seed)


def selection_rows(study: Study, labels: np.ndarray, dev_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that a run trains on, of those with `labels`, and those that select its snapshot, of dev or of train."""
    if study.selection != "train-split":
        return np.arange(len(labels)), np.arange(dev_size)
    return train_split(len(labels), seed, labels=labels)


def load_splits(study: Study, name: str) -> tuple[Task, dict[str, Split]]:
    """A task of a study and its splits by name; raises ManytuneError where they cannot be had or do not fit."""
    task, splits = load_task(study.task(name), study.data_dir)
    if (limit := study.limit_of(name)) is not None:
        splits["train"] = limited(task, splits["train"], limit)
    if study.search is not None and study.search.select == "train-split":
        splits = set_aside(splits["train"])
    refuse_unlearnable(study, task, splits)
    return task, splits


def measure_baselines(
    study: Study, task: Task, splits: Mapping[str, Split], artifacts: TaskArtifacts | None = None
) -> Baselines:
    """What baselines score on the rows that a study trains and scores on; those in `artifacts` if of the same rows."""
    import sklearn

    seeds = study.seeds[:_MOST_FITS] if study.selection == "train-split" else ()
    made = Baselines(
        fingerprint=fingerprint_of(splits),
        selection=study.selection,
        seeds=tuple(seeds),
        versions={"scikit-learn": sklearn.__version__},
        settings=dict(SETTINGS),
    )
    with suppress(StoreError):  # damaged ones are made anew
        kept = None if artifacts is None else artifacts.baselines()
        if kept is not None and kept.made_as(made):
            return kept
    train, dev = splits["train"], splits["dev"]
    row_sets = [selection_rows(study, train.labels, len(dev), seed)[0] for seed in seeds or (0,)]
    return made.model_copy(update={"scores": score_baselines(task, splits, row_sets)})


def fingerprint_of(splits: Mapping[str, Split]) -> str:
    """The SHA-256 over all splits of a task, which records keep."""
    return hashlib.sha256("".join(rows.fingerprint for rows in splits.values()).encode()).hexdigest()


def prepare(
    study: Study,
    name: str,
    spec_of: Callable[[int], ModelSpec] | None = None,
    *,
    artifacts: TaskArtifacts | None = None,
) -> TaskWork:
    """Load, check and encode a task's rows.

    `spec_of` maps outputs → the backbone's tensors and head, as the loaded weights have them; None: as they are known
    without loading weights. With the task's `artifacts`, baselines are had too: the kept ones, if they are of the same
    rows. Raises ManytuneError where the data or the tokenizer cannot be had or do not fit the study.
    """
    task, splits = load_splits(study, name)
    parts = model_spec(study.model, task.num_outputs) if spec_of is None else spec_of(task.num_outputs)
    tokenizer = load_tokenizer(study.model)
    encoded = {split: encode_split(study, parts, tokenizer, rows) for split, rows in splits.items()}
    blank_notes = [
        f"{name}: {counted(len(blank), f'{split} row', 'has|have')} no token of "
        f"{'its' if len(blank) == 1 else 'their'} own, the first is {rows.place(blank[0])}."
        for split, rows in splits.items()
        if (blank := blank_rows(tokenizer, rows, encoded[split]))
    ]
    return TaskWork(
        study,
        task,
        encoded["train"],
        encoded["dev"],
        parts,
        fingerprint_of(splits),
        tuple(rows.source for rows in splits.values()),
        splits["dev"].texts,
        {split: rows for split, rows in encoded.items() if split not in SPLITS},
        splits["train"].limited_from,
        (*_data_notes(study, task, splits), *blank_notes),
        None if artifacts is None else measure_baselines(study, task, splits, artifacts),
    )


def _data_notes(study: Study, task: Task, splits: Mapping[str, Split]) -> Iterator[str]:
    """Rows left out, and what in a user's own rows makes scores too high or classes hard to learn."""
    for name, rows in splits.items():
        if rows.left_out:
            some = "; ".join(rows.left_out[:_REASONS]) + ("; …" if len(rows.left_out) > _REASONS else "")
            yield f"{task.name}: {counted(len(rows.left_out), f'{name} row', 'was|were')} left out ({some})."
    if task.own is None:
        return
    set_aside_too = study.search is not None and study.search.select == "train-split"
    if not set_aside_too and (shared := leaked(splits["train"], splits["dev"])):
        yield (
            f"{task.name}: {counted(len(shared), 'dev row', 'has|have', of=len(splits['dev']))} the text of a training "
            "row, so scores "
            "on dev are too high. `manytune check` lists them."
        )
    counts = task.type.class_counts(task, splits["train"].labels)
    if never := [name for name, count in counts.items() if count == 0]:
        yield f"{task.name}: no training row is of {listed(never)}, so no run learns to tell it."
    if (uneven := uneven_classes(task, splits["train"])) is not None:
        (few, least), (many, most) = uneven
        yield (
            f"{task.name}: the classes are uneven, from {counted(least, 'training row')} ({few}) to {most} ({many})"
            + ("; see training.class_weights: balanced." if study.training.class_weights == "none" else ".")
        )


def blank_rows(tokenizer: Any, rows: Split, encoded: Encoded) -> list[int]:
    """The rows of which the tokenizer makes only special tokens: a model cannot tell them apart."""
    special = tokenizer.num_special_tokens_to_add(pair=len(rows.texts[0]) == 2)
    found: list[int] = np.flatnonzero(encoded.lengths <= special).tolist()
    return found


def encode_texts(study: Study, parts: ModelSpec, tokenizer: Any, texts: Sequence[tuple[str, ...]]) -> Encoded:
    """Encode rows without labels as the study encodes those of a task."""
    return encode_split(study, parts, tokenizer, Split(tuple(texts), np.zeros(len(texts)), "", ""))


def encode_split(study: Study, parts: ModelSpec, tokenizer: Any, rows: Split, *, whole: bool = False) -> Encoded:
    """Encode rows as the study does, cut at its longest length, or with `whole` as long as they are.

    Raises ManytuneError where the tokenizer does not belong to the backbone, makes no token of a row, or cannot cut so.
    """
    limit = _NEVER if whole else longest(study, parts)[0]
    encoder = encode_cached if rows.fingerprint else encode
    encoded = encoder(rows, tokenizer, template=study.template, max_length=limit)
    empty = np.flatnonzero(encoded.lengths == 0)
    if len(empty):
        row = int(empty[0])
        raise DataError(
            f"{rows.place(row)}: the tokenizer of {study.model} makes no token of {' | '.join(rows.texts[row])!a:.80}"
            f", one of {len(empty)} such rows. Leave them out, or choose another model: most tokenizers put special "
            "tokens around every row."
        )
    if parts.token_types <= 1:  # all tokens are of type 0, as by default in transformers
        encoded = replace(encoded, types=np.zeros_like(encoded.types))
    embeddings = (("token id", parts.vocabulary, encoded.ids), ("token type", max(parts.token_types, 1), encoded.types))
    for what, known, values in embeddings:
        if (highest := int(values.max(initial=0))) >= known:
            raise ModelError(
                f"model: the tokenizer of {study.model} gives the {what} {highest}, but the backbone has embeddings "
                f"for 0 to {known - 1} alone: the two do not belong together. Put the tokenizer's files that the "
                "model was trained with beside its config.json."
            )
    return encoded


def longest(study: Study, parts: ModelSpec) -> tuple[int, str]:
    """The most tokens that a row may have, and what says so."""
    if parts.max_length < study.training.max_length:
        return parts.max_length, f"the most that {study.model} takes"
    return study.training.max_length, "which is training.max_length"
