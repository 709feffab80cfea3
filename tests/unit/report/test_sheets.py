from __future__ import annotations

import csv
import io
import math
import re

import pytest

from manytune.report.sheets import (
    Column,
    Sheet,
    interval,
    measured,
    sheet_of,
    show,
    signed,
    tex,
    to_csv,
    to_markdown,
    to_tex,
)


def make(*rows: tuple[object, ...], kind: str = "score") -> Sheet:
    columns = (Column("name", "the name"), Column("value", "the value", kind))
    return Sheet("a-sheet", "A title & more", "Of 5 %.", columns, rows)  # type: ignore[arg-type]


def test_csv_has_the_values_at_full_precision() -> None:
    text = to_csv(make(("a", 1 / 3), ("b", None), ("c", math.nan)))
    assert text == f"name,value\na,{1 / 3!r}\nb,\nc,\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_text_is_a_formula_in_a_spreadsheet(text: str) -> None:
    (_, (cell, number)) = csv.reader(io.StringIO(to_csv(make((text, -0.5))), newline=""))
    assert cell == f"'{text}".replace("\r", " ")
    assert number == "-0.5"


@pytest.mark.parametrize("text", ["＝1+1", "＠x", " =1", "\n=1"])
def test_signs_that_only_some_spreadsheets_take_for_a_formula(text: str) -> None:
    (_, (cell, _)) = csv.reader(io.StringIO(to_csv(make((text, 1)))))
    assert cell == f"'{text}"


def test_a_csv_header_is_no_formula_and_no_cell_commands_a_terminal() -> None:
    sheet = Sheet("s", "t", "c", (Column("=1+1", "x"), Column("b", "y")), (("a\x1b[2J\u202e", "c\nd"),))
    header, row = csv.reader(io.StringIO(to_csv(sheet)))
    assert header == ["'=1+1", "b"]
    assert row == [r"a\x1b[2J\u202e", "c\nd"]


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("score", 0.12345, "0.123"),
        ("score", -0.5, "−0.500"),
        ("count", 124647170, "124,647,170"),
        ("share", 0.0024, "0.24 %"),
        ("percent", 0.8, "80 %"),
        ("p", 0.00001, "< 0.001"),
        ("p", 0.0414, "0.041"),
        ("p", 0.414, "0.41"),
        ("seconds", 12.34, "12.3 s"),
        ("seconds", 263, "4:23 min"),
        ("seconds", 7500, "2:05 h"),
        ("bytes", 1_900_000_000, "1.9 GB"),
        ("rate", 0.0004, "4e-4"),
        ("rate", 0.00025, "2.5e-4"),
        ("count", None, "–"),
        ("score", math.nan, "–"),
        ("score", "text", "text"),
    ],
)
def test_how_values_are_shown(kind: str, value: float | str | None, shown: str) -> None:
    assert show(value, kind) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0123, "+0.012"), (-0.004, "−0.004"), (0.0, "0"), (0.0002, "+0.0002"), (-0.00004, "−4e-05")],
)
def test_a_difference_has_its_sign_and_never_rounds_to_nothing(value: float, shown: str) -> None:
    assert signed(value) == shown


@pytest.mark.parametrize(
    ("mean", "deviation", "shown"),
    [
        (0.59712, 0.0123, "0.597 ± 0.012"),
        (0.59712, 0.0999, "0.60 ± 0.10"),
        (0.59712, 0.1234, "0.60 ± 0.12"),
        (0.59712, 0.000012, "0.597 ± 0.000"),  # never more than three decimals
        (0.59712, 0.0, "0.597 ± 0.000"),
        (12.345, 1.5, "12.3 ± 1.5"),
        (1234.5, 56.7, "1234 ± 57"),
        (123456.7, 1234.5, "123457 ± 1234"),
        (-0.5, 0.1, "−0.50 ± 0.10"),
        (0.59712, None, "0.597"),
        (0.59712, math.nan, "0.597"),
        (math.inf, 0.1, "–"),
        (None, 0.1, "–"),
    ],
)
def test_a_mean_has_the_decimals_that_its_deviation_allows(
    mean: float | None, deviation: float | None, shown: str
) -> None:
    assert measured(mean, deviation) == shown


