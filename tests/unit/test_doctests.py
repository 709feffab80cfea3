"""The examples in the docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import manytune

PACKAGE = Path(manytune.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for package in ("utils", "stats", "report")
    for path in sorted((PACKAGE / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
STATISTICS = {
    f"manytune.stats.{name}"
    for name in ("describe", "differences", "examples", "looks", "planning", "selection", "verdict")
}


def test_the_statistics_have_examples() -> None:
    assert set(MODULES) >= STATISTICS


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
    assert found.attempted > 0 or name not in STATISTICS
