"""docs/promises.md names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_every_promise_has_its_test() -> None:
    text = (PROJECT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", text)
    assert len(named) > 60
    assert len(re.findall(r"`tests/", text)) == len(named), "each is written as `path::name`"
    for path, name in named:
        tree = ast.parse((PROJECT / path).read_text(encoding="utf-8"))
        found = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert name in found, f"{path} has no {name}"
