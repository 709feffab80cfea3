from __future__ import annotations

import io
from types import MappingProxyType
from typing import Any

import pytest
from rich.console import Console

from manytune.data.metrics import METRICS
from manytune.report import TaskTable, render, tabulate
from manytune.storage.record import RunRecord
from manytune.utils.errors import StoreError
from record_factory import make_record


def runs_of(label: str, *scores: float, **facts: Any) -> list[RunRecord]:
    """One record for each score, its seed counted up; the last score is 0.1 lower."""
    return [
        make_record(
            **{
                "run_id": f"{label.replace(' ', '-')}-s{seed}",
                "label": label,
                "seed": seed,
                "best_score": score,
                "last_score": score - 0.1,
                "scores": {"matthews_correlation": score, "accuracy": score + 0.2},
                "last_scores": {"matthews_correlation": score - 0.1, "accuracy": score + 0.1},
            }
            | facts
        )
        for seed, score in enumerate(scores)
    ]


def one_table(*groups: list[RunRecord]) -> TaskTable:
    (only,) = tabulate(record for group in groups for record in group)
    return only


def text_of(*groups: list[RunRecord], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    tables = tabulate(record for group in groups for record in group)
    console.print(render(tables, {(each.task, each.model): f"What {each.task} shows." for each in tables}))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(text: str, label: str) -> list[str]:
    """The cells of the line that starts with the label."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{label}  "))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


class TestTabulate:
    def test_one_table_a_task_and_one_row_a_method_in_the_order_of_the_records(self) -> None:
        records = [
            *runs_of("lora", 0.5, 0.6),
            *runs_of("full", 0.4),
            *runs_of("lora", 0.1, task="stsb", primary_metric="pearson", scores={"pearson": 0.1}),
        ]
        tables = tabulate(records)
        assert [(each.task, [row.label for row in each.rows]) for each in tables] == [
            ("cola", ["lora", "full"]),
            ("stsb", ["lora"]),
        ]
        assert [len(row.runs) for row in tables[0].rows] == [2, 1]

    def test_backbones_are_never_mixed(self) -> None:
        tables = tabulate([*runs_of("full", 0.4), *runs_of("full", 0.5, model="roberta-base")])
        assert [each.model for each in tables] == ["minilm", "roberta-base"]

    def test_best_and_last_of_every_metric(self) -> None:
        (row,) = one_table(runs_of("lora", 0.4, 0.6)).rows
        primary, accuracy = row.metrics
        assert primary.metric is METRICS["matthews_correlation"]
        assert accuracy.metric is METRICS["accuracy"]
        found = [each.mean for each in (primary.best, primary.last, accuracy.best, accuracy.last)]
        assert found == pytest.approx([0.5, 0.4, 0.7, 0.6])
        assert primary.best.deviation == pytest.approx(0.1414, abs=1e-4)

    def test_the_primary_metric_comes_first_whatever_the_order_of_scores(self) -> None:
        records = runs_of("lora", 0.4, scores={"accuracy": 0.9, "matthews_correlation": 0.4})
        assert one_table(records).rows[0].primary.metric.name == "matthews_correlation"

    @pytest.mark.parametrize("state", ["collapsed", "failed", "pruned"])
    def test_only_finished_runs_are_averaged(self, state: str) -> None:
        failure = "out of memory" if state == "failed" else None
        good = runs_of("lora", 0.4, 0.6)
        bad = make_record(run_id="bad", label="lora", state=state, failure=failure, best_score=0.0)
        (row,) = one_table([*good, bad]).rows
        assert (row.primary.best.count, row.primary.best.mean) == (2, pytest.approx(0.5))
        assert row.notes == (f"1 of 3 {state}: bad",)

    def test_a_last_evaluation_that_collapsed_is_left_out_of_the_last_mean_alone(self) -> None:
        good, bad = runs_of("lora", 0.4), runs_of("lora", 0.6, last_collapsed=True, last_score=0.0)
        (row,) = one_table([*good, *bad]).rows
        assert row.primary.best.count == 2
        assert row.primary.last.mean == pytest.approx(0.3)
        assert len(row.notes) == 1
        assert "1 of 2 predicted a constant at the last evaluation" in row.notes[0]

    def test_costs(self) -> None:
        records = [
            make_record(label="lora", cost={"samples_per_second": 100, "peak_memory_bytes": 5}),
            make_record(label="lora", cost={"samples_per_second": 300, "peak_memory_bytes": 9}),
            make_record(label="lora", parameters={"total": 200, "trainable": 3}),
        ]
        (row,) = one_table(records).rows
        assert row.samples_per_second == 200
        assert row.peak_memory_bytes == 9
        assert (row.trainable, row.trainable_share) == (3, 0.015)

    def test_unknown_costs_stay_unknown(self) -> None:
        (row,) = one_table([make_record()]).rows
        assert (row.samples_per_second, row.peak_memory_bytes) == (None, None)
        assert (row.trainable, row.trainable_share) == (None, None)

    def test_an_unknown_metric_is_refused(self) -> None:
        with pytest.raises(StoreError, match=r"'acuracy' is not one of: .*accuracy"):
            tabulate([make_record(scores={"acuracy": 0.5})])

    def test_no_records_make_no_tables(self) -> None:
        assert tabulate([]) == ()


class TestRender:
    COSTS = MappingProxyType(
        {
            "parameters": {"total": 124_942_082, "trainable": 294_912},
            "cost": {"samples_per_second": 431.4, "peak_memory_bytes": 1_234_567_890},
        }
    )

    def test_a_row_has_its_figures(self) -> None:
        text = text_of(runs_of("lora r=8", 0.4, 0.6, **self.COSTS))
        assert row_of(text, "LoRA") == [
            *("LoRA", "2", "0.500 ± 0.141", "0.400 ± 0.141", "0.700 ± 0.141", "0.600 ± 0.141"),
            *("294,912", "0.24 %", "431", "1.2 GB"),
        ]
        assert row_of(text, "method") == [
            *("method", "runs", "MCC best", "MCC last", "Accuracy best", "Accuracy last"),
            *("trainable", "of all", "samples/s", "peak memory"),
        ]
        assert "left out" not in text

    def test_pearson_and_spearman_stand_under_their_own_names(self) -> None:
        scores = {"pearson": 0.9, "spearman": 0.8}
        facts = {"task": "stsb", "primary_metric": "pearson", "scores": scores}
        text = text_of(runs_of("full", 0.9, last_scores={"pearson": 0.7, "spearman": 0.6}, **facts))
        assert "STS-B on minilm" in text
        assert row_of(text, "method")[2:6] == [
            *("Pearson best", "Pearson last", "Spearman best", "Spearman last"),
        ]
        assert row_of(text, "full")[2:6] == ["0.900", "0.800", "0.800", "0.600"]

    def test_one_seed_shows_no_deviation_and_the_unknown_a_dash(self) -> None:
        cells = row_of(text_of(runs_of("lora", 0.5)), "LoRA")
        assert cells == ["LoRA", "1", "0.500", "0.400", "0.700", "0.600", "–", "–", "–", "–"]

    def test_runs_left_out_are_counted_and_named(self) -> None:
        good, bad = runs_of("lora", 0.4, 0.6), make_record(run_id="bad", label="lora", state="collapsed")
        text = text_of([*good, bad])
        assert row_of(text, "LoRA")[1:3] == ["2 of 3", "0.500 ± 0.141"]
        assert "LoRA: 1 of 3 collapsed: bad" in [line.strip() for line in text.splitlines()]
        assert "Means and standard deviations are over the runs that trained; the others are left out" in text

    def test_a_row_without_any_mean_says_what_became_of_its_runs(self) -> None:
        collapsed = runs_of("all collapsed", 0.0, 0.0, state="collapsed")
        failed = runs_of("mixed", 0.0, state="failed", failure="no")
        lost = runs_of("lost", 0.5, best_score=None, last_score=None)
        flat = runs_of("flat end", 0.5, last_collapsed=True)
        text = text_of(collapsed, failed, runs_of("mixed", 0.0, state="collapsed"), lost, flat)
        assert row_of(text, "all collapsed")[1:4] == ["0 of 2", "collapsed", "collapsed"]
        assert row_of(text, "mixed")[1:4] == ["0 of 2", "failed, collapsed", "failed, collapsed"]
        assert row_of(text, "lost")[1:4] == ["1", "–", "–"]
        assert row_of(text, "flat end")[1:4] == ["1", "0.500", "collapsed"]

    def test_eighty_columns_hold_every_figure_whole(self) -> None:
        rows = [runs_of(f"lora r={rank}, lr 4e-4", 0.4, 0.6, **self.COSTS) for rank in (8, 256)]
        text = text_of(*rows, width=80)
        assert "…" not in text
        assert all(len(line) <= 80 for line in text.splitlines())
        for figure in ("0.500 ± 0.141", "0.400 ± 0.141", "0.700 ± 0.141", "294,912", "0.24 %", "1.2 GB"):
            assert text.count(figure) == 2, figure

    def test_brackets_are_no_markup(self) -> None:
        text = text_of(runs_of("odd [bold]", 0.5))
        assert row_of(text, "odd [bold]")

    def test_rows_stand_by_their_means_under_names_without_what_never_varies(self) -> None:
        shared = ", lr 4e-4, alpha 16, targets dense+query"
        text = text_of(
            runs_of(f"lora r=2{shared}", 0.3), runs_of(f"lora r=8{shared}", 0.0, state="failed", failure="no"),
            runs_of(f"lora r=64{shared}", 0.6), runs_of("full lr 4e-4", 0.5, method="full"),
        )  # fmt: skip
        first = [line.split("  ")[0].strip() for line in text.splitlines()]
        assert [name for name in first if name.startswith(("LoRA r", "Full"))] == [
            *("LoRA r=64", "Full", "LoRA r=2", "LoRA r=8"),
        ]
        assert "LoRA r=8: 1 of 1 failed: " in text
        assert "  Settings not in the names: all lr 4e-4; LoRA alpha 16, targets dense+query." in text.splitlines()

    def test_each_task_has_its_sentence_and_one_without_has_none(self) -> None:
        text = text_of(runs_of("full", 0.5), runs_of("full", 0.5, task="mine"))
        lines = [line.strip() for line in text.splitlines()]
        assert [line for line in lines if line.startswith("What ")] == ["What cola shows.", "What mine shows."]
        assert lines.index("What cola shows.") < lines.index(
            next(line for line in lines if line.startswith("mine on "))
        )
        console = Console(file=io.StringIO(), width=200)
        console.print(render(tabulate(runs_of("full", 0.5)), {("cola", "another"): "What another backbone shows."}))
        assert isinstance(console.file, io.StringIO)
        assert "What " not in console.file.getvalue()

    def test_a_sentence_is_no_markup(self) -> None:
        console = Console(file=io.StringIO(), width=200)
        console.print(render(tabulate(runs_of("full", 0.5)), {("cola", "minilm"): "odd [bold] is best"}))
        assert isinstance(console.file, io.StringIO)
        assert "odd [bold] is best" in console.file.getvalue()
