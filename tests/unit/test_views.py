from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from manytune.report.views import (
    closing_lines,
    facts_table,
    history_table,
    percent,
    plain_table,
    record_facts,
    status_line,
    status_summary,
    status_table,
)
from manytune.storage.directory import PENDING, RunStatus, StudyStatus
from manytune.storage.record import Cost, HistoryRow, Parameters
from record_factory import make_record


def lines(renderable: RenderableType) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def cells(renderable: RenderableType) -> list[list[str]]:
    return [line.split() for line in lines(renderable)]


class TestPlainTable:
    def test_numbers_stand_to_the_right_and_words_to_the_left(self) -> None:
        heading, _, first, second = lines(
            plain_table(("name", "count", "mixed"), [("a", 5, "x"), ("bcdef", 12_345, 7)])
        )
        assert first.index("5") == second.index("12,345") + 5
        assert first.index("a") == second.index("bcdef") == heading.index("name")
        assert first.index("x") == second.index("7") == heading.index("mixed")

    def test_shares_and_sizes_count_as_numbers(self) -> None:
        _, _, first, second = lines(plain_table(("share",), [("0.08 %",), ("100.00 %",)]))
        assert first.endswith("  0.08 %")
        assert len(first) == len(second)

    def test_unknown_is_a_dash_and_makes_no_column_of_words(self) -> None:
        heading, _, first, second = lines(plain_table(("score",), [(None,), (1.5,)]))
        assert first.endswith("–")
        assert len(first) == len(second) == len(heading)

    def test_brackets_are_no_markup(self) -> None:
        for text in ("[bold]x[/bold]", "[/models]"):
            assert text in lines(plain_table(("a",), [(text,)]))[-1]
            assert text in lines(facts_table({"a": text}))[0]

    def test_a_title(self) -> None:
        assert lines(plain_table(("a",), [(1,)], title="Packs"))[0] == "Packs"

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "0"),
            (1234567, "1,234,567"),
            (0.0, "0.0000"),
            (0.12345, "0.1235"),
            (-0.5, "-0.5000"),
            (0.00001234, "1.234e-05"),
            (6863581440185217391004099805184.0, "6.864e+30"),
            (True, "True"),
        ],
    )
    def test_numbers_are_written_so_that_they_can_be_read(self, value: object, text: str) -> None:
        assert cells(plain_table(("value",), [(value,)]))[-1] == [text]

    @given(st.floats(-1.797e308, 1.797e308))  # the largest of all would be rounded to what no float holds
    def test_a_number_keeps_its_size(self, value: float) -> None:
        ((written,),) = cells(plain_table(("value",), [(value,)]))[2:]
        assert len(written) <= 13
        assert math.isclose(float(written), value, rel_tol=1e-3, abs_tol=5.1e-5 if abs(value) >= 1e-4 else 0)


def test_percent() -> None:
    assert [percent(*pair) for pair in ((102_914, 124_647_170), (1, 1), (0, 7))] == [*("0.08 %", "100.00 %", "0.00 %")]


