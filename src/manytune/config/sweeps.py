"""The entries under `methods` in a study: a method, with one or several values for each hyper-parameter.

Their classes are derived from the methods' own, so a hyper-parameter is declared, bounded and described once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    create_model,
)

from manytune.config.methods import METHODS, BaseMethod, BitFit, Full, Head, Lora, Method
from manytune.config.values import Frozen, Targets, distinct

__all__ = ["AnySweep", "BitFitSweep", "FullSweep", "HeadSweep", "LoraSweep", "Sweep"]


def _axis(kind: Any) -> Any:
    """The type of a hyper-parameter in a study: a `kind`, a list of them, or either of these by task.

    Stored as a tuple of values, or a mapping from task to one; written back as the user would write it.
    """

    def count(value: Any) -> str:
        several = isinstance(value, (list, tuple))
        if several and kind is Targets:  # a list of names is one value, a list of lists is several
            several = any(isinstance(item, (list, tuple)) for item in value)
        return "<several>" if several else "<one>"

    def shape(value: Any) -> str:
        return "<by task>" if isinstance(value, Mapping) else count(value)

    one = Annotated[kind, AfterValidator(lambda value: (value,)), Tag("<one>")]
    several = Annotated[tuple[kind, ...], Field(min_length=1), distinct, Tag("<several>")]
    either = Annotated[one | several, Discriminator(count)]
    # Any text: that it is a task, and one of the study, is the study's to say.
    by_task = Annotated[dict[str, either], Field(min_length=1), Tag("<by task>")]
    return Annotated[one | several | by_task, Discriminator(shape), PlainSerializer(_as_written)]


def _as_written(axis: Any) -> Any:
    if isinstance(axis, Mapping):
        return {task: _as_written(values) for task, values in axis.items()}
    return axis[0] if len(axis) == 1 else list(axis)


class Sweep(Frozen):
    """One entry under `methods`: a method, and one or several values for each of its hyper-parameters."""

    method: str
    """The method's name."""

    def expand(self, task: str) -> Iterator[Method]:
        """Yield the concrete methods for `task`: all combinations, the last field changing fastest."""
        kind = METHODS[self.method]
        names = [name for name in kind.model_fields if name != "method"]
        for values in itertools.product(*(self.values(name, task) for name in names)):
            yield kind(**dict(zip(names, values, strict=True)))

    def count(self, task: str) -> int:
        """The number of concrete methods for `task`."""
        return math.prod(len(self.values(name, task)) for name in type(self).model_fields if name != "method")

    def values(self, name: str, task: str) -> tuple[Any, ...]:
        """The values of one hyper-parameter for `task`."""
        axis = getattr(self, name)
        return tuple(axis[task] if isinstance(axis, Mapping) else axis)


def _sweep_of(method: type[BaseMethod]) -> type[Sweep]:
    """The sweep's class: the method's fields, each of them an axis; its name and description stay."""
    hints = get_type_hints(method, include_extras=True)
    fields: dict[str, Any] = {}
    for name, info in method.model_fields.items():
        if name == "method":
            fields[name] = (hints[name], Field(description=info.description))
        elif info.is_required():
            fields[name] = (_axis(hints[name]), Field(description=info.description))
        else:
            shown = {"default": info.default}
            fields[name] = (
                _axis(hints[name]),
                Field(default=(info.default,), description=info.description, json_schema_extra=shown),
            )
    title = f"{method.__name__}Sweep"
    return create_model(title, __base__=Sweep, __doc__=method.__doc__, __module__=__name__, **fields)


# Module-level names, so that a study can be pickled.
FullSweep = _sweep_of(Full)
BitFitSweep = _sweep_of(BitFit)
LoraSweep = _sweep_of(Lora)
HeadSweep = _sweep_of(Head)


def _method_tag(entry: Any) -> str:
    return f"<{entry['method'] if isinstance(entry, Mapping) else entry.method}>"


def _entry(entry: Any) -> Any:
    """Check that an entry names a method; a concrete method stands for the sweep that holds just this one."""
    if isinstance(entry, BaseMethod):
        return entry.model_dump()
    if isinstance(entry, Sweep) or (isinstance(entry, Mapping) and isinstance(entry.get("method"), str)):
        return entry
    allowed = ", ".join(METHODS)
    raise ValueError(
        f"it must be a mapping with a key method, one of: {allowed}; such as {{method: full, learning_rate: 2e-5}}"
    )


if TYPE_CHECKING:
    AnySweep = Sweep
else:
    AnySweep = Annotated[
        Annotated[FullSweep, Tag("<full>")]
        | Annotated[BitFitSweep, Tag("<bitfit>")]
        | Annotated[LoraSweep, Tag("<lora>")]
        | Annotated[HeadSweep, Tag("<head>")],
        Discriminator(_method_tag),
        BeforeValidator(_entry, json_schema_input_type=FullSweep | BitFitSweep | LoraSweep | HeadSweep),
    ]
