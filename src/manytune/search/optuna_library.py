"""Optuna, an optional package, without its messages; and a study's spaces in its terms."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from manytune.config.spaces import Choice, Range, Space
from manytune.utils.errors import DependencyError


def load_optuna() -> Any:
    """Import optuna; raises DependencyError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise DependencyError("A search needs the package optuna: pip install 'manytune[search]'") from None
    return optuna


@contextmanager
def quiet(optuna: Any) -> Iterator[None]:
    """Without messages on samplers that are experimental, or on trials that are told beforehand."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def distributions(optuna: Any, space: Space) -> dict[str, Any]:
    """Setting → what optuna draws it from. A choice's values that are no plain ones are there as JSON text."""
    return {name: _distribution(optuna.distributions, dimension) for name, dimension in space.dimensions.items()}


def _distribution(kinds: Any, dimension: Range | Choice) -> Any:
    if isinstance(dimension, Choice):
        return kinds.CategoricalDistribution([_as_param(value) for value in dimension.values])
    if dimension.whole:
        return kinds.IntDistribution(round(dimension.low), round(dimension.high), log=dimension.log)
    return kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def to_params(values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's settings as optuna keeps them."""
    return {name: _as_param(value) for name, value in values.items()}


def from_params(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial whose parameters these are; numbers of a range have four digits."""
    return {name: _from_param(dimension, params[name]) for name, dimension in space.dimensions.items()}


def _from_param(dimension: Range | Choice, param: Any) -> Any:
    if isinstance(dimension, Choice):
        return next(value for value in dimension.values if _as_param(value) == param)
    # With all its digits, a rate is hard to read and to repeat, and no better.
    return param if dimension.whole else min(max(float(f"{param:.4g}"), dimension.low), dimension.high)


def _as_param(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)
