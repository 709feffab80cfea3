"""Training and Study: the contents of a study file, and the checks that need more than one of its values."""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import AliasPath, Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from manytune.config import values
from manytune.config.own_task import OwnTask, TaskEntry
from manytune.config.study_file import Source, dump, read
from manytune.config.sweeps import AnySweep
from manytune.data.tasks import Task, get_task
from manytune.methods import METHODS
from manytune.utils import fields
from manytune.utils.errors import StudyError, choices
from manytune.utils.fields import MOST, Count, Fraction, Frozen, NotNegative, Positive, WholeNumber
from manytune.utils.problems import MOST_PROBLEMS, KeyPath, Problem, from_pydantic, message, show
from manytune.utils.text import listed

MEANS: set[str] = {"checkpoint_every", "max_pack"}
"""Training settings on which no result depends, so they may change between two starts of a study."""

MOST_RUNS = 100_000
"""Most runs of a study: the plan of so many takes a minute and 100 MB."""

_MOST_CHARACTERS = 500_000  # a study directory keeps it with all defaults, which must be within what is read

DEFAULT_EPOCHS = 3.0
DEFAULT_WARMUP = 0


class Training(Frozen):
    """How every run of a study trains. A step is one update by the optimizer."""

    batch_size: Count = 16
    """Training samples of one run in one batch."""
    epochs: Annotated[Positive, Field(le=1e6)] | None = Field(
        default=None, json_schema_extra={"default": DEFAULT_EPOCHS}
    )
    """Passes over the training data, fractions included; 3 unless `max_steps` is given."""
    max_steps: Count | None = None
    """Length of the training in optimizer steps, instead of `epochs`."""
    max_length: Annotated[int, Field(strict=True, ge=4, le=MOST)] = 512
    """Longest input in tokens, special tokens included; what is longer is cut, counted and reported."""
    warmup_steps: WholeNumber | None = Field(default=None, json_schema_extra={"default": DEFAULT_WARMUP})
    """Optimizer steps in which the learning rate rises from 0 to its peak; instead of `warmup_ratio`."""
    warmup_ratio: Fraction | None = None
    """Length of the warm-up as a share of all optimizer steps, below 1; instead of `warmup_steps`."""
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    """The learning rate after the warm-up: falls to 0 in a line, stays, or falls to 0 along a cosine."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled weight decay; biases and norms are left out, as in transformers.Trainer."""
    adam_beta1: Fraction = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: Fraction = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: Positive = 1e-8
    """What AdamW adds to its denominator."""
    max_grad_norm: values.GradNorm = 1.0
    """A run's gradient is scaled down to this norm where it is larger; 0 or null: never."""
    accumulate: Count = 1
    """Batches whose gradients make one optimizer step."""
    eval_every: values.EvalEvery = "epoch"
    """When to evaluate: every epoch, or every so many optimizer steps; the last step is always evaluated."""
    early_stopping: Count | None = None
    """Evaluations in a row without improvement after which a run ends; null: never."""
    class_weights: values.ClassWeights = "none"
    """Weights of the classes in a classification's loss: none, balanced (inverse to their frequency in the
    training data), or a list with one number a class."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the backbone's computations; auto is bf16 where the hardware is fast at it."""
    checkpoint_every: values.CheckpointEvery = "auto"
    """When to write what a pack that is killed goes on from: every so many optimizer steps, or, auto, every five
    minutes; and always after an evaluation and before a run ends. It changes no result."""
    max_pack: values.MaxPack = "auto"
    """Most runs that train together over one copy of the backbone: changes speed and memory, not results. Auto is as
    many as make it faster and fit into memory."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Fill in the length of the training and of the warm-up where none is given in either form."""
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        for one, other, default in (
            ("epochs", "max_steps", DEFAULT_EPOCHS),
            ("warmup_steps", "warmup_ratio", DEFAULT_WARMUP),
        ):
            if filled.get(one) is None and filled.get(other) is None:
                filled[one] = default
        return filled

    @pydantic.field_validator("max_steps", "warmup_ratio")
    @classmethod
    def _one_form(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        other = {"max_steps": "epochs", "warmup_ratio": "warmup_steps"}[str(info.field_name)]
        if value is not None and info.data.get(other) is not None:
            raise ValueError(
                f"it contradicts {other}, which is {show(info.data[other])}: give one of the two, "
                "and leave the other out or set it to null"
            )
        return value


class Reporting(Frozen):
    """What a verdict goes by; no run depends on it."""

    margin: values.Margin = None
    """How much worse, in the metric's unit, counts as as good: a number, or a mapping from tasks to numbers. By
    default 0.01 of a metric whose best score is 1, and of an error 1 % of what a constant prediction makes."""


class Study(Frozen):
    """What one study file says: tasks x methods x hyper-parameters x seeds on one model.

    However it is constructed, it raises StudyError with a message that lists every problem.
    """

    name: values.StudyName
    """What the study is called in reports."""
    model: values.PathOrName = "minilm"
    """The backbone: `minilm` (the offline default), a hub name (with @revision), or a local folder."""
    tasks: Annotated[tuple[TaskEntry, ...], Field(min_length=1), fields.distinct]
    """The tasks to train on, each by itself: names of known ones, or descriptions of one's own."""
    data_dir: values.PathOrName | None = None
    """A folder of local data in GLUE's layout, instead of the hub; the built-in tasks need none."""
    seeds: values.Seeds
    """Every run is repeated with each of these; a seed fixes initialization, data order and dropout. Or a mapping with
    the numbers of seeds at which the scores are to be looked at: `{looks: [5, 10, 20]}` begins with seeds 0 to 4, and
    `list` says which seeds there are instead."""
    looks: values.Looks = Field(default=(), validation_alias=AliasPath("seeds", "looks"))
    """Numbers of seeds at which looks are planned, ascending; empty without a plan."""
    template: Literal["native", "spaced"] = "native"
    """How texts become tokens: as the tokenizer does it, or with a space before each special token."""
    selection: Literal["dev", "train-split"] = "dev"
    """What selects a run's best snapshot: the dev set itself, or a tenth of the training data, held out."""
    limit: values.Limit = None
    """Most training rows of each task, for trials: a number, or a mapping from tasks to numbers; all by default. The
    rows are the same for every run, each class in its share. The dev rows stay, so that scores compare."""
    training: Annotated[Training, fields.or_default({})] = Training()
    """How every run trains."""
    methods: Annotated[tuple[AnySweep, ...], Field(min_length=1)]
    """The ways to train. Lists multiply with each other, with the tasks and with the seeds."""
    report: Annotated[Reporting, fields.or_default({})] = Reporting()
    """What the report's verdict goes by."""
    tracking: Annotated[tuple[values.TrackerName, ...], fields.distinct] = ()
    """Experiment trackers that log every run, beside the study directory."""

    @classmethod
    def from_file(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a study from a YAML file, with `key.sub=value` overrides (see `study_file.apply_overrides`).

        Raises StudyError where the file cannot be read, or it is not a study.
        """
        source = read(path, overrides)
        return cls.model_validate(source.data, context=source)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a study of plain data, as a YAML file would hold it; raises StudyError where it is not a study."""
        return cls.model_validate(data)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in the study's order."""
        return tuple(entry.name if isinstance(entry, OwnTask) else entry for entry in self.tasks)

    def task(self, name: str) -> Task:
        """The task called `name`, as far as it is known without its data; raises StudyError where there is none."""
        entries = dict(zip(self.task_names, self.tasks, strict=True))
        if name not in entries:
            raise StudyError(f"tasks: {choices(name, entries)}")
        entry = entries[name]
        return entry.to_task() if isinstance(entry, OwnTask) else get_task(entry)

    def limit_of(self, task: str) -> int | None:
        """Most training rows of a task; None for all."""
        return self.limit.get(task) if isinstance(self.limit, Mapping) else self.limit

    def margin_of(self, task: str) -> float | None:
        """How much worse counts as as good on a task; None for the default."""
        margin = self.report.margin
        return margin.get(task) if isinstance(margin, Mapping) else margin

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the study's canonical JSON.

        `MEANS`, `tracking`, `report` and planned looks are left out: no result depends on them; so is a `limit` that is
        not given, which studies of before have not.
        """
        excluded: dict[str, Any] = {
            "training": MEANS,
            **dict.fromkeys(("tracking", "report", "looks"), True),
            **({"limit": True} if self.limit is None else {}),
        }
        return digest(self.model_dump(mode="json", exclude=excluded), 12)

    def to_yaml(self) -> str:
        """The effective study, defaults included, as YAML that `from_file` reads back as an equal study."""
        return dump(self.model_dump(mode="json", exclude_none=True))

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plain data in the form that is read: looks belong to `seeds`."""
        data: dict[str, Any] = handler(self)
        if looks := data.pop("looks", None):
            data["seeds"] = {"looks": looks, "list": data["seeds"]}
        if self.report == Reporting():
            data.pop("report", None)
        return data

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _in_plain_words(
        cls, data: Any, handler: pydantic.ModelWrapValidatorHandler[Self], info: pydantic.ValidationInfo
    ) -> Self:
        source = info.context if isinstance(info.context, Source) else Source("The study", data)
        try:
            study = handler(data)
            found = list(itertools.islice(_contradictions(study), MOST_PROBLEMS + 1))
        except ValidationError as error:
            found = from_pydantic(error, data, functools.partial(_unknown_key, data))
        if found:
            raise StudyError(message(source.name, found, source.where))
        return study


def _contradictions(study: Study) -> Iterator[Problem]:
    """What is wrong although every value is right by itself."""
    names = study.task_names
    first = {name: index for index, name in reversed(list(enumerate(names)))}
    for index, name in enumerate(names):
        if first[name] != index:
            yield Problem(("tasks", index), f"there is a task {name!r} already; give this one another name.")
    uncovered = False
    for index, sweep in enumerate(study.methods):
        for name, axis in sweep:
            for problem in _uncovered(axis, names, ("methods", index, name)) if isinstance(axis, Mapping) else ():
                uncovered = True
                yield problem  # lazily: of thousands, only those that are shown are put into words
    for path, by_task in ((("limit",), study.limit), (("report", "margin"), study.report.margin)):
        for name in by_task if isinstance(by_task, Mapping) else ():
            if name not in first:
                yield Problem((*path, name), f"this is no task of the study. {choices(name, names)}")
    runs = 0 if uncovered else len(study.seeds) * sum(sweep.count(name) for sweep in study.methods for name in names)
    if runs > MOST_RUNS:
        yield Problem(
            (),
            f"it comes to {show(runs)} runs, since lists multiply with each other, with tasks and with seeds; a "
            f"study can have {MOST_RUNS:,}. Make several studies of it; one report can take them together.",
        )
    if len(json.dumps(study.model_dump(mode="json"))) > _MOST_CHARACTERS:
        yield Problem((), f"with its defaults it takes more than {_MOST_CHARACTERS:,} characters. Make several of it.")
    weights = study.training.class_weights
    if weights == "none":
        return
    classified = [task for task in map(study.task, names) if task.type.has_classes]
    if not classified:
        what = "but no task of this study is a classification. Leave it out."
        yield Problem(("training", "class_weights"), f"received {show(weights)}, {what}")
    for task in classified:
        count = len(task.labels)
        if isinstance(weights, tuple) and count and len(weights) != count:
            what = f"received {len(weights)} numbers, but {task.name} has {count} classes. Give one number a class."
            yield Problem(("training", "class_weights"), what)


def _uncovered(by_task: Mapping[str, Any], tasks: Sequence[str], path: KeyPath) -> Iterator[Problem]:
    known = set(tasks)
    for name in by_task:
        if name not in known:
            yield Problem((*path, name), f"this is no task of the study. {choices(name, tasks)}")
    missing = [name for name in tasks if name not in by_task]
    if missing:
        what = f"it chooses by task, but has nothing for {listed(missing)}. Every task needs a value."
        yield Problem(path, what)


def _unknown_key(data: Any, path: KeyPath, key: str) -> str:
    """Which keys are allowed in the mapping at `path` (pydantic's location) of a study's `data`, where `key` is not."""
    homes: dict[str, Collection[str]] = {
        "": [name for name in Study.model_fields if name != "looks"],
        "training": Training.model_fields,
        "report": Reporting.model_fields,
        "seeds": values.PlannedSeeds.model_fields,
        **{name: method.model_fields for name, method in METHODS.items()},
    }
    if path and path[-1] == "<own>":
        return choices(key, OwnTask.model_fields)
    here = str(path[0]) if path else ""
    if here == "methods":
        here = data["methods"][path[1]]["method"]
    allowed = homes[here]
    everywhere = {name for keys in homes.values() for name in keys}
    if key not in everywhere and not difflib.get_close_matches(key[:80], allowed):
        near = difflib.get_close_matches(key[:80], sorted(everywhere), n=1, cutoff=0.8)
        return f"Did you mean {near[0]!r}? {_unknown_key(data, path, near[0])}" if near else choices(key, allowed)
    elsewhere = [home for home, keys in homes.items() if home != here and key in keys]
    if not elsewhere:
        return choices(key, allowed)
    for home in ("training", "report", "seeds"):
        if home in elsewhere:
            return f"It belongs under {home!r}: {home}.{key}."
    if "" in elsewhere:
        return "It belongs at the top level of the file."
    if here not in METHODS:
        return f"It belongs to an entry of 'methods' ({', '.join(elsewhere)})."
    return f"It belongs to {', '.join(elsewhere)}; {here} takes: {', '.join(allowed)}."


class _Schema(GenerateJsonSchema):
    """Leaves out pydantic's titles, which only repeat the fields' names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def study_json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the study file, by which editors complete and check it."""
    schema = Study.model_json_schema(mode="validation", schema_generator=_Schema)
    del schema["properties"]["looks"]  # a part of `seeds`
    heading = {"title": "manytune study", "description": (Study.__doc__ or "").partition("\n")[0]}
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, **heading}


def digest(data: Any, digits: int) -> str:
    """The first hexadecimal digits of the SHA-256 of `data` as canonical JSON: sorted keys, no spaces."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
