"""A report of a study with planned looks: all of it is of the last look that was reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manytune.config.plan import Run
from manytune.report.analysis import Analysis, analyse
from manytune.report.answer import answer
from manytune.report.judgement import seed_plan
from manytune.report.report_data import StudyFacts, read
from manytune.stats.looks import SeedPlan
from manytune.storage.growth import SeedGrowth
from study_factory import GLUE_LIKE, make_study_directory

METHODS = [{"method": "full", "learning_rate": 5e-5}, {"method": "lora", "rank": 8, "learning_rate": 4e-4}]


def scores(run: Run) -> float:
    """LoRA is behind in the first five seeds, and far ahead in those after them."""
    scatter = 0.01 * (run.seed % 5 - 2)
    return 0.6 + scatter if run.method.method == "full" else 0.59 + scatter + 0.3 * (run.seed >= 5)


def analysed(root: Path, looks: list[int], seeds: int, **options: Any) -> Analysis:
    planned = {"looks": looks, "list": list(range(seeds))}
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": planned, "methods": METHODS}
    (analysis,) = analyse(read([make_study_directory(root / "s", study, scores=scores, **options).root]))
    return analysis


def test_what_ended_beyond_a_look_is_neither_shown_nor_judged(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, [5, 10], 7)
    assert analysis.verdict.level == 0.016
    for row in analysis.rows:
        assert sorted(run.seed for run in row.runs) == [0, 1, 2, 3, 4]
        low, high = analysis.seed_interval(row.label) or (1.0, 0.0)
        assert low < (row.mean or 0.0) < high
    found = answer(analysis)
    assert found.headline.startswith("CoLA, MCC: full fine-tuning has the highest mean, 0.600 (sd 0.016, 5 seeds); ")
    assert any(note.startswith("2 seeds have ended beyond the last planned look (of 5 and 10") for note in found.notes)
    (point,) = [point.text for point in found.points if point.kind == "open"]
    assert point.endswith(
        f"The next planned look is at 10 seeds. To add them: `manytune extend {tmp_path / 's'} --seeds 10`."
    )


def test_a_look_is_reached_when_all_of_its_runs_have_ended(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, [5, 10], 10, pending=["cola-lora-r8-lr4e-4-s9"])
    assert analysis.verdict.level == 0.016
    assert {run.seed for run in analysis.records} == {0, 1, 2, 3, 4}
    whole = analysed(tmp_path / "whole", [5, 10], 10)
    assert whole.verdict.level == 0.036
    assert {run.seed for run in whole.records} == set(range(10))
    assert answer(whole).headline.startswith("CoLA, MCC: LoRA ")


def test_before_the_first_look_the_sentences_name_it(tmp_path: Path) -> None:
    found = answer(analysed(tmp_path, [10, 20], 7))
    assert found.headline.endswith(", but these are too few seeds for a verdict, which takes 10.")
    (point,) = [point.text for point in found.points if point.kind == "open"]
    assert "A verdict takes at least 10 seeds that trained; the fewest here are 7." in point
    assert point.endswith("--seeds 10`.")


@pytest.mark.parametrize(
    ("growths", "plan"),
    [
        ([SeedGrowth((5, 10), ())] * 2, SeedPlan((5, 10))),
        ([SeedGrowth((5, 10), (5,)), SeedGrowth()], SeedPlan(grown=True)),
        ([SeedGrowth(), SeedGrowth((), (5,))], SeedPlan(grown=True)),
        ([SeedGrowth(), SeedGrowth()], SeedPlan()),
    ],
)
def test_studies_that_were_planned_in_different_ways_have_no_plan_together(
    tmp_path: Path, growths: list[SeedGrowth], plan: SeedPlan
) -> None:
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": [0], "methods": METHODS}
    (facts,) = read([make_study_directory(tmp_path / "s", study, artifacts=False).root]).studies
    assert seed_plan(StudyFacts(facts.study, facts.status, "", growth) for growth in growths) == plan
