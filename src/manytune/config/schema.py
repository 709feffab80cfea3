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
from pydantic import AliasPath, BeforeValidator, Field, ValidationError, WrapValidator
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticKnownError

from manytune.config import values
from manytune.config.axes import CHOICE_KEYS, RANGE_KEYS
from manytune.config.own_task import OwnTask, TaskEntry
from manytune.config.search import Confirm, Halving, Search
from manytune.config.search_checks import search_problems
from manytune.config.spaces import Choice
from manytune.config.study_file import Source, dump, read
from manytune.config.sweeps import AnySweep
from manytune.config.training_settings import MEANS, STUDY_WIDE, Training
from manytune.data.tasks import Task, get_task
from manytune.methods import METHODS
from manytune.utils import fields
from manytune.utils.errors import StudyError, choices
from manytune.utils.fields import Frozen
from manytune.utils.problems import MOST_PROBLEMS, KeyPath, Problem, from_pydantic, message, show
from manytune.utils.text import listed

MOST_RUNS = 100_000
"""Most runs of a study: the plan of so many takes a minute and 100 MB."""

_MOST_CHARACTERS = 500_000  # a study directory keeps it with all defaults, which must be within what is read


_ABSENT: Any = object()  # the default of a key that only some studies need


def _confirm_of(value: Any, info: pydantic.ValidationInfo) -> Any:
    if value == "none":
        return None
    return Confirm() if value is None and info.data.get("search") is not None else value


