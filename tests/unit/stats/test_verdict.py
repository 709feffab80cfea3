from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from manytune.stats.claims import LEVEL, Comparison, Configuration, Judging, TaskVerdict, Verdict
from manytune.stats.differences import differences, means
from manytune.stats.looks import SeedPlan
from manytune.stats.selection import best_of, best_set, holm
from manytune.stats.verdict import judge, training_rate


def make(method: str, scores: Any, label: str | None = None, **more: Any) -> Configuration:
    return Configuration(method, label or method, dict(enumerate(scores)), **more)


def drawn(scores: Sequence[float], spread: float, seed: int = 0) -> np.ndarray:
    """[draws, seeds] scores in resampled dev sets that move all seeds alike."""
    return np.asarray(scores) + np.random.default_rng(seed).normal(0, spread, (400, 1))


def compared(*configurations: Configuration, judging: Judging | None = None) -> tuple[Comparison, ...]:
    return judge(configurations, judging).comparisons


FULL = [0.64, 0.63, 0.65, 0.62, 0.64, 0.63]
CLOSE = [0.63, 0.64, 0.64, 0.63, 0.63, 0.64]
FAR = [0.55, 0.53, 0.56, 0.54, 0.53, 0.55]


def test_two_configurations_alone_are_compared_by_welchs_test() -> None:
    (found,) = compared(make("lora", FAR), make("full", FULL))
    assert (found.first, found.second) == ("full", "lora")
    test = scipy_stats.ttest_ind(FULL, FAR, equal_var=False)
    interval = test.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, test.pvalue), rel=1e-9)
    assert found.p_holm == found.p
    assert found.difference == pytest.approx(np.mean(FULL) - np.mean(FAR))
    assert (found.seeds, found.ahead, found.shared) == ((6, 6), 6, 6)


def test_without_kept_predictions_it_is_better_on_this_dev_set_alone() -> None:
    (found,) = compared(make("lora", FAR), make("full", FULL))
    assert found.verdict is Verdict.ON_THIS_DEV_SET
    assert found.examples_low is None


def test_what_may_be_chance_of_the_dev_set_is_called_so() -> None:
    for spread, verdict in ((0.2, Verdict.ON_THIS_DEV_SET), (0.001, Verdict.BETTER)):
        draws = drawn(FULL, spread), drawn(FAR, spread, 1)
        (found,) = compared(
            make("full", FULL, draws=draws[0]), make("lora", FAR, draws=draws[1]), judging=Judging(floor=0)
        )
        assert found.verdict is verdict
        assert found.examples_low is not None
        assert (found.examples_low > 0) == (verdict is Verdict.BETTER)
        assert found.examples_low < (found.low or 0)


def sure(method: str, scores: Sequence[float], **more: Any) -> Configuration:
    """A configuration whose dev set says what any other would say."""
    return make(method, scores, draws=drawn(scores, 1e-6), **more)


def test_a_method_none_of_whose_runs_failed_is_better_without_a_condition() -> None:
    for floor in (0.0, None):
        (found,) = compared(sure("lora", FAR), sure("full", FULL), judging=Judging(floor=floor))
        assert found.verdict is Verdict.BETTER
        assert found.rates[0].high == 1.0
        assert found.rates[0].low == pytest.approx(0.541, abs=1e-3)  # of 6 runs none failed: 46 % may


def test_a_method_that_fails_is_better_only_when_it_trains() -> None:
    failing = sure("full", FULL * 4, failures={100 + seed: 0.0 for seed in range(8)})
    found = judge([sure("lora", FAR * 6), failing], Judging(floor=0.0))
    assert found.comparisons[0].verdict is Verdict.WHEN_IT_TRAINS
    assert found.rates["full"].failed == 8
    assert found.comparisons[0].rates_p == pytest.approx(scipy_stats.fisher_exact([[24, 8], [36, 0]]).pvalue)
    assert found.leader == "full"
    # Failures of the other one only help the first.
    failing = sure("lora", FAR, failures={9: 0.0})
    assert compared(failing, sure("full", FULL), judging=Judging(floor=0.0))[0].verdict is Verdict.BETTER


def test_failures_that_cost_little_do_not_undo_a_difference() -> None:
    """A run that failed without a score counts as a constant does: where that is hardly worse, it matters little."""
    crashed = sure("full", FULL * 6, failures={99: None})
    for floor, verdict in ((0.6, Verdict.BETTER), (0.0, Verdict.WHEN_IT_TRAINS), (None, Verdict.WHEN_IT_TRAINS)):
        (found,) = compared(sure("lora", FAR * 6), crashed, judging=Judging(floor=floor))
        assert found.verdict is verdict
        low = training_rate(36, 37).low
        if floor is None:
            assert found.overall_low is None
        else:
            assert found.overall_low == pytest.approx((found.low or 0) - (1 - low) * (np.mean(FULL) - floor))


