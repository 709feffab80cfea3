"""A search → its part of the page: what it found, how easy methods are to tune, what it took, every trial."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from manytune.report.search_part.budget_charts import budget_chart, reach_chart
from manytune.report.search_part.importance import about_importance, importance_chart
from manytune.report.search_part.pack_timeline import timeline_chart
from manytune.report.search_part.parallel_charts import parallel_charts
from manytune.report.search_part.pareto import pareto_chart
from manytune.report.search_part.search_facts import SearchFacts
from manytune.report.search_part.search_remarks import about_choices, about_ease, about_rates, rate_sheet
from manytune.report.search_part.search_sheets import (
    effect_sheet,
    reach_sheet,
    rung_sheet,
    space_sheet,
    spent_sheet,
    take_off_sheet,
    trial_sheet,
    tuning_sheet,
)
from manytune.report.search_part.search_words import about_budget, about_cost, about_search, about_tuning
from manytune.report.search_part.setting_charts import slice_chart
from manytune.report.sections import Section, make_section
from manytune.report.sheets import Sheet
from manytune.report.traces import Chart


@dataclass(frozen=True, eq=False)
class SearchContent:
    """The part of a report that shows a search on one task and backbone."""

    facts: SearchFacts
    parts: tuple[Section, ...]

    @property
    def charts(self) -> tuple[Chart, ...]:
        """All charts."""
        return tuple(chart for part in self.parts for chart in part.charts)

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """All tables."""
        return tuple(sheet for part in self.parts for sheet in (*part.sheets, *part.folded))


def search_content(facts: SearchFacts) -> SearchContent:
    """A pure function of the search's facts; of what cannot be made a section says why."""
    return SearchContent(facts, tuple(_sections(facts)))


def _sections(facts: SearchFacts) -> Iterable[Section]:
    section = partial(make_section, facts, f"{facts.title}, the search")
    yield section("found", "What it found", about_search, sheets=(space_sheet,))
    yield section(
        "budget", "What a budget buys", about_budget, charts=(budget_chart, reach_chart), sheets=(reach_sheet,)
    )
    yield section(
        "tuning",
        "How easy to tune",
        about_tuning,
        charts=(slice_chart,),
        sheets=(tuning_sheet,),
        folded=(take_off_sheet,),
    )
    asked = (
        section("ease", "Is one harder to tune than another", about_ease),
        section("choices", "Do the choices matter", about_choices, sheets=(effect_sheet,)),
        section("rates", "What the learning rate does", about_rates, folded=(rate_sheet,)),
        section("settings", "Settings together", about_importance, charts=(importance_chart, parallel_charts)),
    )
    yield from (each for each in asked if each.charts or each.text or each.sheets)
    yield section(
        "spent", "What it took", about_cost, charts=(timeline_chart, pareto_chart), sheets=(spent_sheet, rung_sheet)
    )
    yield section("trials", "Every trial", folded=(trial_sheet,))
