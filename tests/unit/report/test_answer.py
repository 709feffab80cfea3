"""The answer in words: one method is best, another as good, some fail, and what is open; never more than was shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from manytune.config.plan import Run
from manytune.methods.base import LEARNING_RATE
from manytune.methods.lora import Lora
from manytune.methods.vera import Vera
from manytune.report.analysis import Analysis, analyse
from manytune.report.answer import Answer, about_axis, answer
from manytune.report.report_data import read
from manytune.report.series import swept
from manytune.stats.claims import Verdict
from study_factory import GLUE_LIKE, make_study_directory

TWO = [{"method": "full", "learning_rate": 5e-5}, {"method": "lora", "rank": 8, "learning_rate": 4e-4}]
RANK, VERA_RANK = Lora.axis, Vera.axis


def say(
    root: Path, seeds: int = 5, quality: Mapping[str, float] | None = None, methods: Any = TWO, **options: Any
) -> tuple[Analysis, Answer]:
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": list(range(seeds)), "methods": methods}
    store = make_study_directory(root / "s", study, quality=quality or {"full": 1.0, "lora": 1.0}, **options)
    (analysis,) = analyse(read([store.root]))
    return analysis, answer(analysis)


def kinds(found: Answer) -> list[str]:
    return [point.kind for point in found.points]


def point_of(found: Answer, kind: str) -> str:
    (text,) = [point.text for point in found.points if point.kind == kind]
    return text


def everything(found: Answer) -> str:
    return "\n".join([found.headline, *(point.text for point in found.points), *found.notes])


def rounded_up(seeds: int) -> int:
    """To two digits."""
    unit = 10 ** (len(str(seeds)) - 2)
    return math.ceil(seeds / unit) * unit


def scattered(mean: float, step: float) -> Callable[[Run], float]:
    """Scores with the same mean, whenever seeds are a multiple of five; the two methods' seeds scatter differently."""
    return lambda run: mean + step * (run.seed * (2 if run.method.method == "full" else 1) % 5 - 2)


# Which is best


def test_a_clear_winner_is_called_best_with_its_interval(tmp_path: Path) -> None:
    analysis, found = say(tmp_path, quality={"full": 1.0, "lora": 0.5})
    best = analysis.ranked[0].primary.best
    assert found.decided
    assert found.headline == (
        f"CoLA, MCC: full fine-tuning is best, {best.mean:.3f} (sd {best.deviation:.3f}, 5 seeds); it is better than "
        "LoRA."
    )
    (comparison,) = analysis.verdict.comparisons
    assert comparison.verdict is Verdict.BETTER
    figures = f"(95 % interval {comparison.low:.3f} to {comparison.high:.3f}, p < 0.001)"
    assert point_of(found, "best") == f"Full fine-tuning is ahead of LoRA by {comparison.difference:.3f} {figures}."
    assert "open" not in kinds(found)


def test_without_kept_predictions_it_is_better_on_this_dev_set_alone(tmp_path: Path) -> None:
    _, found = say(tmp_path, quality={"full": 1.0, "lora": 0.5}, artifacts=False)
    assert found.decided
    assert "full fine-tuning has the highest mean, 0." in found.headline
    assert found.headline.endswith("; on this dev set it is better than LoRA.")
    assert " is best" not in everything(found)
    assert point_of(found, "best").startswith("With these dev examples, full fine-tuning is ahead of LoRA by 0.")
    assert any("Predictions on dev were not kept" in note for note in found.notes)


def test_within_noise_claims_nothing_and_says_what_would_decide_it(tmp_path: Path) -> None:
    analysis, found = say(tmp_path)
    assert found.decided
    assert found.headline.endswith(", 5 seeds); LoRA cannot be told from it.")
    assert "is best" not in everything(found)
    assert "best" not in kinds(found)
    (pair,) = analysis.verdict.comparisons
    assert pair.low is not None
    assert pair.high is not None
    text = point_of(found, "open")
    assert text.startswith(
        f"LoRA is {pair.difference:.3f} behind full fine-tuning, 95 % interval −{-pair.low:.3f} to {pair.high:.3f}; "
        "behind in 3 of 5 seeds. "
    )
    assert f"A true difference of {pair.detectable:.3f} would be found in 80 % of such studies. " in text
    # Of the 1,043 dev rows, the difference is not known to 0.01 with any number of seeds.
    assert pair.seeds_needed is None
    assert text.endswith(" For one of 0.01 a thousand seeds would not be enough with these dev examples.")


