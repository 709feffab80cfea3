from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manytune.data import metrics
from manytune.data.tasks import TASKS
from manytune.methods.base import LEARNING_RATE
from manytune.methods.lora import Lora
from manytune.report.analysis import Analysis, analyse
from manytune.report.mistakes import disagreement_sheet, mistake_sheet
from manytune.report.published import figures, published_sheet
from manytune.report.report_data import read, without_examples
from manytune.report.score_sheets import (
    axis_sheet,
    comparison_sheet,
    cost_sheet,
    left_out_sheet,
    parts_sheet,
    run_sheet,
    score_sheets,
    standing_sheet,
)
from manytune.report.sheets import Sheet
from study_factory import GLUE_LIKE, make_study_directory

RANK = Lora.axis


def rows(sheet: Sheet | None) -> list[dict[str, Any]]:
    assert sheet is not None
    names = [column.name for column in sheet.columns]
    assert len(set(names)) == len(names)
    return [dict(zip(names, row, strict=True)) for row in sheet.rows]


def test_scores_are_over_the_runs_that_finished(cola: Analysis) -> None:
    for sheet, metric in zip(score_sheets(cola), TASKS["cola"].metrics, strict=True):
        for row, cells in zip(cola.table.by_mean, rows(sheet), strict=True):
            scores = {run.seed: run.scores[metric] for run in row.finished}
            known = [score for score in scores.values() if score is not None]
            assert cells["seeds"] == len(known)
            assert cells["mean"] == pytest.approx(np.mean(known))
            assert cells["standard_deviation"] == pytest.approx(np.std(known, ddof=1))
            assert cells["median"] == statistics.median(known)
            assert cells["best"] == max(known)
            assert scores[cells["best_seed"]] == max(known)
            last = [run.last_scores[metric] for run in row.finished]
            assert cells["last_mean"] == pytest.approx(np.mean(last))  # type: ignore[arg-type]


def test_intervals_for_new_seeds_and_for_new_dev_rows_stand_beside_the_mean(cola: Analysis) -> None:
    for cells in rows(score_sheets(cola)[0]):
        label = cells["configuration"]
        assert (cells["seeds_low"], cells["seeds_high"]) == cola.seed_interval(label)
        assert (cells["examples_low"], cells["examples_high"]) == cola.examples_intervals[label]
        rate = cola.verdict.rates[label]
        assert (cells["failures_low"], cells["failures_high"]) == (1 - rate.high, 1 - rate.low)


def test_left_out_runs_are_counted_beside_the_mean_and_named(cola: Analysis) -> None:
    counted = {cells["configuration"]: cells["left_out"] for cells in rows(score_sheets(cola)[0]) if cells["left_out"]}
    assert counted == {"bitfit lr 2e-4": "1 collapsed", "lora r=256, lr 4e-4, dropout 0.1": "1 failed"}
    failures = {cells["configuration"]: cells["failures"] for cells in rows(score_sheets(cola)[0]) if cells["failures"]}
    assert failures == {"bitfit lr 2e-4": 1, "lora r=256, lr 4e-4, dropout 0.1": 1}
    named = rows(left_out_sheet(cola))
    assert [(cells["state"], cells["seed"]) for cells in named] == [("collapsed", 3), ("failed", 1)]
    assert named[1]["reason"].startswith("The training loss became nan")


def test_every_run_is_listed(cola: Analysis) -> None:
    listed = rows(run_sheet(cola))
    assert len(listed) == 35
    for run, cells in zip(cola.records, listed, strict=True):
        assert (cells["run"], cells["matthews_correlation"]) == (run.run_id, run.best_score)


def test_pairs_of_methods_have_what_the_statistics_say(cola: Analysis) -> None:
    assert len(cola.verdict.comparisons) == 3
    for found, cells in zip(cola.verdict.comparisons, rows(comparison_sheet(cola)), strict=True):
        assert (cells["first"], cells["second"], cells["verdict"]) == (
            *(found.first_label, found.second_label, str(found.verdict)),
        )
        for name in ("difference", "low", "high", "p", "p_holm", "ahead", "shared", "detectable", "seeds_needed"):
            assert cells[name] == getattr(found, name), name
        for name in ("examples_low", "examples_high", "examples_p", "overall_low", "rates_p"):
            assert cells[name] == getattr(found, name), name
        assert cells["effect_size"] == found.effect
        assert (cells["seeds_first"], cells["seeds_second"]) == found.seeds
        assert (cells["choices_first"], cells["choices_second"]) == found.choices