def test_the_rate_of_training_is_clopper_and_pearsons() -> None:
    for trained, runs in ((5, 5), (0, 4), (3, 10), (19, 20)):
        theirs = scipy_stats.binomtest(trained, runs).proportion_ci(0.95, "exact")
        found = training_rate(trained, runs)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_a_small_difference_is_noise() -> None:
    (found,) = compared(make("lora", CLOSE), make("full", FULL))
    assert found.verdict is Verdict.WITHIN_NOISE
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high
    assert found.detectable is not None
    assert found.detectable > abs(found.difference)


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_below_five_seeds_there_is_no_verdict_however_clear_it_looks(seeds: int) -> None:
    found = judge([make("lora", FAR[:seeds], parameters=1), make("full", FULL[:seeds], parameters=2)])
    assert found.comparisons[0].verdict is Verdict.TOO_FEW_SEEDS
    assert not found.decided
    assert [each.may_be_best for each in found.standings.values()] == [None] * 2
    assert found.recommended is None


def test_seeds_need_not_be_shared_and_the_ranking_agrees_with_the_difference() -> None:
    apart = Configuration("lora", "lora", {seed + 10: score for seed, score in enumerate(FAR)})
    (found,) = compared(make("full", FULL), apart)
    assert (found.seeds, found.shared) == ((6, 6), 0)
    draw = np.random.default_rng(0)
    for _ in range(50):
        tables = draw.normal(size=(2, 8))
        methods = [
            Configuration(name, name, {s: x for s, x in enumerate(row) if draw.random() < 0.7} or {0: row[0]})
            for name, row in zip("ab", tables, strict=True)
        ]
        verdict = judge(methods)
        assert verdict.comparisons[0].difference >= 0
        assert verdict.leader == verdict.comparisons[0].first_label


def test_the_choice_among_configurations_is_paid_for() -> None:
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 0.01, (5, 6))
    lora = [make("lora", noise[at] + 0.6 - 0.1 * at, f"lora {at}") for at in range(4)]
    (found,) = compared(make("full", noise[4] + 0.55), *lora)
    assert found.choices == (4, 1)
    assert (found.first_label, found.second_label) == ("lora 0", "full")
    one_sided = differences(means([[*one.scores.values()] for one in lora]), means([noise[4] + 0.55])).greater_p()
    assert found.p == pytest.approx(2 * 4 * one_sided[0, 0])


def test_pairs_of_methods_are_corrected_together() -> None:
    found = compared(make("full", FULL), make("lora", CLOSE), make("bitfit", FAR))
    assert [(each.first, each.second) for each in found] == [("full", "lora"), ("full", "bitfit"), ("lora", "bitfit")]
    np.testing.assert_allclose([each.p_holm for each in found], holm([each.p for each in found]))


def test_an_interval_ends_where_the_best_possible_score_does() -> None:
    steady = make("lora", [0.9, 0.901, 0.899, 0.9, 0.9])
    wild = make("full", [0.99, 0.95, 0.9, 1.0, 0.98])
    (free,) = compared(wild, steady)
    (found,) = compared(wild, steady, judging=Judging(ceiling=1.0))
    least = 0.9 - scipy_stats.t.ppf(0.999, 4) * scipy_stats.sem(list(steady.scores.values()))
    assert found.high == pytest.approx(1.0 - least)
    assert found.difference < found.high < (free.high or 0)


def test_the_end_of_an_interval_allows_for_what_is_not_known_of_the_other() -> None:
    """Near the best possible score, the true difference may be larger than what the other's mean leaves."""
    draw, missed, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        first, second = draw.normal(0.999, 0.0003, 10), draw.normal(0.93, 0.03, 10)
        (found,) = compared(make("full", first), make("lora", second), judging=Judging(ceiling=1.0))
        high = found.high if found.first == "full" else -(found.low or 0)
        missed += high is not None and high < 0.069
    assert missed / trials <= 0.025 + 3 * (0.025 * 0.975 / trials) ** 0.5


def test_who_may_be_the_best() -> None:
    found = judge([make("full", FULL), make("lora", CLOSE), make("bitfit", FAR), make("head", [])])
    assert {label: each.may_be_best for label, each in found.standings.items()} == {
        "full": True,
        "lora": True,
        "bitfit": False,
    }


