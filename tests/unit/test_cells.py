"""What cells of any kind are taken for: texts, names of classes, targets."""

from __future__ import annotations

import datetime
import math
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manytune.data.cells import is_empty, label_of, same_to_the_eye, target_of, text_of

NOTHING = [None, float("nan"), np.float32("nan"), Decimal("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), pa.scalar(None)]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (" a ", "a"),
        (np.str_("a"), "a"),
        (b"caf\xc3\xa9", "café"),
        (pa.scalar("a"), "a"),
        (pa.scalar(b"a"), "a"),
        (5, "5"),
        (np.int8(5), "5"),
        (5.0, "5"),
        (np.float32(0.1), "0.1"),
        (Decimal("5.00"), "5"),
        (Decimal("1.50"), "1.5"),
        (True, "True"),
        (np.bool_(False), "False"),
        *((nothing, "") for nothing in NOTHING),
    ],
)
def test_what_a_cell_says(cell: object, text: str) -> None:
    assert text_of(cell) == label_of(cell) == text


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (["a", "b"], "holds ['a', 'b'] (list), which is no text"),
        ({"a": 1}, "holds {'a': 1} (dict), which is no text"),
        (np.array(["a"]), "(ndarray), which is no text"),
        (datetime.date(2026, 1, 2), "(date), which is no text"),
        (np.datetime64("2026-01-02"), "(datetime64), which is no text"),
        (pa.scalar(["a"]), "(list), which is no text"),
        (b"caf\xe9", "holds bytes that are not UTF-8: 0xe9 at byte 3"),
        (2.0**53, "a whole number that a float no longer tells from its neighbours"),
        (np.float32(2**24), "a whole number that a float no longer tells"),
        ("a\0", "holds a NUL character"),
        ("a\ud83d", "half of a character, U+D83D"),
    ],
)
def test_what_is_no_text(cell: object, reason: str) -> None:
    for understand in (text_of, label_of):
        with pytest.raises(ValueError, match=re.escape(reason)) as error:
            understand(cell)
        assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("good\u200b", "good"),
        ("\ufeffgo\u200dod\u00a0", "good"),
        ("a\u00a0 b\tc", "a b c"),
        ("go\u00adod\u2060", "good"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("\u200b", ""),
    ],
    ids=ascii,
)
def test_classes_that_look_the_same_are_the_same(cell: str, name: str) -> None:
    assert label_of(cell) == name
    assert text_of(cell) == cell.strip(), "a text stays what it is"


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")))
def test_a_name_of_a_class_is_its_own_name(text: str) -> None:
    assert label_of(label_of(text)) == label_of(text)


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1.5", 1.5), (" -2e-3 ", -0.002), (".5", 0.5), (b"7", 7.0), (3, 3.0), (np.float32(0.5), 0.5)],
)
def test_what_a_target_is(cell: object, value: float) -> None:
    assert target_of(cell) == value
    assert target_of(Decimal("1700000001.25")) == 1700000001.25


@pytest.mark.parametrize("cell", ["1e400", 10**400, "inf", "-Infinity", "nan"])
def test_targets_that_are_not_finite(cell: object) -> None:
    assert not math.isfinite(target_of(cell))


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("1,5", "'1,5' is not a number; write 1.5 if that is meant"),
        ("1_000", "write 1000 if"),
        ("\uff11\uff12", "write 12 if"),
        ("\u22125", "write -5 if"),
        ("0x10", "write digits alone"),
        ("\u0663", "write digits alone"),
        ("1,234.5", "write digits alone"),
        ("", "write digits alone"),
        (True, "True is not a number; write 1 and 0, or take type: classification"),
        ([1.0], "[1.0] (list) is not a number"),
    ],
)
def test_numbers_that_only_python_or_only_people_read_are_refused(cell: object, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        target_of(cell)


@pytest.mark.parametrize("cell", [*NOTHING, "", " \u00a0"], ids=repr)
def test_what_is_empty(cell: Any) -> None:
    assert is_empty(cell)
    assert not is_empty(0.0)
    assert not is_empty([])


@pytest.mark.parametrize(("one", "other"), [("Good", "good"), ("1", "1.0"), ("\uff21", "a"), ("01", "1e0")])
def test_names_that_only_their_spelling_tells_apart(one: str, other: str) -> None:
    assert same_to_the_eye(one) == same_to_the_eye(other)
    assert same_to_the_eye("nan") != same_to_the_eye("inf")