class TestOneRun:
    def facts(self, **facts: Any) -> dict[str, Any]:
        return record_facts(make_record(**facts))

    def test_what_is_known_is_shown(self) -> None:
        shown = self.facts(
            best_step=300,
            steps=900,
            parameters=Parameters(total=1000, trainable=250, backbone=0, bias=0, adapter=200, head=50),
            cost=Cost(train_seconds=75.0, samples_per_second=123.4, peak_memory_bytes=2_000_000, pack_size=4),
            notes=["One.", "Two."],
        )
        assert shown["best"] == "matthews_correlation 0.5000, accuracy 0.8000 (step 300)"
        assert shown["last"] == "matthews_correlation 0.4500, accuracy 0.7900 (step 900)"
        assert shown["parameters"] == "250 of 1,000 train (25.00 %): adapter 200, head 50"
        assert shown["training"] == "1:15 min, 123 samples/s, in a pack of 4"
        assert shown["peak memory"] == "2.0 MB (whole pack)"
        assert shown["notes"] == "One.; Two."
        assert [shown[name] for name in ("state", "why", "task", "model", "method", "seed")] == [
            *("finished", None, "cola", "minilm", "lora r=8, lr 4e-4", 0)
        ]

    def test_what_is_unknown_is_none_and_never_a_number(self) -> None:
        shown = self.facts(scores={}, last_scores={"matthews_correlation": None})
        for name in ("best", "last", "parameters", "training", "peak memory", "notes"):
            assert shown[name] is None
        assert self.facts(cost=Cost(train_seconds=3.0, pack_size=2))["training"] == "3 s, in a pack of 2"

    def test_facts_are_a_line_each(self) -> None:
        assert lines(facts_table({"state": "finished", "why": None, "seed": 3})) == [
            *("state  finished", "why    –", "seed   3")
        ]

    def test_history(self) -> None:
        rows = [
            HistoryRow(step=5, epoch=0.5, train_loss=0.7, learning_rate=2e-5, metrics={"pearson": 0.1}),
            HistoryRow(step=10, epoch=1.0, eval_loss=0.6, metrics={"pearson": 0.2, "spearman": 0.3}),
        ]
        heading, _, first, second = cells(history_table(rows))
        assert heading == ["step", "epoch", "train", "loss", "learning", "rate", "eval", "loss", "pearson", "spearman"]
        assert first == ["5", "0.5000", "0.7000", "2.00e-05", "–", "0.1000", "–"]
        assert second == ["10", "1.0000", "–", "–", "0.6000", "0.2000", "0.3000"]


class TestStatus:
    def status(self, *states: str) -> StudyStatus:
        runs = tuple(
            RunStatus(
                run_id=f"run-{index}",
                task="cola",
                model="minilm",
                label="full lr 2e-5",
                seed=index,
                state=state,
                primary_metric="matthews_correlation" if state == "finished" else None,
                best_score=0.5 if state == "finished" else None,
                best_step=100 if state == "finished" else None,
                failure=None,
            )
            for index, state in enumerate(states)
        )
        known = ("finished", "failed", "collapsed", "pruned", PENDING)
        counts = {state: Counter(states)[state] for state in known}
        return StudyStatus("small", "out", len(runs), counts, runs, ())

    def test_in_a_line(self) -> None:
        assert status_line(self.status("finished", PENDING, PENDING)) == "small: 3 runs: 1 finished, 2 pending"
        assert status_line(self.status("failed")) == "small: 1 run: 1 failed"

    def test_in_a_table(self) -> None:
        heading, _, first, second = cells(status_table(self.status("finished", PENDING)))
        assert heading == ["task", "method", "seed", "state", "best", "score", "step", "run"]
        assert first == ["cola", "full", "lr", "2e-5", "0", "finished", "0.5000", "100", "run-0"]
        assert second == ["cola", "full", "lr", "2e-5", "1", "pending", "–", "–", "run-1"]

    def test_in_a_summary(self) -> None:
        states = ("finished", PENDING, "failed", "finished")
        heading, _, line = cells(status_summary(self.status(*states)))
        assert heading == ["task", "method", "runs", "finished", "failed", "pending", "mean", "best", "score"]
        assert line == ["cola", "full", "lr", "2e-5", "4", "2", "1", "1", "0.5000"]


def test_closing_lines() -> None:
    failed = [make_record(run_id=f"run-{index}", state="failed", failure="It broke.") for index in range(2)]
    assert closing_lines(Path("out"), []) == [
        "Results: out",
        "Every run: manytune status out; one run: manytune show out RUN",
    ]
    _, _, *more = closing_lines(Path("out"), failed)
    assert more[:3] == ["2 runs failed:", "  run-0: It broke.", "  run-1: It broke."]
    assert more[3] == "To have them trained again, give the same command --retry-failed."
    many = closing_lines(Path("out"), failed * 20)
    assert many[-2] == "  and 20 more"
