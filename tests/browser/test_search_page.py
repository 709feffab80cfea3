"""The page of a search in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from manytune.report.writing import write_report
from search_factory import SEARCH, make_search_directory

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
CHARTS = ("budget", "reach", "slices", "importance", "parallel-3", "packs", "pareto")


@pytest.fixture(scope="module")
def page_of_a_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = {**SEARCH, "confirm": {"seeds": 3}}
    return write_report([make_search_directory(tmp_path_factory.mktemp("b") / "s", study).root])[0]


@pytest.mark.parametrize("settings", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_chart_of_a_search_draws_within_the_screen(
    browser: Browser, page_of_a_search: Path, settings: dict[str, Any]
) -> None:
    context = browser.new_context(offline=True, **settings)
    context.set_default_timeout(20_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(page_of_a_search.as_uri())
    found = page.evaluate("[...document.querySelectorAll('[id^=cola-search] .plot')].map(plot => plot.id)")
    assert sorted(found) == sorted(f"cola-search-chart-{name}" for name in CHARTS)
    for key in found:
        page.locator(f"#{key}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#{key} .main-svg")
        assert page.locator(f"#{key} :is(.scatterlayer .trace, .barlayer .trace)").count() >= 1
    # Time can be chosen, with marks of its own.
    page.locator("#cola-search-chart-budget-axis").select_option(index=1)
    page.wait_for_function("document.getElementById('cola-search-chart-budget').layout.xaxis.type === 'log'")
    assert "min" in (page.locator("#cola-search-chart-budget .xaxislayer-above").text_content() or "")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    context.close()