def test_there_is_nothing_to_compare_of_one_method_or_none() -> None:
    assert judge([make("full", FULL), make("lora", [])]).comparisons == ()
    assert judge([]) == judge([make("lora", [])]) == TaskVerdict(Judging(), LEVEL, None)
    failed = judge([make("lora", [], failures={0: None, 1: 0.0})])
    assert (failed.leader, failed.rates["lora"].failed) == (None, 2)


def cheap_and_dear(cheap: Sequence[float], dear: Sequence[float] = FULL, **more: Any) -> TaskVerdict:
    return judge(
        [make("full", dear, parameters=100), make("lora", cheap, parameters=1, **more)], Judging(margin=0.02, floor=0)
    )


def test_a_cheaper_configuration_is_recommended_only_where_it_is_shown_to_be_as_good() -> None:
    assert cheap_and_dear(CLOSE).recommended == "lora"
    found = cheap_and_dear(FAR)
    assert found.recommended is None
    unknown = cheap_and_dear([0.55, 0.65, 0.7, 0.68, 0.6, 0.61])  # the mean is as good, but nothing is shown
    assert unknown.recommended is None
    lora = unknown.as_good["lora"]
    assert lora.low is not None
    assert lora.low < -0.02
    assert lora.seeds_needed is not None
    assert lora.seeds_needed > 6


def test_what_fails_is_not_recommended() -> None:
    assert cheap_and_dear(CLOSE, failures={9: 0.0}).recommended is None
    assert cheap_and_dear(CLOSE, failures={9: 0.0}).as_good["lora"].shown


def test_the_lower_bound_is_welchs() -> None:
    found = cheap_and_dear(CLOSE).as_good["lora"]
    interval = scipy_stats.ttest_ind(CLOSE, FULL, equal_var=False).confidence_interval(0.9)
    assert found.low == pytest.approx(interval.low)


def test_a_study_that_grew_without_a_plan_pays_for_it() -> None:
    (once,) = compared(make("lora", FAR[:5]), make("full", FULL[:5]))
    (grown,) = compared(make("lora", FAR[:5]), make("full", FULL[:5]), judging=Judging(seeds=SeedPlan(grown=True)))
    assert once.p < 1e-3 < grown.p
    (planned,) = compared(make("lora", FAR), make("full", FULL), judging=Judging(seeds=SeedPlan(looks=(5, 10))))
    assert planned.seeds == (5, 5)  # the sixth seed waits for the next look


# By simulation: what is claimed of nothing, and what is found of something. Bounds are three Monte-Carlo standard
# errors wide.

TRIALS = 4000
NOMINAL = LEVEL + 3 * (LEVEL * (1 - LEVEL) / TRIALS) ** 0.5
NOISES = {
    "normal": lambda draw, shape: draw.normal(0, 1, shape),
    "heavy tails": lambda draw, shape: draw.standard_t(2.5, shape),
    "a shared part a seed": lambda draw, shape: (
        draw.normal(0, 1, shape) + 2 * draw.normal(0, 1, (*shape[:-2], 1, shape[-1]))
    ),
    "ties": lambda draw, shape: draw.normal(0, 1, shape).round(),
}


def trials(noise: str, ways: tuple[int, ...], seeds: int, trials: int = TRIALS) -> list[np.ndarray]:
    """Scores [trials, ways, seeds] of methods that are all equally good."""
    every = NOISES[noise](np.random.default_rng(seeds), (trials, sum(ways), seeds))
    return np.split(every, np.cumsum(ways)[:-1], axis=1)


def best(a: np.ndarray, b: np.ndarray) -> Any:
    return best_of(differences(means(a), means(b)), LEVEL)


@pytest.mark.parametrize("ways", [(1, 1), (4, 1), (4, 4)])
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("noise", NOISES)
def test_without_a_difference_none_is_claimed_more_often_than_the_level(
    noise: str, seeds: int, ways: tuple[int, int]
) -> None:
    found = best(*trials(noise, ways, seeds))
    assert found.p.shape == (TRIALS,)
    assert (found.p < LEVEL).mean() <= NOMINAL
    assert ((found.low > 0) | (found.high < 0)).mean() <= NOMINAL


@pytest.mark.parametrize("ways", [2, 4])
@pytest.mark.parametrize("deviation", [2.0, 3.0, 5.0])
def test_a_configuration_that_scatters_more_than_its_family_claims_no_more(deviation: float, ways: int) -> None:
    a, b = trials("normal", (ways, ways), 5, trials=20_000)
    a[:, 0] *= deviation
    for group in (a, b):
        group[:, 1:] -= 50  # the others are out of the race, and lend their variance alone
    found = best(a, b)
    assert (found.p < LEVEL).mean() <= LEVEL + 3 * (LEVEL * (1 - LEVEL) / 20_000) ** 0.5


