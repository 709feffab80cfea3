"""A user's own task, as a study describes it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from manytune.config.values import OwnName, PathOrName, TaskName
from manytune.data.tasks import OwnData, Task
from manytune.data.text_lines import Dialect, check_encoding, separator_word
from manytune.utils.errors import choices
from manytune.utils.fields import Frozen, distinct

if TYPE_CHECKING:
    from manytune.data.task_types import TaskType


def _task_types() -> Mapping[str, TaskType]:
    from manytune.data.task_types import TASK_TYPES  # numpy, which most studies do without

    return TASK_TYPES


def _one_or_list(what: str) -> BeforeValidator:
    """Take a name for a list of it; `what` says what else there may be."""

    def listed(value: Any) -> Any:
        if not isinstance(value, (str, list, tuple)):
            raise ValueError(f"it must be {what}")
        return [value] if isinstance(value, str) else value

    return BeforeValidator(listed, json_schema_input_type=_Column | list[_Column])


def _unless(right: Callable[[Any], object], why: str) -> AfterValidator:
    """Refuse a value that is not right, and say why."""

    def check(value: Any) -> Any:
        if not right(value):
            raise ValueError(why)
        return value

    return AfterValidator(check)


def _class_name(value: Any) -> Any:
    from manytune.data.cells import label_of

    return label_of(value) if isinstance(value, str) else value


def _known_type(name: str) -> str:
    if name not in (types := _task_types()):
        raise PydanticCustomError("unknown_type", "{choices}", {"choices": choices(name, types)})
    return name


_OF_FILES = ("quoting", "separator", "encoding")
_Encoding = Annotated[str, Field(min_length=1), AfterValidator(check_encoding)]
_Separator = Annotated[
    Literal["comma", "semicolon", "tab", "pipe"],
    BeforeValidator(separator_word),
]
_LANGUAGE = "[A-Za-z]{2,3}(-[A-Za-z0-9]+)*"
_Column = Annotated[str, Field(min_length=1)]
_Columns = Annotated[
    tuple[_Column, ...],
    Field(min_length=1, json_schema_extra={"maxItems": 2}),
    distinct,
    _unless(
        lambda names: len(names) <= 2,
        "a model reads one text or two; join the columns into one or two in the data before",
    ),
    _one_or_list("a column's name, or a list of two for a pair of texts"),
]
_Metrics = Annotated[
    tuple[_Column, ...], Field(min_length=1), distinct, _one_or_list("a metric's name, or a list of them")
]
_Labels = Annotated[
    tuple[Annotated[_Column, BeforeValidator(_class_name)], ...],
    Field(min_length=1, json_schema_extra={"minItems": 2}),
    distinct,
    _unless(lambda names: len(names) >= 2, "it must name at least two classes"),
]
_Language = Annotated[
    str,
    _unless(re.compile(_LANGUAGE).fullmatch, "it must be a code such as en, de or pt-BR"),
    pydantic.WithJsonSchema({"type": "string", "pattern": f"^{_LANGUAGE}$"}),
]
_Share = Annotated[float, Field(strict=True, gt=0, lt=1)]
_TypeName = Annotated[
    str,
    AfterValidator(_known_type),
    Field(json_schema_extra=lambda schema: schema.update(enum=list(_task_types()))),
]


def _refuse_other_dev(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, os.PathLike, int, float)):
        raise ValueError("it must be a file, the name of a split, or a share of the training rows, such as 0.1")
    if isinstance(value, str) and re.fullmatch(r"\d*\.?\d+ *%?", value):
        raise ValueError("write a share as a number without quotes, such as 0.1")
    return value


def _file_or_share(value: Any) -> str:
    return "<share>" if isinstance(value, (int, float)) and not isinstance(value, bool) else "<file>"


class OwnTask(Frozen):
    """Data of one's own: files of rows (CSV, TSV, JSONL, Parquet), or a dataset on the Hugging Face hub."""

    name: OwnName
    """What the task is called."""
    train: PathOrName
    """The file of the training rows; with `hub`, the name of a split."""
    dev: Annotated[
        Annotated[PathOrName, Tag("<file>")] | Annotated[_Share, Tag("<share>")],
        Discriminator(_file_or_share),
        BeforeValidator(_refuse_other_dev),
    ] = 0.1
    """The file of the rows that are scored, or, with `hub`, a split; or the share of the training rows, above 0 and
    below 1, that is set aside for it, the same rows for every run."""
    test: PathOrName | None = None
    """A file of labelled rows, or, with `hub`, a split, that judges the winners of a search with `confirm: {on: test}`
    and is read for nothing else."""
    hub: Annotated[str, Field(min_length=1)] | None = None
    """A dataset on the Hugging Face hub (with @revision), instead of files."""
    config: Annotated[str, Field(min_length=1)] | None = None
    """The dataset's configuration, where it has several."""
    quoting: Literal["double", "none"] | None = None
    """Whether a cell of a CSV or TSV file may stand in double quotes (double), or these are characters like any other
    (none); double in CSV and none in TSV by default."""
    separator: _Separator | None = None
    """What parts the cells of a table: comma, semicolon, tab or pipe; what its header shows by default."""
    encoding: _Encoding | None = None
    """The encoding of the files, such as cp1252 or utf-16; utf-8 by default."""
    text: _Columns
    """The column of the text, or the two columns of a pair."""
    label: _Column
    """The column of the class or of the number to be predicted."""
    type: _TypeName = "classification"
    """One of several classes, or a number."""
    labels: _Labels | None = None
    """The classes, in the order that outputs have; those of the training rows, sorted, by default."""
    metric: _Metrics | None = None
    """What scores; of several, the first one selects and ranks. macro_f1 and accuracy by default, or pearson and
    spearman."""
    scale: bool = True
    """Whether the targets of a regression are brought to mean 0 and standard deviation 1 inside, so that learning
    rates that suit another task suit this one; what comes out is in the targets' own unit either way."""
    language: _Language | None = None
    """The texts' language, such as en, for model cards."""

    @pydantic.field_validator("metric")
    @classmethod
    def _of_this_type(cls, names: tuple[str, ...] | None, info: Any) -> tuple[str, ...] | None:
        kind = info.data.get("type")  # None where it was refused itself
        for name in names or ():
            if kind is not None and name not in (allowed := _task_types()[kind].metrics):
                others = [each.name for each in _task_types().values() if name in each.metrics]
                other = f" It goes with type: {' or '.join(others)}" if others else ""
                raise ValueError(f"for a {kind}, {choices(name, allowed)}{other}".rstrip("."))
        return names

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> OwnTask:
        if self.config is not None and self.hub is None:
            raise ValueError("config is of a dataset on the hub; give hub as well, or leave it out")
        for key in _OF_FILES if self.hub is not None else ():
            if getattr(self, key) is not None:
                raise ValueError(f"{key} is of CSV and TSV files, not of a dataset on the hub; leave it out")
        if self.labels is not None and not _task_types()[self.type].has_classes:
            raise ValueError("labels are a classification's; leave them out, or give type: classification")
        if self.labels is not None and len(self.labels) > 2 and "f1" in (self.metric or ()):
            raise ValueError(f"the metric f1 is of two classes, but labels are {len(self.labels)}; take macro_f1")
        if self.label in self.text:
            raise ValueError(f"the column {self.label!r} cannot be text and label at once")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _as_before(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a key that earlier versions lack where it is not given: a study keeps its hash."""
        data: dict[str, Any] = handler(self)
        return {key: value for key, value in data.items() if key not in (*_OF_FILES, "test") or value is not None}

    def to_task(self) -> Task:
        """The task; its classes and its targets' range are known when its data is read, if they are not given."""
        kind = _task_types()[self.type]
        dialect = Dialect(self.quoting, self.separator, self.encoding)
        return Task(
            name=self.name,
            title=self.name,
            kind=self.type,
            text_columns=self.text,
            label_column=self.label,
            labels=self.labels or (),
            metrics=self.metric or kind.default_metrics,
            own=OwnData(self.train, self.dev, self.hub, self.config, self.scale and kind.scales, dialect),
            language=self.language,
        )


def _kind(entry: Any) -> str:
    return "<own>" if isinstance(entry, (Mapping, OwnTask)) else "<name>"


TaskEntry = Annotated[Annotated[TaskName, Tag("<name>")] | Annotated[OwnTask, Tag("<own>")], Discriminator(_kind)]
"""A task by its name, or one's own."""