def test_seeds_that_all_point_one_way_are_told_though_they_decide_nothing(tmp_path: Path) -> None:
    def scores(run: Run) -> float:
        seed = 0.002 * run.seed
        return 0.61 + seed + 0.04 * (run.seed == 4) if run.method.method == "full" else 0.6 + seed

    analysis, found = say(tmp_path, scores=scores)
    assert analysis.verdict.comparisons[0].verdict is Verdict.WITHIN_NOISE
    assert found.headline.endswith("LoRA (though behind in 5 of 5 seeds) cannot be told from it.")
    assert "; behind in 5 of 5 seeds." in point_of(found, "open")


@pytest.mark.parametrize("seeds", [1, 3])
def test_few_seeds_get_no_verdict_and_a_number_to_go_on_with(tmp_path: Path, seeds: int) -> None:
    analysis, found = say(tmp_path, seeds=seeds, quality={"full": 1.0, "lora": 0.5})
    assert not found.decided
    assert found.headline.endswith(", but these are too few seeds for a verdict, which takes 5.")
    behind = f"{analysis.verdict.comparisons[0].difference:.3f} behind"
    assert point_of(found, "open") == (
        f"LoRA ({behind}). A verdict takes at least 5 seeds that trained; the fewest here are {seeds}. To add them: "
        f"`manytune extend {tmp_path / 's'} --seeds 5`."
    )
    assert kinds(found) == ["open"]
    for claim in ("p =", "p <", "interval", "better", "ahead", "Yes", "as good"):
        assert claim not in "".join([found.headline, *(point.text for point in found.points)]), claim


def test_several_methods_with_few_seeds_are_said_to_have_few_once(tmp_path: Path) -> None:
    analysis, found = say(tmp_path, seeds=2, quality={"full": 1, "lora": 0.93, "bitfit": 0.75}, methods=[
        *TWO, {"method": "bitfit", "learning_rate": [2e-4, 1e-3]},
    ])  # fmt: skip
    text = point_of(found, "open")
    first, *others = analysis.best_rows
    assert len(others) == 2
    for row in others:
        assert f"{row.name.title} ({(first.mean or 0) - (row.mean or 0):.3f} behind)" in text
    assert "the fewest here are 2." in text
    assert text.count("A verdict takes") == 1


def test_a_method_alone_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    analysis, found = say(tmp_path, methods=TWO[:1])
    assert not found.decided
    assert found.points == ()
    assert found.headline.endswith(" 5 seeds). No other method has a score, so there is nothing to compare it with.")
    assert analysis.extending(3) == f" To add them: `manytune extend {tmp_path / 's'} --seeds 8`."


def test_runs_that_are_to_come_are_counted_and_no_more_are_asked_for(tmp_path: Path) -> None:
    analysis, found = say(tmp_path, pending=["cola-lora"])
    assert "No other method has a score" in found.headline
    assert "5 of 10 planned runs have not ended: this is a report so far." in found.notes
    assert analysis.extending(3) == ""


@pytest.mark.parametrize(
    ("state", "said"), [("failed", "10 failed."), ("collapsed", "10 collapsed (predicting one constant).")]
)
def test_no_score_at_all_is_said(tmp_path: Path, state: str, said: str) -> None:
    _, found = say(tmp_path, states={"cola": state})
    assert found.headline == f"CoLA, MCC: all runs have ended and none has a score to compare: {said}"
    assert not found.decided
    assert found.points == ()
    assert found.notes[0].startswith(f"10 runs {state} (Full and LoRA)")


def test_nothing_that_has_ended_with_a_score_yet_is_said(tmp_path: Path) -> None:
    _, found = say(tmp_path, states={"cola-full": "failed"}, pending=["cola-lora"])
    assert found.headline == "CoLA, MCC: no run has finished with a score yet, so nothing can be said."


