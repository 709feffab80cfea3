"""The page in a real browser, with the network cut off."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from study_factory import HOSTILE
from waiting import until

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@dataclass
class Seen:
    """A page that is open, and what the browser had to say."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def chart(self, key: str) -> Any:
        """Bring a chart near the screen, and wait until it is drawn."""
        plot = self.page.locator(f"#{key}")
        plot.scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#{key} .main-svg")
        return plot


@pytest.fixture
def open_page(browser: Browser, report: Path) -> Iterator[Callable[..., Seen]]:
    contexts = []

    def open_it(**settings: Any) -> Seen:
        context = browser.new_context(offline=True, **(DESKTOP | settings))
        contexts.append(context)
        context.set_default_timeout(20_000)
        seen = Seen(context.new_page())
        seen.page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
        seen.page.on("pageerror", lambda error: seen.complaints.append(f"error: {error}"))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(report.as_uri())
        return seen

    yield open_it
    for context in contexts:
        context.close()


def charts(seen: Seen) -> list[str]:
    found: list[str] = seen.page.evaluate("[...document.querySelectorAll('.plot')].map(plot => plot.id)")
    return found


@pytest.mark.parametrize("settings", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_opens_and_draws_every_chart_with_no_complaint_and_no_request(
    open_page: Callable[..., Seen], report: Path, settings: dict[str, Any]
) -> None:
    seen = open_page(**settings)
    keys = charts(seen)
    assert len(keys) == 11
    for key in keys:
        plot = seen.chart(key)
        assert plot.locator(".scatterlayer .trace").count() >= 2
    assert seen.complaints == []
    assert seen.requests == [report.as_uri()]


def test_the_policy_lets_nothing_else_run_or_load(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    seen.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=https://example.org/x.png>')")
    seen.page.evaluate("fetch('https://example.org/').catch(() => 0)")
    seen.page.evaluate(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.hacked=1';"
        " document.body.append(script); })()"
    )
    assert seen.page.evaluate("window.hacked") is None
    assert len(seen.complaints) >= 3
    assert all("Content Security Policy" in each for each in seen.complaints[:3])


def test_hostile_texts_show_as_they_are_and_do_nothing(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    text = seen.page.evaluate("document.querySelector('main').textContent")
    for sentence in HOSTILE:
        assert sentence in text
    assert "49" not in seen.page.locator("#cola-mistakes tbody td", has_text="7*7").first.inner_text()
    assert seen.page.evaluate("window.hacked") is None
    assert seen.page.locator("main img").count() == 0


def test_the_legend_takes_all_of_a_configuration_away_and_brings_it_back(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    plot = seen.chart("cola-chart-curves")
    visible = "key => document.getElementById(key).data.map(trace => [trace.legendgroup, trace.visible ?? true])"
    entry = plot.locator(".legendtoggle").first

    def hidden() -> set[str]:
        return {group for group, shown in seen.page.evaluate(visible, "cola-chart-curves") if shown == "legendonly"}

    assert hidden() == set()
    entry.click()
    until(seen.page, "document.getElementById('cola-chart-curves').data[0].visible === 'legendonly'")
    assert hidden() == {"full lr 5e-5"}
    entry.click()
    until(seen.page, "document.getElementById('cola-chart-curves').data[0].visible === true")
    assert hidden() == set()


def test_another_cost_can_be_chosen(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    seen.chart("cola-chart-cost")
    seen.page.locator("#cola-chart-cost-axis").select_option(label="peak memory of the pack")
    title = seen.page.locator("#cola-chart-cost .xtitle")
    assert title.text_content() == "peak memory of the pack"
    x = seen.page.evaluate("document.getElementById('cola-chart-cost').data.slice(1).map(trace => trace.x[0])")
    assert set(x) == {1_900_000_000, 1_500_000_000, 1_200_000_000}


def column(seen: Seen, sheet: str, place: int) -> list[str]:
    rows = f"[...document.querySelectorAll('[data-sheet={sheet}] tbody tr')]"
    found: list[str] = seen.page.evaluate(f"{rows}.map(row => row.children[{place}].dataset.value)")
    return found


def test_tables_sort_by_keyboard_and_say_how(open_page: Callable[..., Seen], report: Path) -> None:
    seen = open_page()
    with (report.parent / "tables" / "cola-scores.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    place = header.index("mean")
    means = [row[place] for row in rows]
    assert column(seen, "cola-scores", place) == means
    heading = seen.page.locator("[data-sheet=cola-scores] thead th").nth(place)
    heading.locator("button").focus()
    seen.page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(seen, "cola-scores", place) == sorted(means, key=float, reverse=True)
    seen.page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(seen, "cola-scores", place) == sorted(means, key=float)
    names = seen.page.locator("[data-sheet=cola-scores] thead th").first
    names.locator("button").click()
    assert heading.get_attribute("aria-sort") is None
    assert column(seen, "cola-scores", 0)[0] == "bitfit lr 1e-3"


def test_what_is_unknown_is_sorted_last_either_way(open_page: Callable[..., Seen]) -> None:
    """The one that trains most is not asked whether it is as good."""
    seen = open_page()
    heading = seen.page.locator("[data-sheet=cola-standings] thead th", has_text="at least").first
    place = seen.page.locator("[data-sheet=cola-standings] thead th").all_inner_texts().index(heading.inner_text())
    for _ in range(2):
        heading.locator("button").click()
        values = column(seen, "cola-standings", place)
        assert values[-1] == ""
        assert "" not in values[:-1]


@pytest.mark.parametrize("settings", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_more_columns_come_when_they_are_asked_for_and_go_again(
    open_page: Callable[..., Seen], report: Path, settings: dict[str, Any]
) -> None:
    seen = open_page(**settings)
    with (report.parent / "tables" / "cola-scores.csv").open(newline="") as file:
        header = next(csv.reader(file))
    figure = seen.page.locator("#table-cola-scores")
    button = figure.locator(".all-columns")

    def visible() -> list[str]:
        found: list[str] = figure.locator("thead th:visible").all_inner_texts()
        return found

    first, rows = visible(), figure.locator("tbody tr").count()
    assert (button.get_attribute("aria-pressed"), rows) == ("false", 8)
    assert first[:3] == ["configuration", "mean ± sd", "from the best"]
    assert "median" not in first
    assert figure.locator("tbody tr").first.locator("th:visible, td:visible").count() == len(first)
    button.focus()
    seen.page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    deviations = sum(name.endswith("standard_deviation") for name in header)  # they stand in the cell of their mean
    assert len(visible()) == len(header) - deviations > len(first)
    assert "median" in visible()
    assert figure.locator("tbody tr").first.locator("th:visible, td:visible").count() == len(visible())
    assert seen.page.evaluate("document.documentElement.scrollWidth") == settings["viewport"]["width"]
    button.click()
    assert (visible(), button.get_attribute("aria-pressed")) == (first, "false")


def test_without_scripts_every_column_is_there(browser: Browser, report: Path) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False, **DESKTOP)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#table-cola-scores thead th", has_text="median").is_visible()
    assert not page.locator(".all-columns").first.is_visible()
    context.close()


def test_the_first_screen_holds_the_answer_to_the_first_task(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    seen.chart("cola-chart-answer")
    seen.page.evaluate("scrollTo(0, 0)")
    article = seen.page.locator("article.answer").first
    assert "CoLA, MCC: " in article.locator("h3").inner_text()
    points = article.locator("li .asked").all_inner_texts()
    assert 2 <= len(points) <= 4
    for part in (article.locator("h3"), *article.locator("li").all()[: len(points)], article.locator(".chart")):
        box = part.bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 900, part.inner_text()


def test_the_first_tab_leads_to_the_answer(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    seen.page.keyboard.press("Enter")
    until(seen.page, "location.hash === '#answer'")


def test_on_a_phone_nothing_is_wider_than_the_screen(open_page: Callable[..., Seen]) -> None:
    seen = open_page(**PHONE)
    for key in charts(seen):
        seen.chart(key)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 390
    # What is wide scrolls by itself; text is not smaller than a phone can show.
    texts = "[...document.querySelectorAll('main p, main td')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert min(seen.page.evaluate(texts)) >= 12
    contents = seen.page.locator("nav details")
    assert contents.get_attribute("open") is None
    contents.locator("summary").click()
    contents.locator("a", has_text="Learning rate").first.click()
    until(seen.page, "location.hash === '#cola-rates'")
    assert contents.get_attribute("open") is None


def test_the_charts_buttons_are_for_a_mouse_alone(open_page: Callable[..., Seen]) -> None:
    for settings, buttons in ((DESKTOP, 1), (PHONE, 0)):
        seen = open_page(**settings)
        plot = seen.chart(charts(seen)[0])
        assert plot.locator(".modebar").count() == buttons


def test_a_table_that_scrolls_sideways_shows_it(open_page: Callable[..., Seen]) -> None:
    place = open_page(**PHONE).page.locator("#table-cola-scores .scroll")
    assert place.evaluate("place => place.scrollWidth > place.clientWidth")
    assert (
        place.evaluate("place => getComputedStyle(place).backgroundAttachment") == "local, local, scroll, scroll, local"
    )


def test_paper_clips_nothing_and_is_light(open_page: Callable[..., Seen]) -> None:
    seen = open_page(viewport={"width": 690, "height": 1000}, color_scheme="dark")  # A4 between its margins
    seen.chart(charts(seen)[0])
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    dark = seen.page.evaluate(ink)
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate(ink) == "rgb(28, 33, 39)" != dark
    wide = "[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > innerWidth).length"
    assert seen.page.locator("table").count() > 10
    assert seen.page.evaluate(wide) == 0
    seen.page.emulate_media(media="screen")
    seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert seen.page.evaluate(ink) == dark


def test_in_the_dark_page_and_charts_are_dark(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    ink = "getComputedStyle(document.querySelector('#cola-chart-rank .xtitle')).fill"
    ground = "getComputedStyle(document.body).backgroundColor"
    seen.chart("cola-chart-rank")
    light = seen.page.evaluate(ink), seen.page.evaluate(ground)
    seen.page.emulate_media(color_scheme="dark")
    until(seen.page, f"{ink} !== {light[0]!r}")
    assert (seen.page.evaluate(ink), seen.page.evaluate(ground)) == ("rgb(230, 233, 237)", "rgb(20, 23, 27)")
    assert light == ("rgb(28, 33, 39)", "rgb(251, 251, 250)")
    assert seen.complaints == []


def test_hovering_says_whose_point_it_is(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    plot = seen.chart("stsb-chart-rank")
    plot.locator(".points path").first.hover(force=True)
    hover = seen.page.locator("#stsb-chart-rank .hoverlayer .hovertext").first
    hover.wait_for()
    assert "Pearson" in (hover.text_content() or "")


def test_zooming_narrows_an_axis(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    plot = seen.chart("cola-chart-curves")
    extent = (
        "(() => { const r = document.getElementById('cola-chart-curves').layout.xaxis.range; return r[1] - r[0]; })()"
    )
    before = seen.page.evaluate(extent)
    box = plot.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    seen.page.mouse.move(box["x"] + 40, box["y"] + 20)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + 140, box["y"] + 90, steps=5)
    seen.page.mouse.up()
    until(seen.page, f"{extent} < {before}")


def test_no_table_is_wider_than_its_place_on_a_desktop(open_page: Callable[..., Seen]) -> None:
    seen = open_page()
    seen.page.evaluate("document.querySelectorAll('main details').forEach(each => { each.open = true; })")
    places = seen.page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(place => [place.getAttribute('aria-label'),"
        " place.scrollWidth - place.clientWidth, place.clientWidth])"
    )
    assert len(places) >= 20
    assert all(width > 600 for *_, width in places)
    assert [(name, more) for name, more, _ in places if more > 0] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 1280
