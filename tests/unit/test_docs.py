"""What the documents say of the source tree is so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import manytune

ROOT = Path(__file__).parents[2]
PACKAGE = Path(manytune.__file__).parent
DOCUMENTS = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_of_modules_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_modules.py"))
    page = script["modules_page"]()
    assert page.count("| `") >= 100
    assert (ROOT / "docs" / "modules.md").read_text(encoding="utf-8") == page, "run: python docs/make_modules.py"


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md", "docs/methods.md"])
def test_tables_of_figures_are_what_their_script_makes_of_the_result_files(page: str) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_performance.py"))
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- made: ") == text.count("<!-- end -->") >= 1
    assert script["made"](text) == text, "run: python docs/make_performance.py"


def test_the_tables_of_statistics_are_what_was_measured_and_no_claim_exceeds_its_level() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_statistics.py"))
    results = script["measured"]()
    text = script["PAGE"].read_text(encoding="utf-8")
    assert script["made"](text, results) == text, "run: python docs/make_statistics.py"
    cells = [cell for result in results.values() for cell in result["cells"]]
    groups = {cell["group"].replace(" ", "-") for cell in cells}
    assert set(re.findall(r"<!-- made: (\S+) -->", text)) == {"facts", "search-facts", *groups}
    limited = [cell for cell in cells if cell["limit"] is not None]
    assert len(limited) >= 90
    above = [cell for cell in limited if cell["share"] > cell["limit"] + 3 * cell["error"]]
    assert not above, "a claim is made too often: say so in the page, and mend it"
    with pytest.raises(ValueError, match="no figures of 'nothing'"):
        script["table"]("nothing", cells)


def test_a_page_of_figures_can_do_with_one_machine_alone() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_performance.py"))
    one = dict([next(iter(script["measured"]().items()))])
    for name in ("machines", "compare", "profile", "growth", "speed"):
        two = {**one, "another": next(iter(one.values()))}
        assert len(script["_PARTS"][name](two)) > len(script["_PARTS"][name](one)) > 0
    with pytest.raises(ValueError, match="another number of cells"):
        script["_table"](("a", "b"), [("1",)])


def test_the_table_of_packages_names_what_is_there() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    house = text.partition("## The house")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `([a-z_]+)(?:/|\.py)` \|", house, re.MULTILINE)
    there = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert set(named) == there - {"__init__", "__main__", "__pycache__"}
    assert named == runpy.run_path(str(ROOT / "docs" / "make_modules.py"))["ORDER"]


def test_every_source_file_that_a_document_names_is_there() -> None:
    files = [
        path.relative_to(ROOT).as_posix()
        for path in (*ROOT.glob("*.py"), *ROOT.glob("*/**/*"))
        if path.suffix in (".py", ".cpp", ".json")
    ]
    named = {
        (document.name, name)
        for document in DOCUMENTS
        for name in re.findall(r"`([\w/.]+\.(?:py|cpp))`", document.read_text(encoding="utf-8"))
    }
    assert len(named) >= 60
    missing = {
        (document, name) for document, name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)
    }
    assert missing == set()