def test_there_are_four_points_at_most_each_of_another_kind_in_one_order(tmp_path: Path) -> None:
    """Four methods, one of each verdict: better than, fails, cannot be told from, below a baseline."""
    methods = [*GLUE_LIKE["methods"], {"method": "head", "learning_rate": 1e-3}]
    states = {"cola-bitfit-lr2e-4-s3": "collapsed", "cola-full-lr5e-5-s1": "failed"}
    quality = {"full": 1.0, "lora": 1.0, "bitfit": 0.75, "head": 0.2}
    _, found = say(
        tmp_path, 6, quality, methods, states=states, baselines={"cola": 0.3}, pending=["cola-head-lr1e-3-s5"]
    )
    assert kinds(found) == ["best", "as good", "fails", "open"]
    assert "Head-only training (0." in point_of(found, "best")
    assert ") does not beat TF-IDF with a linear model (0.300)." in point_of(found, "best")
    assert len(found.notes) >= 5


# What is as good


def test_an_equal_cheaper_method_is_recommended_where_many_seeds_show_that_it_is_as_good(tmp_path: Path) -> None:
    def scores(run: Run) -> float:
        return scattered(0.6005 if run.method.method == "full" else 0.6, 0.006)(run)

    analysis, found = say(tmp_path, seeds=20, scores=scores)
    assert analysis.verdict.recommended == "lora r=8, lr 4e-4"
    low = analysis.verdict.as_good["lora r=8, lr 4e-4"].low
    assert low is not None
    assert -0.01 < low < -0.0005
    assert point_of(found, "as good") == (
        f"Yes, within the margin of 0.01: LoRA, which trains 0.33 % of the parameters, is at most {-low:.3f} behind "
        "(95 %)."
    )
    assert found.headline.endswith("LoRA cannot be told from it.")


def test_of_several_that_are_as_good_the_cheapest_is_recommended_and_the_others_named(tmp_path: Path) -> None:
    methods = [TWO[0], {"method": "lora", "rank": [2, 8], "learning_rate": 4e-4}]
    analysis, found = say(tmp_path, 10, methods=methods, scores=scattered(0.6, 0.002))
    assert analysis.verdict.recommended == "lora r=2, lr 4e-4"
    text = point_of(found, "as good")
    assert text.startswith("Yes, within the margin of 0.01: LoRA r=2, which trains 0.08 % of the parameters, ")
    assert text.endswith(" So is LoRA r=8.")
    assert point_of(found, "open").endswith(" of such studies. For one of 0.01 these seeds are enough.")


def test_the_same_scatter_over_five_seeds_shows_nothing_and_how_many_would_is_said(tmp_path: Path) -> None:
    analysis, found = say(tmp_path, seeds=5, scores=scattered(0.6, 0.006))
    assert analysis.verdict.recommended is None
    text = point_of(found, "as good")
    good = analysis.verdict.as_good["lora r=8, lr 4e-4"]
    assert good.low is not None
    assert good.low < -0.01
    assert text == (
        f"Not shown. The nearest is LoRA, with 0.33 % of the parameters: 0.000 behind and could be "
        f"{-good.low:.3f} behind, beyond the margin of 0.01."
    )
    needed = max(good.seeds_needed or 0, analysis.verdict.comparisons[0].seeds_needed or 0)
    assert needed > 20
    assert f"For one of 0.01 it takes {rounded_up(needed)} seeds in all" in point_of(found, "open")
    assert not any(word in everything(found).lower() for word in ("cheapest", "yes", "recommend"))


def test_a_method_of_which_a_run_fails_is_as_good_but_not_recommended(tmp_path: Path) -> None:
    def scores(run: Run) -> float:
        if run.method.method == "lora" and run.seed == 3:
            return 0.01
        return scattered(0.602 if run.method.method == "full" else 0.6, 0.002)(run)

    analysis, found = say(tmp_path, seeds=20, scores=scores)
    assert analysis.verdict.as_good["lora r=8, lr 4e-4"].shown
    assert analysis.verdict.recommended is None
    assert point_of(found, "as good") == (
        "When it trains, within the margin of 0.01: LoRA. But some of these runs did not train."
    )
    assert not any(word in everything(found).lower() for word in ("cheapest", "yes", "recommend"))