def _unless_searched(value: Any, handler: pydantic.ValidatorFunctionWrapHandler, info: pydantic.ValidationInfo) -> Any:
    if "search" in info.data and info.data["search"] is None:
        if value is _ABSENT:
            raise PydanticKnownError("missing")
        return handler(value)
    if value is _ABSENT or "search" not in info.data:
        return ()
    raise ValueError(
        "each trial of a search has a seed of its own, and confirm.seeds counts the winners': leave it out"
    )


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
    search: Search | None = None
    """How settings with a range or a choice are searched; not given: the study is fixed. A search has no `seeds`."""
    confirm: Annotated[
        Confirm | None, BeforeValidator(_confirm_of, json_schema_input_type=Literal["none"] | Confirm | None)
    ] = Field(None, validate_default=True)
    """How the winner of each search space is judged: trained anew, with seeds of its own; `none`: not at all."""
    seeds: Annotated[values.Seeds, WrapValidator(_unless_searched)] = Field(
        default_factory=lambda: _ABSENT, validate_default=True
    )
    """Every run is repeated with each of these; a seed fixes initialization, data order and dropout. Or a mapping with
    the numbers of seeds at which the scores are to be looked at: `{looks: [5, 10, 20]}` begins with seeds 0 to 4, and
    `list` says which seeds there are instead."""
    looks: values.Looks = Field(default=(), validation_alias=AliasPath("seeds", "looks"))
    """Numbers of seeds at which looks are planned, ascending; empty without a plan."""
    template: Literal["native", "spaced"] = "native"
    """How texts become tokens: as the tokenizer does it, or with a space before each special token."""
    selection: Literal["dev", "train-split", "none"] = "dev"
    """What selects a run's best snapshot: the dev set itself, or a tenth of the training data, held out. With none,
    nothing does: all training rows train, and the last step's snapshot is the result."""
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

    def class_weights(self) -> Iterator[tuple[KeyPath, Any]]:
        """The weights of classes in the loss that the study or its entries have, and where they are said."""
        axes: dict[KeyPath, tuple[Any, ...]] = {("training", "class_weights"): (self.training.class_weights,)}
        for index, sweep in enumerate(self.methods):
            axis = sweep.axes.get("training.class_weights", ())
            for items in axis.values() if isinstance(axis, Mapping) else (axis,):
                axes["methods", index, "training", "class_weights"] = items
        for path, items in axes.items():
            values = (value for item in items for value in (item.values if isinstance(item, Choice) else (item,)))
            yield from ((path, value) for value in values if value != "none")

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
        if self.search is None:
            unsaid: tuple[str, ...] = ("search", "confirm")
        else:
            unsaid = ("seeds", "selection")
            data["confirm"] = data.get("confirm") or "none"
        return {key: value for key, value in data.items() if key not in unsaid}

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
        for name, axis in sweep.axes.items():
            path: KeyPath = ("methods", index, *name.split("."))
            for problem in _uncovered(axis, names, path) if isinstance(axis, Mapping) else ():
                uncovered = True
                yield problem  # lazily: of thousands, only those that are shown are put into words
    for path, by_task in ((("limit",), study.limit), (("report", "margin"), study.report.margin)):
        for name in by_task if isinstance(by_task, Mapping) else ():
            if name not in first:
                yield Problem((*path, name), f"this is no task of the study. {choices(name, names)}")
    combinations = 0 if uncovered else sum(sweep.count(name) for sweep in study.methods for name in names)
    if study.search is None:
        runs = combinations * len(study.seeds)
    else:
        runs = combinations * ((study.search.trials or 1) + (study.confirm.seeds if study.confirm else 0))
    if runs > MOST_RUNS:
        yield Problem(
            (),
            f"it comes to {show(runs)} runs, since lists multiply with each other, with tasks and with "
            f"{'trials' if study.search else 'seeds'}; a study can have {MOST_RUNS:,}. Make several studies of it; one "
            "report can take them together.",
        )
    elif not uncovered:
        yield from search_problems(study)
    if len(json.dumps(study.model_dump(mode="json"))) > _MOST_CHARACTERS:
        yield Problem((), f"with its defaults it takes more than {_MOST_CHARACTERS:,} characters. Make several of it.")
    classified = [task for task in map(study.task, names) if task.type.has_classes]
    for path, weights in study.class_weights():
        if not classified:
            what = "but no task of this study is a classification. Leave it out."
            yield Problem(path, f"received {show(weights)}, {what}")
        for task in classified:
            count = len(task.labels)
            if isinstance(weights, tuple) and count and len(weights) != count:
                what = f"received {len(weights)} numbers, but {task.name} has {count} classes. Give one number a class."
                yield Problem(path, what)


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
        "search": Search.model_fields,
        "confirm": Confirm.model_fields,
        **{name: [*method.model_fields, "training"] for name, method in METHODS.items()},
    }
    inside: dict[Any, Collection[str]] = {
        **{"<own>": OwnTask.model_fields, "<range>": RANGE_KEYS, "<choice>": CHOICE_KEYS},
        "<halving>": Halving.model_fields,
        "<multiple>": [f"of_{other}" for method in METHODS.values() for other in method.multiples.values()],
    }
    if path and path[-1] in inside:
        return choices(key, inside[path[-1]])
    here = str(path[0]) if path else ""
    if here == "methods" and len(path) > 2:  # an entry's own training
        if key in STUDY_WIDE:
            return f"All runs of a study have the same {key}: it belongs under 'training' at the top level of the file."
        return choices(key, [name for name in Training.model_fields if name not in STUDY_WIDE])
    if here == "methods":
        here = data["methods"][path[1]]["method"]
    allowed = homes[here]
    everywhere = {name for keys in homes.values() for name in keys}
    if key not in everywhere and not difflib.get_close_matches(key[:80], allowed):
        near = difflib.get_close_matches(key[:80], sorted(everywhere), n=1, cutoff=0.8)
        return f"Did you mean {near[0]!r}? {_unknown_key(data, path, near[0])}" if near else choices(key, allowed)
    elsewhere = [home for home, keys in homes.items() if home != here and key in keys]
    absent = all(home in ("search", "confirm") and home not in data for home in elsewhere)
    if not elsewhere or (absent and difflib.get_close_matches(key[:80], allowed, cutoff=0.8)):
        return choices(key, allowed)  # who writes seed without a search means seeds
    if here == "search" and "confirm" in elsewhere:
        return f"It belongs under 'confirm': confirm.{key}."
    for home in ("training", "report", "search", *(() if "" in elsewhere else ("confirm",)), "seeds"):
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
    schema["oneOf"] = [{"required": ["seeds"]}, {"required": ["search"]}]
    heading = {"title": "manytune study", "description": (Study.__doc__ or "").partition("\n")[0]}
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, **heading}


def digest(data: Any, digits: int) -> str:
    """The first hexadecimal digits of the SHA-256 of `data` as canonical JSON: sorted keys, no spaces."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
