"""Write `modules.md`: every module of the package, in the order of imports, with the first line of its docstring.

    python docs/make_modules.py

A test fails where the page is not what this writes, so it never names a module that is gone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "manytune"
PAGE = Path(__file__).with_name("modules.md")
ORDER = [
    *("utils", "data", "methods", "config", "storage", "models", "packing", "training", "inference", "stats"),
    *("search", "tracking", "report", "executors", "search_stage", "study", "cli"),
]
"""Packages and modules at the top; each imports only what stands before it."""


def modules_page() -> str:
    """The page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Modules"
    yield ""
    yield "Written by `docs/make_modules.py` from the modules' docstrings. A package imports only from those above it."
    for name in ORDER:
        path = PACKAGE / name
        yield ""
        if path.is_dir():
            yield f"## {name}/"
            yield ""
            yield _summary(path / "__init__.py")
            yield ""
            yield "| module | what it does |"
            yield "|---|---|"
            for file in sorted(path.rglob("*.py")):
                if file != path / "__init__.py":
                    shown = file.parent if file.name == "__init__.py" else file
                    slash = "/" if file.name == "__init__.py" else ""
                    yield f"| `{shown.relative_to(path).as_posix()}{slash}` | {_summary(file)} |"
        else:
            yield f"## {name}.py"
            yield ""
            yield _summary(path.with_suffix(".py"))


def _summary(file: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(modules_page(), encoding="utf-8")