def test_where_the_best_trains_fewest_parameters_nothing_cheaper_is_looked_for(tmp_path: Path) -> None:
    _, found = say(tmp_path, quality={"full": 0.5, "lora": 1.0})
    assert point_of(found, "as good") == "No configuration trains fewer parameters than LoRA."


# What to know of the figures


def test_what_is_left_out_is_counted_and_named(cola: Analysis, stsb: Analysis) -> None:
    notes = answer(cola).notes
    assert notes[0] == "1 run collapsed (BitFit lr 2e-4): left out of all means, named below."
    assert notes[1] == "1 run failed (LoRA r=256): left out of all means, named below."
    assert any("were pruned" in note for note in answer(stsb).notes)


def test_selection_on_dev_is_called_optimistic_and_train_split_is_not(tmp_path: Path) -> None:
    for place, (selection, optimistic) in enumerate((("dev", True), ("train-split", False))):
        _, found = say(tmp_path / str(place), changes={"selection": selection})
        assert any("optimistic" in note for note in found.notes) == optimistic


# By a hyper-parameter


def test_ranks_are_compared_each_at_its_own_best_rate(tmp_path: Path) -> None:
    """Rank 8 is best at 1e-3, rank 2 at 4e-4: at either rate alone they would compare otherwise."""
    means = {(2, 4e-4): 0.60, (2, 1e-3): 0.40, (8, 4e-4): 0.30, (8, 1e-3): 0.65}
    methods = [TWO[0], {"method": "lora", "rank": [2, 8], "learning_rate": [4e-4, 1e-3]}]

    def scores(run: Run) -> float:
        method = run.method
        mean = means[method.rank, method.learning_rate] if method.method == "lora" else 0.7
        return scattered(mean, 0.002)(run)

    analysis, _ = say(tmp_path, methods=methods, scores=scores)
    assert list(about_axis(RANK, analysis)) == [
        "By LoRA rank, each value at its best other settings: r=8 has the highest mean; better on this dev set than "
        "r=2 (0.050 behind)."
    ]
    assert list(about_axis(LEARNING_RATE, analysis)) == [
        "By learning rate of LoRA, each value at its best other settings: lr 1e-3 has the highest mean; better on this "
        "dev set than lr 4e-4 (0.050 behind)."
    ]


def test_doras_ranks_are_compared_beside_loras_and_veras_apart(tmp_path: Path) -> None:
    methods = [
        {"method": name, "rank": ranks, "learning_rate": 4e-4}
        for name, ranks in (("lora", [2, 8]), ("dora", [2, 8]), ("vera", [256, 1024]))
    ]
    analysis, _ = say(tmp_path, methods=methods)
    ranks, others = ([sweep.name for sweep in swept(analysis, axis)] for axis in (RANK, VERA_RANK))
    assert (ranks, others) == (["LoRA", "DoRA"], ["VeRA"])
    assert len(list(about_axis(RANK, analysis))) == 2
    (sentence,) = about_axis(VERA_RANK, analysis)
    assert sentence.startswith("By VeRA rank, each value")


def test_ranks_within_noise_and_with_few_seeds_are_said_to_be(tmp_path: Path) -> None:
    methods = [{"method": "lora", "rank": [2, 8], "learning_rate": 4e-4}]
    for seeds, said in ((5, "not told from r="), (3, "too few seeds for a verdict on r=")):
        analysis, _ = say(tmp_path / str(seeds), seeds, methods=methods)
        (sentence,) = about_axis(RANK, analysis)
        assert f" has the highest mean; {said}" in sentence


def test_a_single_value_has_nothing_said_of_it(tmp_path: Path) -> None:
    analysis, _ = say(tmp_path, seeds=2)
    assert list(about_axis(RANK, analysis)) == []
    assert list(about_axis(LEARNING_RATE, analysis)) == []
