"""The table of methods. One that is registered works in study files, plans, records, reports and all commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from itertools import product
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, SerializeAsAny

from manytune.methods.adapter import Adapter
from manytune.methods.base import HeadMode, Method
from manytune.methods.bitfit import BitFit
from manytune.methods.dora import Dora
from manytune.methods.full import Full
from manytune.methods.head_only import Head
from manytune.methods.ia3 import Ia3
from manytune.methods.ln_tuning import LnTuning
from manytune.methods.lora import Lora
from manytune.methods.vera import Vera
from manytune.utils.errors import StudyError, choices

METHODS: dict[str, type[Method]] = {}
"""The methods by the name that a study uses, in the order in which they are listed."""


def register(kind: type[Method]) -> None:
    """Add a method; a TypeError if it lacks what every method declares, a ValueError if its name is taken."""
    lacking = [name for name in ("method", "learning_rate", "head") if name not in kind.model_fields]
    lacking += [] if hasattr(kind, "title") else ["title"]
    undescribed = [name for name, field in kind.model_fields.items() if not field.description]
    if lacking or undescribed:
        raise TypeError(f"{kind.__name__} lacks {lacking}, and docstrings of the fields {undescribed}")
    name = kind.model_fields["method"].default
    if METHODS.get(name, kind) is not kind:
        raise ValueError(f"There is a method {name!r} already: {METHODS[name].__name__}")
    METHODS[name] = kind


for _kind in (Full, BitFit, LnTuning, Lora, Dora, Vera, Ia3, Adapter, Head):
    register(_kind)
# A package can bring methods of its own. They are found here, because worker processes need them as well.
for _entry in entry_points(group="manytune.methods"):
    register(_entry.load())


def make_method(name: str, **hyperparameters: Any) -> Method:
    """A method by name; raises a StudyError where the name or a hyper-parameter is not possible."""
    if name not in METHODS:
        raise StudyError(f"There is no such method: {choices(name, METHODS)}")
    return METHODS[name](**hyperparameters)


def _from_mapping(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    name = value.get("method")
    if name not in METHODS:
        raise ValueError(f"there is no such method: {choices(str(name), METHODS)}")
    return METHODS[name].model_validate(value)


# Looked up when a value is read, not in a union made once: so it takes methods that are registered later.
AnyMethod = Annotated[SerializeAsAny[Method], BeforeValidator(_from_mapping)]
"""A field that holds any registered method."""


def choose_methods(
    names: Sequence[str], sizes: Mapping[str, Sequence[Any]], heads: Sequence[str]
) -> dict[Method, bool]:
    """One method for every name, size and part of the head that go together; an empty choice stands for all.

    `sizes` has values of fields of the methods' `grid`. The learning rate is 1: what is chosen here is for counting
    parameters.

    Returns:
        Method → whether its size was asked for. One that was not is left out where it does not suit a backbone.

    Raises:
        StudyError: A name or a part of the head is not known, a value cannot be, or nothing goes together.
    """
    for option, chosen, known in (("--method", names, METHODS), ("--head", heads, get_args(HeadMode))):
        for each in chosen:
            if each not in known:
                raise StudyError(f"{option}: {choices(each, known)}")
    kinds = {name: METHODS[name] for name in names or METHODS}
    for field, values in sizes.items():
        having = [name for name, kind in METHODS.items() if field in kind.grid]
        if values and not kinds.keys() & set(having):
            verb = "has" if len(kinds) == 1 else "have"
            raise StudyError(
                f"--{field}: {' and '.join(kinds)} {verb} no {field}, but {', '.join(having)} have one. "
                f"Leave it out, or add --method {having[0]}."
            )
    found = {}
    for name, kind in kinds.items():
        grid = {field: sizes.get(field) or values for field, values in kind.grid.items()}
        asked = any(sizes.get(field) for field in grid) if grid else bool(names)
        for *values, head in product(*grid.values(), heads or heads_of(kind)):
            if head in heads_of(kind):
                size = dict(zip(grid, values, strict=True))
                found[make_method(name, learning_rate=1.0, head=head, **size)] = asked
    if not found:
        allowed = ", ".join(f"{name} takes {' or '.join(heads_of(kind))}" for name, kind in kinds.items())
        raise StudyError(f"--head: {', '.join(heads)} does not go with {', '.join(names)}; {allowed}.")
    return found


def heads_of(kind: type[Method]) -> tuple[HeadMode, ...]:
    """What a method may train of the head."""
    return get_args(kind.model_fields["head"].annotation)