def test_an_interval_has_both_signs_or_is_unknown() -> None:
    assert interval(-0.004, 0.0123) == "−0.004 to +0.012"
    assert [interval(None, 0.1), interval(0.1, None)] == ["–", "–"]


def test_extra_columns_are_in_the_csv_file_alone() -> None:
    main = [("name", "the name", "text", str), ("value", "the value", "score", lambda item: 0.25)]
    more = [("rare", "the rare", "count", lambda item: 7), ("spread", "sd", "deviation", lambda item: 0.0123)]
    sheet = sheet_of("s", "t", "c", main, ["a"], more=more)
    assert to_csv(sheet) == "name,value,rare,spread\na,0.25,7,0.0123\n"
    assert to_markdown(sheet).splitlines() == ["| the name | the value |", "| --- | ---: |", "| a | 0.250 |"]
    text = to_tex(sheet)
    assert r"\begin{tabular}{lr}" in text
    assert r"the name & the value \\" in text
    assert "rare" not in text
    assert [column.title for column in sheet.page_columns] == ["the name", "the value", "the rare"]
    assert sheet.shown() == [["a", "0.250", "7.000 ± 0.012"]]


def test_columns_that_nobody_sees_scale_no_latex_table() -> None:
    columns = (Column("name", "n"), *(Column(f"c{at}", "c", "count", extra=True) for at in range(9)))
    assert "resizebox" not in to_tex(Sheet("s", "t", "c", columns, (("a", *range(9)),)))


def test_latex_takes_no_text_for_a_command() -> None:
    assert tex(r"\input{/etc/passwd} 100 % a_b $x$ #1 ~^&") == (
        r"\textbackslash{}input\{/etc/passwd\} 100 \% a\_b \$x\$ \#1 \textasciitilde{}\textasciicircum{}\&"
    )
    assert tex("a\u2028b\nc\x00") == "a b c?"
    assert tex('−0.1 – "α ≥ 2"') == r"$-$0.1 -- ''$\alpha$ $\geq$ 2''"


def test_a_latex_row_is_no_argument_of_the_line_above() -> None:
    text = to_tex(make(("[1cm] ?`a`", 0.5), ("* b", 0.5)))
    assert "{[}1cm{]} ?{`}a{`} & 0.500" in text
    assert "\n{*} b & 0.500" in text


def test_latex_says_where_letters_need_another_engine() -> None:
    plain, other = to_tex(make(("é ł – “a” ⁄ ·", 0.5))), to_tex(make(("中文", 0.5)))
    assert "XeLaTeX" not in plain
    assert "⁄" not in plain
    assert "XeLaTeX" in other.splitlines()[0]
    assert "中文" in other


def test_a_latex_table_has_its_rules_and_as_many_cells_as_columns() -> None:
    text = to_tex(make(("a & b", 0.5), ("c", None)))
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\begin{tabular}{lr}" in text
    assert r"a \& b & 0.500 \\" in text
    assert len(re.findall(r"(?<!\\)&", text.split(r"\midrule")[1])) == 2
    assert r"\caption{A title \& more. Of 5 \%.}" in text


def test_a_wide_latex_table_is_scaled_to_the_line() -> None:
    assert "resizebox" not in to_tex(make(("a", 0.5)))
    wide = to_tex(make(("a long sentence " * 10, 0.5)))
    assert r"\resizebox{\linewidth}{!}{%" in wide
    assert r"\end{tabular}}" in wide
    assert r"\usepackage{booktabs,graphicx}" in wide.splitlines()[0]
    many = Sheet("s", "t", "c", tuple(Column(f"c{at}", "c", "count") for at in range(9)), ())
    assert "resizebox" in to_tex(many)


def test_a_markdown_cell_is_no_link_and_no_formula() -> None:
    assert r"| https:/\/a.b \$x\$ \\x1b | 0.500 |" in to_markdown(make(("https://a.b $x$ \x1b", 0.5)))


def test_markdown_takes_no_text_for_markup() -> None:
    text = to_markdown(make(("<b>|x|</b> `a`\nb", 0.5)))
    assert text.splitlines()[2] == r"| \<b\>\|x\|\</b\> \`a\` b | 0.500 |"
    assert text.splitlines()[1] == "| --- | ---: |"
