from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import optuna
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from manytune.config.plan import EvaluationSteps
from manytune.config.search import Halving
from manytune.search.halving import SpaceHalving, foretells, goes_on, rung_steps, unpruned

EVERYBODY = Halving(unpruned=0.0)
SCORES = st.none() | st.integers(0, 12).map(lambda tenth: tenth / 10) | st.floats(-1, 1)
TOTAL = 100


def optuna_decides(trials: Sequence[tuple[float | None, ...]]) -> list[int]:
    """How many of the rungs at 25 and 50 steps each trial passes, one trial after the other."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=TOTAL // 4, reduction_factor=2)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    passed = []
    for scores in trials:
        trial = study.ask()
        for rung, score in enumerate(scores):
            trial.report(math.nan if score is None else score, TOTAL // 4 * 2**rung)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                passed.append(rung)
                break
        else:
            study.tell(trial, 0.0)
            passed.append(len(scores))
    return passed


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=12))
def test_trials_that_arrive_one_by_one_are_decided_as_by_optuna(
    trials: list[tuple[float | None, float | None]],
) -> None:
    space, passed = SpaceHalving(EVERYBODY, 0, "lora"), []
    for number, scores in enumerate(trials):
        kept = 0
        for step, score in zip((25, 50), scores, strict=True):
            if not space.decide(TOTAL, step, {number: score})[number]:
                break
            kept += 1
        passed.append(kept)
    assert passed == optuna_decides(trials)


@given(st.lists(SCORES, min_size=1, max_size=20), st.integers(2, 5), st.randoms(use_true_random=False))
def test_trials_that_arrive_together_are_compared_with_one_another(
    scores: list[float | None], factor: int, random: object
) -> None:
    space = SpaceHalving(Halving(unpruned=0.0, factor=factor), 0, "lora")
    kept = space.decide(TOTAL, 25, dict(enumerate(scores)))
    known = sorted((score for score in scores if score is not None), reverse=True)
    least = known[max(1, len(known) // factor) - 1] if known else math.inf
    assert kept == {number: score is not None and score >= least for number, score in enumerate(scores)}


def test_the_best_share_of_all_that_were_there_goes_on() -> None:
    space = SpaceHalving(EVERYBODY, 0, "lora")
    assert space.decide(TOTAL, 25, {0: 0.5, 1: 0.6}) == {0: False, 1: True}
    assert space.decide(TOTAL, 25, {2: 0.55, 3: 0.7}) == {2: False, 3: True}
    assert space.decide(TOTAL, 25, {4: 0.65}) == {4: True}
    # At another step, or of another length, a trial is compared with none of them.
    assert space.decide(TOTAL, 50, {3: 0.1}) == {3: True}
    assert space.decide(200, 25, {5: 0.1}) == {5: True}


def test_of_a_metric_whose_lower_scores_are_better_the_lower_go_on() -> None:
    space = SpaceHalving(EVERYBODY, 0, "lora", higher_is_better=False)
    assert space.decide(TOTAL, 25, {0: 0.5, 1: 0.6, 2: None, 3: math.nan}) == {0: True, 1: False, 2: False, 3: False}


def test_scores_that_are_no_number_do_not_raise_how_many_go_on() -> None:
    assert goes_on(0.5, [0.5], 2)
    space = SpaceHalving(EVERYBODY, 0, "lora")
    assert space.decide(TOTAL, 25, {0: 0.6, 1: 0.5, 2: None, 3: None}) == {0: True, 1: False, 2: False, 3: False}


def test_a_trial_chosen_beforehand_goes_on_and_counts_among_the_others() -> None:
    space = SpaceHalving(Halving(), 3, "lora")
    numbers = list(range(9))
    chosen = [number for number in numbers if space.unpruned(number)]
    kept = space.decide(TOTAL, 25, {number: 0.9 if number in chosen else 0.1 * number for number in numbers})
    assert len(chosen) == 3
    # Four of nine go on by their scores: the three of 0.9, and the best of the others.
    assert [number for number in numbers if kept[number]] == sorted({*chosen, max(set(numbers) - set(chosen))})
    bad = SpaceHalving(Halving(), 3, "lora").decide(TOTAL, 25, dict.fromkeys(numbers))
    assert [number for number in numbers if bad[number]] == chosen


@given(st.integers(0, 2**32 - 1), st.sampled_from(["lora", "full"]), st.integers(0, 50))
def test_of_every_three_trials_one_is_never_pruned(seed: int, space: str, block: int) -> None:
    assert sum(unpruned(seed, space, 3 * block + place, 1 / 3) for place in range(3)) == 1


@pytest.mark.parametrize(("share", "of_60"), [(0.0, 0), (0.1, 6), (0.2, 12), (0.33, 20), (0.5, 30), (0.75, 45)])
def test_other_shares_are_kept_too(share: float, of_60: int) -> None:
    assert sum(unpruned(7, "lora", number, share) for number in range(60)) == of_60


def test_the_choice_varies_with_seed_space_and_block() -> None:
    def places(seed: int, space: str) -> list[int]:
        return [number % 3 for number in range(300) if unpruned(seed, space, number, 1 / 3)]

    assert len({tuple(places(seed, space)) for seed in range(3) for space in ("lora", "full")}) == 6
    counts = np.bincount(places(0, "lora"))
    assert scipy.stats.chisquare(counts).pvalue > 0.001


@given(st.lists(st.tuples(SCORES, SCORES), min_size=5, max_size=30))
def test_the_rank_correlation_is_scipys(pairs: list[tuple[float | None, float | None]]) -> None:
    columns = list(zip(*pairs, strict=True))
    first, last = ([-9.0 if score is None else score for score in column] for column in columns)
    found = foretells(*columns)
    if len(set(first)) == 1 or len(set(last)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(first, last).statistic, abs=1e-12)


def test_four_trials_say_nothing_of_a_rung() -> None:
    assert foretells([1, 2, 3, 4], [1, 2, 3, 4]) is None
    with pytest.raises(ValueError, match="5 scores at a rung and 4 at the end"):
        foretells([1, 2, 3, 4, 5], [1, 2, 3, 4])


def ended_space(final: Sequence[float | None]) -> SpaceHalving:
    """A space whose unpruned trials scored 0, 1, 2, … at step 25 and `final` at the end; others ended well too."""
    space = SpaceHalving(Halving(), 3, "lora")
    chosen = [number for number in range(60) if space.unpruned(number)][: len(final)]
    space.decide(TOTAL, 25, {number: float(place) for place, number in enumerate(chosen)})
    for number, score in zip(chosen, final, strict=True):
        space.ended(number, score)
    return space


def test_a_space_prunes_no_more_where_a_rung_does_not_foretell_the_end() -> None:
    space = ended_space([0.5, 0.4, 0.3, 0.2, 0.1])
    assert space.off == "scores at step 25 of 100 foretell the end with a rank correlation of -1.00"
    assert space.correlations() == {(100, 25): -1.0}
    poor = {number: -1.0 for number in range(100, 103) if not space.unpruned(number)}
    assert all(space.decide(TOTAL, 25, poor).values())
    assert all(space.decide(TOTAL, 50, {100: 0.0, 101: 1.0}).values())

    for other in (ended_space([0.5, 0.4, 0.3, 0.2]), ended_space([0.1, 0.2, 0.3, 0.5, 0.4])):
        assert other.off is None
        assert not any(other.decide(TOTAL, 25, poor).values())


def test_a_trial_without_a_number_at_the_end_ranks_last() -> None:
    assert ended_space([None, 0.1, 0.2, 0.3, 0.4]).off is None
    assert ended_space([0.1, 0.2, 0.3, None, None]).off is not None


def test_trials_that_scores_kept_alive_say_nothing_of_a_rung() -> None:
    space = SpaceHalving(Halving(), 3, "lora")
    others = [number for number in range(30) if not space.unpruned(number)][:8]
    space.decide(TOTAL, 25, {number: 0.1 * place for place, number in enumerate(others)})
    for place, number in enumerate(others):
        space.ended(number, -0.1 * place)
    assert space.off is None
    assert list(space.correlations().values()) == [None]


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), max_size=12), st.data())
def test_a_search_that_goes_on_decides_as_before(ticks: list[list[float]], data: st.DataObject) -> None:
    def play(space: SpaceHalving, first: int, last: int) -> list[dict[int, bool]]:
        number, answers = 0, []
        for tick, scores in enumerate(ticks[:last]):
            arriving = {number + place: score for place, score in enumerate(scores)}
            number += len(scores)
            if tick >= first:
                answers.append(space.decide(TOTAL, 25, arriving))
                for trial, score in arriving.items():
                    space.ended(trial, (score * 7) % 1)
        return answers

    whole = SpaceHalving(Halving(), 5, "lora")
    answers = play(whole, 0, len(ticks))
    stopped = data.draw(st.integers(0, len(ticks)))
    back_to = data.draw(st.integers(0, stopped))  # the checkpoint is older than the journal
    again = SpaceHalving(Halving(), 5, "lora")
    play(again, 0, stopped)
    assert play(again, back_to, len(ticks)) == answers[back_to:]
    assert again == whole


def test_what_was_decided_before_stays_and_counts() -> None:
    space = SpaceHalving(EVERYBODY, 0, "lora", higher_is_better=False)
    space.restore(TOTAL, 25, {0: (0.5, True), 1: (0.4, False), 2: (None, True)})  # by a rule of another version
    assert space.decide(TOTAL, 25, {0: 0.5, 1: 0.4, 2: None}) == {0: True, 1: False, 2: True}
    assert space.decide(TOTAL, 25, {3: 0.45, 4: 0.3}) == {3: False, 4: True}


def test_rungs_are_evaluations_after_the_warm_up_and_an_epoch() -> None:
    by_epoch = EvaluationSteps(10, 100)
    assert rung_steps(Halving(), by_epoch, 100, warmup=6, epoch_steps=10) == (30, 50)
    assert rung_steps(Halving(), by_epoch, 100, warmup=0, epoch_steps=10) == (30, 50)
    assert rung_steps(Halving(), EvaluationSteps(5, 100), 100, warmup=6, epoch_steps=10) == (25, 50)
    assert rung_steps(Halving(), by_epoch, 100, warmup=15, epoch_steps=20) == (40, 50)
    assert rung_steps(Halving(), by_epoch, 100, warmup=35, epoch_steps=10) == (50,)  # two rungs in one
    assert rung_steps(Halving(), by_epoch, 100, warmup=85, epoch_steps=10) == ()  # only the last step is left
    assert rung_steps(Halving(), EvaluationSteps(1000, 100), 100, warmup=0, epoch_steps=10) == ()
    assert rung_steps(Halving(rungs=(0.1,)), EvaluationSteps(1, 30), 30, warmup=0, epoch_steps=1) == (3,)
    assert rung_steps(Halving(rungs=(0.5,)), EvaluationSteps(7, 10**9), 10**9, 0, 1) == (500000004,)


@given(
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True).map(sorted),
    *(st.integers(1, 40), st.integers(1, 120), st.integers(0, 30), st.integers(1, 30)),
)
def test_rungs_are_the_first_evaluations_that_count(
    shares: list[float], every: int, total: int, warmup: int, epoch: int
) -> None:
    evaluations = EvaluationSteps(every, total)
    found = rung_steps(Halving(rungs=tuple(shares)), evaluations, total, warmup, epoch)
    listed = [evaluations[index] for index in range(len(evaluations))]
    due = [
        next((step for step in listed if step >= share * total - 1e-6 and step >= warmup + epoch), total)
        for share in shares
    ]
    assert found == tuple(sorted({step for step in due if step < total}))


def test_of_equal_scores_the_lower_loss_is_the_better() -> None:
    """Before trials take off, all have the same score; without losses, all of them go on."""
    halving = Halving(unpruned=0.0)
    scores, losses = dict.fromkeys(range(4), 0.0), {0: 0.7, 1: 0.5, 2: None, 3: 0.6}
    assert SpaceHalving(halving, 0, "s").decide(100, 30, scores) == dict.fromkeys(range(4), True)
    space = SpaceHalving(halving, 0, "s")
    decided = space.decide(100, 30, scores, losses)
    assert decided == {0: False, 1: True, 2: False, 3: True}
    again = SpaceHalving(halving, 0, "s")
    again.restore(100, 30, {number: (scores[number], kept) for number, kept in decided.items()}, losses)
    more = {4: 0.0, 5: 0.1, 6: 0.0}, {4: 0.55, 5: 0.9, 6: 0.65}
    assert again.decide(100, 30, *more) == space.decide(100, 30, *more) == {4: True, 5: True, 6: False}
