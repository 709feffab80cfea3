from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from manytune.report.analysis import Analysis, analyse
from manytune.report.answer import Answer, answer, near_best
from manytune.report.report_data import read
from manytune.report.sheets import signed
from study_factory import GLUE_LIKE, make_study_directory

TWO = [{"method": "full", "learning_rate": 5e-5}, {"method": "lora", "rank": 8, "learning_rate": 4e-4}]


def say(
    root: Path, seeds: int = 5, quality: Mapping[str, float] | None = None, **options: Any
) -> tuple[Analysis, Answer]:
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": list(range(seeds)), "methods": TWO}
    store = make_study_directory(root / "s", study, quality=quality or {"full": 1.0, "lora": 1.0}, **options)
    (analysis,) = analyse(read([store.root]))
    return analysis, answer(analysis)


def kinds(found: Answer) -> list[str]:
    return [point.kind for point in found.points]


def test_a_clear_winner_is_called_best_with_its_interval(tmp_path: Path) -> None:
    analysis, found = say(tmp_path, quality={"full": 1.0, "lora": 0.5})
    assert found.decided
    assert found.headline.startswith("CoLA, MCC: full fine-tuning is best, 0.")
    assert found.headline.endswith("over 5 seeds; it is better than the only other method.")
    (comparison,) = analysis.comparisons
    (point,) = [point for point in found.points if point.kind == "better"]
    assert comparison.low is not None
    assert comparison.high is not None
    interval = f"({signed(comparison.difference)}, 95 % interval {signed(comparison.low)} to {signed(comparison.high)}"
    assert f"is better than LoRA {interval}, 5 seeds, p " in point.text
    assert near_best(analysis) == analysis.ranked[:1]


def test_within_noise_says_so_and_which_is_cheapest(tmp_path: Path) -> None:
    analysis, found = say(tmp_path)
    assert found.decided
    assert "cannot be told from it" in found.headline
    noise, cheap = (next(point for point in found.points if point.kind == kind) for kind in ("noise", "cheap"))
    assert " is within noise of " in noise.text
    assert "95 % interval" in noise.text
    assert "of the parameters" in noise.text
    assert "four of five studies would find a true difference of 0." in noise.text
    behind = signed((analysis.row("lora r=8, lr 4e-4").mean or 0) - (analysis.ranked[0].mean or 0))
    assert cheap.text.startswith(
        f"Cheapest of the 2 configurations that no test tells from the best: LoRA ({behind}): "
    )
    assert "fewest trainable parameters (74,498)" in cheap.text
    assert {row.label for row in near_best(analysis)} == {"full lr 5e-5", "lora r=8, lr 4e-4"}


@pytest.mark.parametrize("seeds", [1, 3])
def test_few_seeds_get_no_verdict_and_a_number_to_go_on_with(tmp_path: Path, seeds: int) -> None:
    analysis, found = say(tmp_path, seeds=seeds, quality={"full": 1.0, "lora": 0.5})
    assert not found.decided
    assert found.headline.endswith("but these are too few seeds for a verdict.")
    assert kinds(found)[0] == "few"
    assert f"{5 - seeds} more." in found.points[0].text
    assert "p =" not in found.points[0].text
    assert "interval" not in found.points[0].text
    assert near_best(analysis) == ()
    assert "better" not in kinds(found)
    assert "cheap" not in kinds(found)


def test_several_methods_with_few_seeds_are_said_to_have_few_once(tmp_path: Path) -> None:
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": [0, 1]}
    (analysis,) = analyse(read([make_study_directory(tmp_path / "s", study).root]))
    found = answer(analysis)
    assert kinds(found).count("few") == 1
    first, *others = analysis.best_rows
    for row in others:
        assert f"{row.name.title} ({signed((first.mean or 0) - (row.mean or 0))})" in found.points[0].text
    assert "with 2 shared seeds; a verdict takes at least 5" in found.points[0].text


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    _, found = say(tmp_path, pending=["cola-lora"])
    assert "No other method has a score" in found.headline
    assert "5 of 10 planned runs have not ended" in found.points[0].text


def test_no_score_at_all_is_said(tmp_path: Path) -> None:
    _, found = say(tmp_path, states={"cola": "failed"})
    assert found.headline == "CoLA, MCC: all runs have ended and none has a score to compare: 10 failed."
    assert found.points[0].text.startswith("10 runs failed (Full and LoRA)")


def test_what_is_left_out_is_counted_and_named(cola: Analysis, stsb: Analysis) -> None:
    warnings = [point.text for point in answer(cola).points if point.kind == "warning"]
    assert warnings[0] == "1 run collapsed (BitFit lr 2e-4): left out of all means, named below."
    assert warnings[1] == "1 run failed (LoRA r=256): left out of all means, named below."
    assert any("were pruned" in point.text for point in answer(stsb).points)


def test_selection_on_dev_is_called_optimistic_and_train_split_is_not(tmp_path: Path) -> None:
    for place, (selection, optimistic) in enumerate((("dev", True), ("train-split", False))):
        _, found = say(tmp_path / str(place), changes={"selection": selection})
        assert any("optimistic" in point.text for point in found.points) == optimistic


@pytest.mark.parametrize(("factor", "named"), [(0.4, True), (0.6, False)])
def test_a_seed_that_did_not_take_off_is_named_and_its_method_is_no_cheap_choice(
    tmp_path: Path, factor: float, named: bool
) -> None:
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": list(range(5)), "methods": TWO}
    store = make_study_directory(tmp_path / "s", study, quality={"full": 1.0, "lora": 1.0})
    record = next(r for r in store.finished_runs().values() if r.method == "lora" and r.seed == 3)
    others = [r.best_score or 0.0 for r in store.finished_runs().values() if r.method == "lora" and r.seed != 3]
    low = factor * statistics.median(others)
    scores = {**record.scores, record.primary_metric: low}
    store.write_record(record.model_copy(update={"best_score": low, "scores": scores}))
    (store.run_dir(record.run_id) / "predictions.npz").unlink(missing_ok=True)
    (analysis,) = analyse(read([store.root]))
    warnings = [point.text for point in answer(analysis).points if point.kind == "warning"]
    assert any(f"LoRA: seed 3 scored {low:.3f}, less than half" in text for text in warnings) is named
    lora = next(row for row in analysis.rows if row.label.startswith("lora"))
    assert [run.seed for run, _ in lora.low_outliers] == [3] * named
    if named:
        assert lora not in near_best(analysis)