def test_below_five_seeds_only_the_difference_is_shown(old_analysis: Analysis) -> None:
    for cells in rows(comparison_sheet(old_analysis)):
        assert cells["difference"] > 0
        assert cells["verdict"] == "too few seeds"
        tested = ("low", "high", "p", "p_holm", "effect_size", "detectable", "examples_p", "overall_low")
        assert [cells[name] for name in tested] == [None] * len(tested)
    assert standing_sheet(old_analysis) is None


def test_the_best_stand_first_and_say_who_is_as_good(cola: Analysis) -> None:
    standing = rows(standing_sheet(cola))
    assert [cells["configuration"] for cells in standing] == [row.label for row in cola.ranked]
    assert standing[0]["from_best"] == 0
    assert [cells["from_best"] for cells in standing] == sorted(
        (cells["from_best"] for cells in standing), reverse=True
    )
    assert {cells["may_be_best"] for cells in standing} == {"yes", "no", "too few seeds"}
    for cells in standing:
        found = cola.verdict.as_good.get(cells["configuration"])
        if found is None:  # the one that trains most
            assert cells["configuration"] == "full lr 5e-5"
            assert [cells[name] for name in ("as_good", "as_good_low", "as_good_seeds", "as_good_p")] == [None] * 4
        else:
            assert cells["as_good"] == ("yes" if found.shown else "not shown")
            assert (cells["as_good_low"], cells["as_good_seeds"]) == (found.low, found.seeds_needed)
            assert cells["as_good_p"] == found.p


def test_costs_split_what_trains(cola: Analysis) -> None:
    for cells in rows(cost_sheet(cola)):
        assert cells["trainable"] == sum(cells[name] for name in ("backbone", "bias", "adapter", "head"))
        assert cells["trainable_share"] == pytest.approx(cells["trainable"] / cells["total"])
        assert cells["train_seconds"] > 0


def test_ranks_and_rates_are_series_in_their_order(cola: Analysis) -> None:
    assert [cells["rank"] for cells in rows(axis_sheet(RANK, cola))] == [2, 8, 64, 256]
    assert [(cells["series"], cells["learning_rate"]) for cells in rows(axis_sheet(LEARNING_RATE, cola))] == [
        ("BitFit", 2e-4),
        ("BitFit", 1e-3),
    ]


def test_a_single_rank_or_rate_is_no_series(tmp_path: Path) -> None:
    methods = [{"method": "lora", "rank": 8, "learning_rate": 4e-4}, {"method": "full", "learning_rate": 5e-5}]
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": [0], "methods": methods}
    (analysis,) = analyse(read([make_study_directory(tmp_path / "s", study, artifacts=False).root]))
    assert axis_sheet(RANK, analysis) is None
    assert axis_sheet(LEARNING_RATE, analysis) is None


def test_parts_of_dev_are_scored_apart(cola: Analysis, stsb: Analysis) -> None:
    assert cola.examples is not None
    labels = np.array(cola.examples.labels)
    for row, cells in zip(cola.table.by_mean, rows(parts_sheet(cola)), strict=True):
        for name, (first, last) in {"in-domain": (0, 527), "out-of-domain": (527, 1043)}.items():
            scores = [
                metrics.evaluate(TASKS["cola"], cola.predictions[run.run_id][first:last], labels[first:last])
                for run in row.finished
            ]
            assert cells[f"{name}_mean"] == pytest.approx(np.mean([s["matthews_correlation"] for s in scores]))
    assert parts_sheet(stsb) is None