@pytest.mark.parametrize("seeds", [5, 10])
def test_all_pairs_of_four_methods_together_claim_no_more_than_the_level(seeds: int) -> None:
    methods = trials("normal", (1, 2, 4, 1), seeds)
    p = np.stack([best(a, b).p for a, b in itertools.combinations(methods, 2)], axis=-1)
    assert (holm(p) < LEVEL).any(-1).mean() <= NOMINAL


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_test_would_notice_a_choice_that_is_not_paid_for(seeds: int) -> None:
    """Taking the best of four at its face value claims too much: the simulation is able to see it."""
    a, b = trials("normal", (4, 1), seeds)
    chosen = np.take_along_axis(a, a.mean(-1).argmax(1)[:, None, None], axis=1)
    assert (best(chosen, b).p < LEVEL).mean() > NOMINAL


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_set_of_the_best_holds_the_best(seeds: int) -> None:
    """In at least 95 % of studies, also where others are as good."""
    draw = np.random.default_rng(0)
    tables = means(draw.normal(0, 1, (2000, 6, seeds)) + np.array([0, 0, 0, -0.5, -1, -3])[:, None])
    p = best_set(differences(tables, tables))
    assert (p[:, 0] <= LEVEL).mean() <= LEVEL + 3 * (LEVEL * (1 - LEVEL) / 2000) ** 0.5
    assert (p[:, 5] <= LEVEL).mean() > 0.8


POWER = {
    # (seeds, configurations of each method, steps between those): found, of a difference of 2 standard deviations of
    # one run's score. Those after the best are worse by a step each.
    (5, 1, 0.0): 0.77,
    (5, 2, 1.5): 0.69,
    (5, 4, 1.5): 0.65,
    (5, 16, 0.4): 0.58,
    (10, 1, 0.0): 0.99,
}


@pytest.mark.parametrize(("seeds", "ways", "step"), POWER)
def test_a_true_difference_is_found_as_often_as_the_notes_say(seeds: int, ways: int, step: float) -> None:
    a, b = trials("normal", (ways, ways), seeds, trials=2000)
    worse = -step * np.arange(ways)[:, None]
    found = best(a + worse + 2, b + worse)
    assert ((found.p < LEVEL) & (found.low > 0)).mean() == pytest.approx(POWER[seeds, ways, step], abs=0.04)


FEW = 400
"""Studies that are judged whole."""


def share(count: int) -> float:
    return count / FEW


def upper(level: float) -> float:
    return level + 3 * (level * (1 - level) / FEW) ** 0.5


@pytest.mark.parametrize(("seeds", "equal"), [(5, 0.41), (10, 0.69), (20, 0.93)])
def test_as_good_is_said_of_what_is_worse_by_the_margin_at_the_level_alone(seeds: int, equal: float) -> None:
    draw = np.random.default_rng(seeds)
    claims = {0.0: 0, 1.0: 0}
    for worse in claims:
        for _ in range(FEW):
            full = make("full", draw.normal(worse, 1, seeds), parameters=2)
            found = judge([full, make("lora", draw.normal(0, 1, seeds), parameters=1)], Judging(margin=1.0))
            claims[worse] += found.recommended == "lora"
    assert share(claims[1.0]) <= upper(LEVEL)
    assert share(claims[0.0]) == pytest.approx(equal, abs=3 * (0.25 / FEW) ** 0.5)


@pytest.mark.parametrize("seeds", [5, 10, 20])
def test_a_method_that_sometimes_fails_is_not_called_better_of_all_runs(seeds: int) -> None:
    """Over all runs both are equally good; when it trains, the one that fails in 20 % is better, and that is said.

    It is called better where no failure was seen: of 5 runs that is one study in three, of 20 one in a hundred.
    """
    draw = np.random.default_rng(seeds)
    better = when_it_trains = unseen = 0
    for _ in range(FEW):
        failed = draw.random(seeds) < 0.2
        scores = draw.normal(10, 1, seeds)[~failed]
        often = sure("full", scores, failures={100 + seed: 0.0 for seed in range(int(failed.sum()))})
        found = compared(often, sure("lora", draw.normal(8, 1, seeds)), judging=Judging(floor=0.0))
        verdicts = [each.verdict for each in found if each.first == "full"]
        unseen += not failed.any()
        better += verdicts == [Verdict.BETTER]
        assert verdicts != [Verdict.BETTER] or not failed.any()
        when_it_trains += verdicts == [Verdict.WHEN_IT_TRAINS]
    assert better <= unseen
    assert share(unseen) <= upper(0.8**seeds)
    # Where one of 5 runs failed, the 4 that are left are too few.
    assert share(when_it_trains) == 0 if seeds == 5 else share(when_it_trains) > 0.8


