"""What a setting may be under `methods`: a value, a range or a choice of values; a list of these; or these by task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types
import pydantic
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, GetCoreSchemaHandler, Tag
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from manytune.config.spaces import Choice, Range, as_written
from manytune.methods.base import Multiple
from manytune.utils.fields import Positive, distinct
from manytune.utils.problems import show

RANGE_KEYS = ("low", "high", "log")
CHOICE_KEYS = ("choice",)


def axis(kind: Any, multiple_of: str | None = None) -> Any:
    """The type of a setting in an entry: stored as a tuple of items, or a mapping from task to one; written as read.

    An item is a value of the type `kind`, a Range or a Choice of such values, or, with `multiple_of`, a Multiple of
    that other setting. A mapping is told by its keys: {low, high} is a range, {choice} a choice, and others are tasks.
    """
    keys = dict.fromkeys(RANGE_KEYS, "<range>") | dict.fromkeys(CHOICE_KEYS, "<choice>")
    if multiple_of is not None:
        keys[f"of_{multiple_of}"] = "<multiple>"

    def shape_of_item(value: Any) -> str:
        found = (keys[key] for key in value if key in keys) if isinstance(value, Mapping) else ()
        return next(iter(found), "<value>")

    def shape_of_list(value: Any) -> str:
        return "<several>" if isinstance(value, (list, tuple)) and _holds_several(value, kind) else "<one>"

    def shape(value: Any) -> str:
        by_task = isinstance(value, Mapping) and shape_of_item(value) == "<value>"
        return "<by task>" if by_task else shape_of_list(value)

    arms = {"<value>": kind}
    value: Any = kind
    if multiple_of is not None:
        arms["<multiple>"] = Annotated[Any, _MultipleOf(multiple_of)]
        value = _either(arms, shape_of_item)
    arms["<choice>"] = Annotated[Any, _ChoiceOf(value)]
    number = _number(kind)
    if number is not None:
        arms["<range>"] = Annotated[Any, _RangeOf(number)]
    item: Any = _either(arms, shape_of_item)
    if number is None:
        item = Annotated[item, BeforeValidator(_refuse_range)]
    one = Annotated[item, AfterValidator(lambda value: (value,))]
    several = Annotated[tuple[item, ...], Field(min_length=1), distinct]
    items: Any = _either({"<one>": one, "<several>": several}, shape_of_list)
    # Any text: that it is a task, and one of the study, is the study's to say.
    names = {"propertyNames": {"not": {"enum": [*keys]}}}
    by_task = Annotated[dict[str, items], Field(min_length=1, json_schema_extra=names)]
    every = _either({"<one>": one, "<several>": several, "<by task>": by_task}, shape)
    return Annotated[every, pydantic.PlainSerializer(_axis_as_written)]


def _either(arms: Mapping[str, Any], shape: Callable[[Any], str]) -> Any:
    """The union of the types, of which `shape` names the one that a value is to have."""
    return Annotated[Union[tuple(Annotated[arm, Tag(tag)] for tag, arm in arms.items())], Discriminator(shape)]  # noqa: UP007


def _axis_as_written(axis: Any) -> Any:
    if axis is None:  # a setting that is not given
        return None
    if isinstance(axis, Mapping):
        return {task: _axis_as_written(items) for task, items in axis.items()}
    return as_written(axis[0]) if len(axis) == 1 else [as_written(item) for item in axis]


def _refuse_range(value: Any) -> Any:
    if isinstance(value, Mapping) and any(key in value for key in RANGE_KEYS):
        raise ValueError("it is no number, so it has no range; list what it may be: {choice: [...]}")
    return value


@dataclass(frozen=True)
class _RangeOf:
    """A mapping {low, high, log} as a Range of numbers of a type."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        bound = core_schema.typed_dict_field(handler.generate_schema(self.kind))
        log = core_schema.nullable_schema(core_schema.bool_schema(strict=True))
        keys = {"low": bound, "high": bound, "log": core_schema.typed_dict_field(log, required=False)}
        read = core_schema.typed_dict_schema(keys, extra_behavior="forbid")
        return core_schema.no_info_after_validator_function(self._range, read)

    def _range(self, given: Mapping[str, Any]) -> Range:
        low, high, log = given["low"], given["high"], given.get("log")
        if not low < high:
            raise ValueError(f"low must be below high, but it is {show(low)} and high {show(high)}")
        if log and low <= 0:
            raise ValueError("a logarithmic scale begins above 0: give a low above 0, or log: false")
        bounded = any(isinstance(each, annotated_types.Lt | annotated_types.Le) for each in _constraints(self.kind))
        whole = _plain(self.kind) is int
        if log is None:  # rates and the like, which may be of any size
            log = not whole and not bounded and low > 0
        # Of the other numbers with an upper bound, which are shares, only epochs can have two whole ones.
        whole = whole or (bounded and low.is_integer() and high.is_integer())
        return Range(int(low), int(high), log, True) if whole else Range(low, high, log, False)


@dataclass(frozen=True)
class _ChoiceOf:
    """A mapping {choice: [...]} as a Choice of values of a type."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        two = Field(min_length=1, json_schema_extra={"minItems": 2})
        kind: Any = self.kind
        values = handler.generate_schema(Annotated[tuple[kind, ...], two, distinct])
        read = core_schema.typed_dict_schema({"choice": core_schema.typed_dict_field(values)}, extra_behavior="forbid")
        return core_schema.no_info_after_validator_function(self._choice, read)

    def _choice(self, given: Mapping[str, Any]) -> Choice:
        if len(given["choice"]) < 2:
            raise ValueError("a choice is between two values or more; give a single one by itself")
        return Choice(given["choice"])


@dataclass(frozen=True)
class _MultipleOf:
    """A mapping such as {of_rank: 2} as a Multiple."""

    other: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        key, factor = f"of_{self.other}", core_schema.typed_dict_field(handler.generate_schema(Positive))
        read = core_schema.typed_dict_schema({key: factor}, extra_behavior="forbid")
        return core_schema.no_info_after_validator_function(lambda given: Multiple(self.other, given[key]), read)


def _holds_several(value: Any, kind: Any) -> bool:
    """Whether a list is one of several values; where one value is a list itself, a list of lists is."""
    one = next((get_args(_plain(arm))[0] for arm in _arms(kind) if get_origin(_plain(arm)) is tuple), None)
    if one is None:
        return True
    apart = (list, tuple, Mapping) if _plain(one) is str else (list, tuple, Mapping, str)
    return any(isinstance(each, apart) for each in value)


def _number(kind: Any) -> Any:
    """The type without null, if all its values are numbers then; None if not."""
    arms = [arm for arm in _arms(kind) if arm is not NoneType]
    return arms[0] if len(arms) == 1 and _plain(arms[0]) in (int, float) else None


def _arms(kind: Any) -> Iterator[Any]:
    """The members of a union, or the type itself."""
    plain = _plain(kind)
    if get_origin(plain) in (Union, UnionType):
        for arm in get_args(plain):
            yield from _arms(arm)
    else:
        yield kind


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _constraints(kind: Any) -> list[Any]:
    return FieldInfo.from_annotation(kind).metadata
