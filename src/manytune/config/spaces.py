"""The search spaces of a study: what is drawn for the trials of each entry under `methods`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manytune.config.training_settings import Training
from manytune.methods import METHODS, Method
from manytune.methods.base import LEARNING_RATE, Multiple
from manytune.utils.errors import StudyError
from manytune.utils.text import short_number

if TYPE_CHECKING:
    from manytune.config.schema import Study


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`."""

    low: float
    high: float
    log: bool  # drawn evenly on a logarithmic scale
    whole: bool  # integers only


@dataclass(frozen=True)
class Choice:
    """One of several values, as a study file holds them; none is nearer to another."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    """What the trials of one method on one task are drawn from; where an entry has lists, each combination is one."""

    task: str
    name: str  # unique among the spaces of the task: "lora", or "lora r=8" where lists make several
    # Dotted name of a searched setting → what it may be: `learning_rate`, `rank`, `training.epochs`. Empty: one trial.
    dimensions: Mapping[str, Range | Choice]
    method: str
    fixed: Mapping[str, Any]  # the settings with one value, in the same way, as a study file holds them
    training: Training  # the study's

    def at(self, values: Mapping[str, Any]) -> tuple[Method, Training | None]:
        """The method with these values of the dimensions, and its training settings where they are not the study's.

        Raises StudyError where a value is not possible, and KeyError where one is missing or of no dimension.
        """
        if values.keys() != self.dimensions.keys():
            raise KeyError(f"{self.name} takes values of {[*self.dimensions]}, not of {[*values]}")
        return concrete(self.method, {**self.fixed, **values}, self.training)

    @property
    def points(self) -> int | None:
        """How many combinations of values there are; None where there is a range."""
        count = 1
        for dimension in self.dimensions.values():
            if isinstance(dimension, Range):
                return None
            count *= len(dimension.values)
        return count

    @property
    def edges(self) -> list[dict[str, Any]]:
        """Values that show whether all can be: both ends of every range, and every value of a choice, at least once."""
        most = max((len(each.values) for each in self.dimensions.values() if isinstance(each, Choice)), default=1)
        return [
            {
                name: (each.high if index else each.low)
                if isinstance(each, Range)
                else each.values[min(index, len(each.values) - 1)]
                for name, each in self.dimensions.items()
            }
            for index in range(max(most, 2 if self.dimensions else 1))
        ]

    @property
    def searched(self) -> str:
        """The dimensions in words: "rank 2|8|64, learning_rate 1e-5..1e-3"."""
        words = (f"{name} {_value(each, name == LEARNING_RATE.name)}" for name, each in self.dimensions.items())
        return ", ".join(words) or "nothing: one trial"


def search_spaces(study: Study, task: str) -> tuple[Space, ...]:
    """The spaces of a task, in the study's order; raises StudyError where two are the same."""
    found: dict[tuple[str, str], int] = {}
    entries: list[tuple[str, dict[str, Any]]] = []
    for index, sweep in enumerate(study.methods):
        for settings in sweep.combinations(task):
            same = (sweep.method, repr(settings))
            if same in found:
                raise StudyError(
                    f"methods.{found[same]} and methods.{index} both come to the same search space of {sweep.method} "
                    f"on {task}. Each may be there once: drop it from one of them."
                )
            found[same] = index
            entries.append((sweep.method, settings))
    return tuple(
        Space(
            task,
            name,
            {key: as_dimension(item) for key, item in settings.items() if isinstance(item, Range | Choice)},
            method,
            {key: as_written(item) for key, item in settings.items() if not isinstance(item, Range | Choice)},
            study.training,
        )
        for name, (method, settings) in zip(_names(entries), entries, strict=True)
    )


def concrete(method: str, settings: Mapping[str, Any], training: Training) -> tuple[Method, Training | None]:
    """The method with these settings, one value each, and its training where that is not as `training`, the study's."""
    own = {name.removeprefix("training."): value for name, value in settings.items() if name.startswith("training.")}
    made = METHODS[method](**{name: value for name, value in settings.items() if not name.startswith("training.")})
    trained = training.with_settings(own)
    return made, None if trained == training else trained


def as_written(item: Any) -> Any:
    """What a setting may be, as a study file holds it, in plain data."""
    match item:
        case Range():
            return {"low": item.low, "high": item.high, "log": item.log}
        case Choice():
            return {"choice": [as_written(value) for value in item.values]}
        case Multiple():
            return item.written
    return list(item) if isinstance(item, tuple) else item


def as_dimension(item: Range | Choice) -> Range | Choice:
    """A range or choice whose values are plain data."""
    return item if isinstance(item, Range) else Choice(tuple(as_written(value) for value in item.values))


def _names(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Names that tell the spaces apart: the method, and what the spaces of that method do not have in common."""
    names = []
    for method, settings in entries:
        alike = [others for other, others in entries if other == method]
        keys = list(dict.fromkeys(key for others in alike for key in others))
        telling = [key for key in keys if any(repr(others.get(key)) != repr(alike[0].get(key)) for others in alike)]
        words = ", ".join(_word(method, key, settings[key]) for key in telling if key in settings)
        names.append(f"{method} {words}".strip())
    # Names leave out what is not said: `training` that one entry has and another lacks.
    count, seen = Counter(names), Counter[str]()
    for index, name in enumerate(names):
        seen[name] += 1
        names[index] = name if count[name] == 1 else f"{name} ({seen[name]})"
    return names


def _word(method: str, key: str, item: Any) -> str:
    axes = {axis.name: axis.prefix for axis in (LEARNING_RATE, METHODS[method].axis) if axis is not None}
    return axes.get(key, f"{key.removeprefix('training.')} ") + _value(item, key == LEARNING_RATE.name)


def _value(item: Any, rate: bool) -> str:
    match item:
        case Range():
            return f"{_value(item.low, rate)}..{_value(item.high, rate)}"
        case Choice():
            return "|".join(_value(value, rate) for value in item.values)
        case Multiple():
            return f"{_value(item.factor, rate)}*{item.of}"
        case tuple() | list():
            return "+".join(map(str, item))
        case dict():  # of a choice in plain data
            return " ".join(f"{_value(value, rate)}*{key.removeprefix('of_')}" for key, value in item.items())
    if rate:
        return short_number(item)
    return str(int(item) if isinstance(item, float) and item.is_integer() else item)