def test_a_method_that_fails_and_is_little_better_otherwise_is_seldom_called_better() -> None:
    """It fails in 20 % of runs, and is one standard deviation better in the others: far worse over all."""
    draw = np.random.default_rng(10)
    better = 0
    for _ in range(FEW):
        failed = draw.random(10) < 0.2
        often = sure(
            "full", draw.normal(10, 1, 10)[~failed], failures={100 + at: 0.0 for at in range(int(failed.sum()))}
        )
        found = compared(often, sure("lora", draw.normal(9, 1, 10)), judging=Judging(floor=0.0))
        better += [each.verdict for each in found if each.first == "full"] == [Verdict.BETTER]
    assert share(better) <= upper(0.06)


@pytest.mark.parametrize("seeds", [5, 10])
def test_new_seeds_and_new_examples_together_hold_the_level(seeds: int) -> None:
    draw = np.random.default_rng(seeds)
    examples = 60
    for by_seed, by_example in ((1.0, 0.3), (0.3, 1.0), (0.5, 0.5)):
        claimed = 0
        for _ in range(FEW):
            made = []
            for name in ("full", "lora"):
                each = (
                    draw.normal(0, by_seed, (seeds, 1))
                    + draw.normal(0, by_example * examples**0.5, examples)
                    + draw.normal(0, 0.3 * examples**0.5, (seeds, examples))
                )
                weights = draw.multinomial(examples, np.full(examples, 1 / examples), size=100) / examples
                made.append(make(name, each.mean(1), draws=weights @ each.T))
            (found,) = compared(*made)
            claimed += (found.examples_p or 1) < LEVEL
        assert share(claimed) <= upper(0.06)


def test_as_good_needs_new_examples_too_where_they_are_known() -> None:
    margin = Judging(margin=0.02)
    for spread, shown in ((1e-6, True), (0.1, False)):
        full = make("full", FULL, parameters=2, draws=drawn(FULL, spread))
        lora = make("lora", CLOSE, parameters=1, draws=drawn(CLOSE, spread, 1))
        found = judge([full, lora], margin)
        assert found.as_good["lora"].shown is shown
        assert found.recommended == ("lora" if shown else None)
        # No number of seeds tells what another dev set would say.
        assert (found.as_good["lora"].seeds_needed is None) is not shown


def test_what_is_shown_to_be_as_good_is_never_said_to_be_further_behind_than_the_margin() -> None:
    draw, shown = np.random.default_rng(3), 0
    for _ in range(60):
        made = [make(name, draw.normal(0.6, 0.01, 6), parameters=cost) for cost, name in enumerate("abcd")]
        for each in judge(made, Judging(margin=0.013)).as_good.values():
            shown += each.shown
            assert not each.shown or (each.low or 0) >= -0.013
    assert shown > 10


def test_of_equal_means_the_leader_is_of_the_first_method() -> None:
    found = judge([make("full", FAR), make("lora", FULL), make("full", FULL, "full 2")])
    assert found.leader == found.comparisons[0].first_label == "full 2"
    assert found.against_leader[0].second == "lora"


def test_nothing_dearer_than_the_leader_is_recommended() -> None:
    leader = make("lora", FULL, parameters=1, failures={9: 0.0})
    found = judge(
        [make("full", [score - 0.001 for score in CLOSE], parameters=2), leader, make("head", FAR, parameters=3)],
        Judging(margin=0.05),
    )
    assert found.leader == "lora"
    assert found.as_good["full"].shown
    assert found.recommended is None


def test_failures_without_a_score_count_as_a_constant_beside_others() -> None:
    failing = make("full", FULL, failures={7: 0.8, 8: None})
    (found,) = compared(make("lora", FAR), failing, judging=Judging(floor=0.0))
    assert found.overall_low is not None
    assert found.overall_low < (found.low or 0) - 0.1


def test_a_grown_study_finds_less() -> None:
    once, grown = (
        compared(make("lora", FAR), make("full", CLOSE), judging=Judging(seeds=SeedPlan(grown=each)))[0].detectable
        for each in (False, True)
    )
    assert once is not None
    assert grown is not None
    assert grown > 1.4 * once
