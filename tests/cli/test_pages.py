"""Every command has a page, and the page has its present help."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from manytune.cli import app

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pages", DOCS / "make_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_a_page_with_an_example(maker: ModuleType) -> None:
    assert len(COMMANDS) >= 16
    assert sorted(maker.EXAMPLES) == COMMANDS
    assert sorted(path.stem for path in (DOCS / "commands").glob("*.md") if path.stem != "README") == COMMANDS
    index = (DOCS / "commands" / "README.md").read_text()
    for name in COMMANDS:
        assert f"[{name}]({name}.md)" in index
        page = (DOCS / "commands" / f"{name}.md").read_text()
        for command in maker.EXAMPLES[name]:
            assert f"$ {command}\n" in page
        assert "Traceback" not in page


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_is_the_present_one(maker: ModuleType, name: str, tmp_path: Path) -> None:
    assert maker.help_of(name, tmp_path) in (DOCS / "commands" / f"{name}.md").read_text(), "run docs/make_pages.py"
