from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manytune.stats.describe import Summary, summarize

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
