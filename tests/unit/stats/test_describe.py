from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manytune.stats.describe import Summary, leader, summarize

scores = st.floats(min_value=-1, max_value=1)


@given(st.lists(scores, min_size=2, max_size=10))
def test_mean_and_deviation_are_numpys(values: list[float]) -> None:
    summary = summarize(values)
    assert summary.count == len(values)
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert summary.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_one_value_has_no_spread_and_none_has_no_mean() -> None:
    assert summarize([0.5]) == Summary(count=1, mean=0.5, deviation=None)
    assert summarize([]) == Summary(count=0, mean=None, deviation=None)


def test_what_is_unknown_is_left_out() -> None:
    assert summarize([None, 0.25, math.nan, 0.75]) == summarize([0.25, 0.75])
    assert summarize([None]).count == 0


def test_leader_is_the_highest_mean_against_the_second() -> None:
    lead = leader({"a": [0.1, 0.2], "b": [0.5, 0.7], "c": [0.4, 0.5]}, higher_is_better=True)
    assert lead is not None
    assert (lead.first, lead.second) == ("b", "c")
    assert lead.difference == pytest.approx(0.15)
    assert lead.seeds == (2, 2)


def test_leader_is_the_lowest_mean_where_lower_is_better() -> None:
    lead = leader({"a": [0.1, 0.2], "b": [0.5, 0.7], "c": [0.4, 0.5]}, higher_is_better=False)
    assert lead is not None
    assert (lead.first, lead.second) == ("a", "c")
    assert lead.difference == pytest.approx(0.3)


def test_of_equal_means_the_first_leads() -> None:
    for better in (True, False):
        lead = leader({"z": [0.5], "a": [0.5]}, higher_is_better=better)
        assert lead is not None
        assert (lead.first, lead.difference) == ("z", 0)


def test_spread_is_pooled_over_the_two_that_are_compared() -> None:
    first, second = [0.5, 0.7], [0.4, 0.5, 0.3]
    lead = leader({"a": first, "b": second, "wild": [0.0, -0.9]}, higher_is_better=True)
    assert lead is not None
    pooled = math.sqrt((np.var(first, ddof=1) + 2 * np.var(second, ddof=1)) / 3)
    assert lead.spread == pytest.approx(pooled)
    assert lead.seeds == (2, 3)


def test_a_group_of_one_says_nothing_about_the_spread() -> None:
    lead = leader({"a": [0.9], "b": [0.1, 0.2]}, higher_is_better=True)
    assert lead is not None
    assert lead.spread == pytest.approx(np.std([0.1, 0.2], ddof=1))
    alone = leader({"a": [0.9], "b": [0.1]}, higher_is_better=True)
    assert alone is not None
    assert alone.spread is None
    assert alone.within_spread is None


@pytest.mark.parametrize(("second", "within"), [([0.25, 0.75], True), ([-0.75, -0.25], False)])
def test_within_spread(second: list[float], within: bool) -> None:
    lead = leader({"a": [0.5, 1.0], "b": second}, higher_is_better=True)
    assert lead is not None
    assert lead.within_spread is within


@pytest.mark.parametrize("groups", [{}, {"a": [0.5]}, {"a": [0.5], "b": []}, {"a": [0.5], "b": [None]}])
def test_there_is_no_leader_of_fewer_than_two(groups: dict[str, list[float | None]]) -> None:
    assert leader(groups, higher_is_better=True) is None


@given(st.lists(st.lists(scores, min_size=1, max_size=4), min_size=2, max_size=5))
def test_turning_the_direction_turns_the_sign(groups: list[list[float]]) -> None:
    named = {str(place): group for place, group in enumerate(groups)}
    turned = {name: [-score for score in group] for name, group in named.items()}
    lead = leader(named, higher_is_better=True)
    assert lead is not None
    assert lead.difference >= 0
    assert lead == leader(turned, higher_is_better=False)