def test_mistakes_are_those_that_most_runs_make(cola: Analysis) -> None:
    assert cola.examples is not None
    labels = np.array(cola.examples.labels)
    found = rows(mistake_sheet(cola))
    assert len(found) == 15
    shares = [cells["all"] for cells in found]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    for cells in found:
        at = cells["row"]
        assert cells["text"] == cola.examples.texts[at][0]
        assert cells["label"] == ("unacceptable", "acceptable")[int(labels[at])]
        full = [cola.predictions[run.run_id][at] != labels[at] for run in cola.row("full lr 5e-5").finished]
        assert cells["full"] == pytest.approx(np.mean(full))


def test_mistakes_of_a_regression_are_mean_errors(stsb: Analysis) -> None:
    assert stsb.examples is not None
    for cells in rows(mistake_sheet(stsb)):
        at = cells["row"]
        target = stsb.examples.labels[at]
        errors = [abs(stsb.predictions[run.run_id][at] - target) for run in stsb.row("full lr 5e-5").finished]
        assert cells["full"] == pytest.approx(np.mean(errors))
        assert cells["text"] == " ⁄ ".join(stsb.examples.texts[at])


def test_disagreements_are_between_the_two_best_methods(cola: Analysis) -> None:
    found = rows(disagreement_sheet(cola))
    gaps = [abs(cells["difference"]) for cells in found]
    assert gaps == sorted(gaps, reverse=True)
    for cells in found:
        assert cells["difference"] == pytest.approx(cells["lora"] - cells["full"])


def test_without_sentences_or_predictions_there_are_no_mistakes(directory: Path, old_analysis: Analysis) -> None:
    blank = analyse(without_examples(read([directory])))[0]
    for analysis in (blank, old_analysis):
        assert mistake_sheet(analysis) is None
        assert disagreement_sheet(analysis) is None
    assert parts_sheet(blank) is not None  # it names no sentence
    assert parts_sheet(old_analysis) is None


class TestPublished:
    def roberta(self, root: Path, **study: Any) -> Analysis:
        data = {**GLUE_LIKE, "model": "FacebookAI/roberta-base@main", "tasks": ["cola"], "seeds": [0, 1], **study}
        return analyse(read([make_study_directory(root / "s", data, artifacts=False).root]))[0]

    def test_every_figure_can_be_matched(self) -> None:
        assert len(figures()) == 22
        for figure in figures():
            assert figure.metric in TASKS[figure.task].metrics
            assert figure.method in ("full", "bitfit", "lora", "adapter", "vera", "FourierFT", "AdaLoRA", "DyLoRA")
            assert 0.5 < figure.score < 1
        assert sum(figure.source == "roberta-glue study" for figure in figures()) == 6

    def test_ours_stand_beside_theirs_with_all_that_differs(self, tmp_path: Path) -> None:
        analysis = self.roberta(tmp_path)
        found = rows(published_sheet(analysis))
        assert [cells["reported"] for cells in found[:6]] == [0.636, 0.62, 0.634, 0.6409, 0.6004, 0.6004]
        unknown = [cells["configuration"] for cells in found if cells["ours"] is None]
        assert unknown == [f"none: manytune has no {name}" for name in ("FourierFT", "AdaLoRA", "DyLoRA")]
        hu = found[2]
        assert hu["configuration"] == "lora r=8, lr 4e-4, dropout 0.1"
        assert hu["reported_spread"] == 0.012
        row = analysis.row("lora r=8, lr 4e-4, dropout 0.1")
        assert hu["ours"] == row.primary.best.mean
        assert hu["difference"] == pytest.approx(row.primary.best.mean - 0.634)  # type: ignore[operator]
        assert hu["differs"] == "batch 32 → 16; epochs 80 → 6; warmup 6 % of steps → 200 steps; seeds 5 → 2"

    def test_head_alpha_and_template_are_among_what_differs(self, tmp_path: Path) -> None:
        methods = [{"method": "lora", "rank": 8, "alpha": 16, "learning_rate": 4e-4}]
        found = rows(published_sheet(self.roberta(tmp_path, methods=methods)))
        own = next(cells for cells in found if cells["source"] == "roberta-glue study")
        for expected in (
            "head frozen → full",
            "α 8 → 16",
            "dropout 0.1 → 0",
            "template spaced → native",
            "epochs 10 → 6",
        ):
            assert expected in own["differs"]

    def test_another_backbone_has_none(self, cola: Analysis) -> None:
        assert published_sheet(cola) is None
