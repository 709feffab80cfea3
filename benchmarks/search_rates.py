"""What pruning loses and spares, and how often the intervals of a search hold, by simulated searches.

    python benchmarks/search_rates.py --out docs/results/search-statistics.json [--studies 2000]

All goes through the public functions of `manytune.search` and `manytune.stats`. The logarithm of a trial's learning
rate is drawn evenly from -1 to 1; the score is 0.6 - 0.3 · (log(rate) - 0.2)², with noise of the seed (standard
deviation 0.01). A rung shows the score with so much more noise that the rank correlation is the one that is named.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy
from error_rates import Array, Cell, measured, write_cells

from manytune.config.search import Halving
from manytune.search.halving import SpaceHalving
from manytune.stats.budget import LEVEL, TrialFacts, best_of_n
from manytune.stats.tuning import near_best, octaves
from manytune.storage.record import RunState

PEAK, CENTRE, CURVATURE, NOISE = 0.6, 0.2, 0.3, 0.01
ROOM = 8  # trials that train at once
STEPS = 100  # of a trial
CORRELATIONS = (0.9, 0.7, 0.4)
COUNTS = (8, 24, 60)
NEAR = 0.01


def qualities(draw: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Rates and scores of trials, both of this shape."""
    rates = draw.uniform(-1, 1, shape)
    return rates, PEAK - CURVATURE * (rates - CENTRE) ** 2 + draw.normal(0, NOISE, shape)


@cache
def rung_noise(correlation: float, draws: int) -> float:
    """The standard deviation of a rung's noise that leaves this rank correlation with the final score, from `draws`."""
    draw = np.random.default_rng(0)
    _, scores = qualities(draw, (draws,))
    normal = draw.normal(size=scores.shape)

    def left(deviation: float) -> float:
        return float(scipy.stats.spearmanr(scores, scores + deviation * normal).statistic)

    return float(scipy.optimize.brentq(lambda deviation: left(deviation) - correlation, 0, 10))


@dataclass
class Searched:
    """What became of one search."""

    finals: Array  # [trials] what each would score at its end
    done: list[int]  # those that trained to their end
    steps: int
    off: bool  # whether pruning was switched off

    @property
    def found(self) -> float:
        """The best score that it found."""
        return float(self.finals[self.done].max())


def searched(seed: int, count: int, deviations: tuple[float, float], halving: Halving) -> Searched:
    """A search in a pack with room for 8: a trial that leaves makes room for the next, at the same tick.

    `deviations` are of the noise at a quarter and at a half of the steps.
    """
    draw = np.random.default_rng(seed)
    _, finals = qualities(draw, (count,))
    scores = dict(zip((0.25, 0.5), (finals[:, None] + draw.normal(0, deviations, (count, 2))).T, strict=True))
    steps = [*(round(share * STEPS) for share in halving.rungs), STEPS]
    space = SpaceHalving(halving, seed, "space")
    events = [(steps[0], 0, number) for number in range(min(ROOM, count))]  # (tick, rung, trial), a heap
    began, taken, done = len(events), 0, []
    while events:
        tick, rung, number = heapq.heappop(events)
        together = [number]
        while events and events[0][:2] == (tick, rung):
            together.append(heapq.heappop(events)[2])
        if rung < len(halving.rungs):
            shown = scores[halving.rungs[rung]]
            kept = space.decide(STEPS, steps[rung], {each: float(shown[each]) for each in together})
        else:
            kept = dict.fromkeys(together, False)
            done += together
            for each in together:
                space.ended(each, float(finals[each]))
        for each, stays in kept.items():
            if stays:
                heapq.heappush(events, (tick + steps[rung + 1] - steps[rung], rung + 1, each))
                continue
            taken += steps[rung]
            if began < count:
                heapq.heappush(events, (tick + steps[0], 0, began))
                began += 1
    return Searched(finals, done, taken, space.off is not None)


def pruning(studies: int) -> Iterator[Cell]:
    others = {
        "never switched off": Halving(least_correlation=-1),
        "every trial may be pruned": Halving(unpruned=0.0),
        "one rung, at 1/2": Halving(rungs=(0.5,)),
    }
    for count in (24, 60):
        for correlation in CORRELATIONS:
            # The rung at a half of the steps lies halfway between the correlation at a quarter and a perfect one.
            noise = rung_noise(correlation, 25 * studies), rung_noise((1 + correlation) / 2, 25 * studies)
            found = [searched(seed, count, noise, Halving()) for seed in range(studies)]
            every = ("best", "near", "alone", "saved", "off")
            yield from outcomes("pruning", f"{count} trials", correlation, found, every)
            for name, rule in others.items():
                found = [searched(seed, count, noise, rule) for seed in range(studies)]
                row = f"{name}, {count} trials"
                yield from outcomes("pruning by other rules", row, correlation, found, ("near", "saved"))


def outcomes(group: str, row: str, correlation: float, found: list[Searched], parts: tuple[str, ...]) -> Iterator[Cell]:
    """What became of searches by one rule."""
    column = f"rank correlation {correlation}"
    best, reached = (np.array(each) for each in zip(*((one.finals.max(), one.found) for one in found), strict=True))
    # Without pruning, as many steps are enough for the first few trials alone.
    alone = np.array([each.finals[: max(1, each.steps // STEPS)].max() for each in found])
    saved = np.array([1 - each.steps / (len(each.finals) * STEPS) for each in found])
    made = {
        "best": measured(group, f"{row}: the best one is found", column, reached == best),
        "near": measured(group, f"{row}: one within {NEAR} of it is found", column, reached >= best - NEAR),
        "alone": measured(group, f"{row}: the same without pruning, in as many steps", column, alone >= best - NEAR),
        "saved": mean_of(group, f"{row}: steps saved", column, saved),
        "off": measured(group, f"{row}: pruning is switched off", column, [each.off for each in found]),
    }
    yield from (made[part] for part in parts)


def mean_of(group: str, row: str, column: str, values: Array) -> Cell:
    """One cell: the mean of a part, with its standard error."""
    return {
        "group": group,
        "row": row,
        "column": column,
        "share": round(float(values.mean()), 5),
        "error": round(float(values.std(ddof=1)) / math.sqrt(len(values)), 5),
        "studies": len(values),
        "limit": None,
    }


SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "quadratic in log(rate)": lambda draw, shape: qualities(draw, shape)[1],
    "a third collapses": lambda draw, shape: np.where(draw.random(shape) < 1 / 3, 0.0, qualities(draw, shape)[1]),
    "few distinct scores": lambda draw, shape: qualities(draw, shape)[1].round(2),
    "heavy tail": lambda draw, shape: draw.exponential(0.05, shape),
}
"""How scores of trials are distributed."""


def best_scores(studies: int) -> Iterator[Cell]:
    for name, shape in SHAPES.items():
        many = np.sort(shape(np.random.default_rng(1), (500 * studies,)))
        for count in COUNTS:
            scores = shape(np.random.default_rng(count), (studies, count))
            found = [best_of_n(each) for each in scores]
            for n in (1, 4, 16):
                if n > count:
                    continue
                low, high, expected = (
                    np.array([getattr(each, part)[n - 1] for each in found]) for part in ("low", "high", "expected")
                )
                median = many[math.ceil(0.5 ** (1 / n) * len(many)) - 1]
                missed = (median < low) | (median > high)
                yield measured("median of the best", f"{name}, best of {n}", f"{count} trials", missed, LEVEL)
                ranks = np.arange(1, len(many) + 1) / len(many)
                true = float((many * np.diff(ranks**n, prepend=0)).sum())
                bias = (expected - true) / many.std()
                yield mean_of("expected best", f"{name}, best of {n}", f"{count} trials", bias)


def trials_of(rates: Array, scores: Array) -> list[TrialFacts]:
    return [
        TrialFacts(number, RunState.FINISHED, float(score), 1.0, 100, 100, True, True, {"learning_rate": 10.0**rate})
        for number, (rate, score) in enumerate(zip(rates, scores, strict=True))
    ]


def tuning(studies: int) -> Iterator[Cell]:
    _, scores = qualities(np.random.default_rng(1), (500 * studies,))
    for within in (0.01, 0.02, 0.05):
        # The octaves in which a trial of no noise comes within so much of the peak, the range ending at 1.
        ends = min(1.0, CENTRE + math.sqrt(within / CURVATURE)), CENTRE - math.sqrt(within / CURVATURE)
        wide = (ends[0] - ends[1]) * math.log2(10)
        for count in COUNTS:
            draw = np.random.default_rng(count)
            half = scores[: len(scores) // (count // 2) * (count // 2)].reshape(-1, count // 2).max(1)
            true = float((scores >= half.mean() - within).mean())
            missed, far, ratio = [], [], []
            for _ in range(studies):
                trials = trials_of(*qualities(draw, (count,)))
                part, band = near_best(trials, within), octaves(trials, within, 0.1, 10.0)
                assert part is not None
                assert band is not None
                missed.append(not part.low <= true <= part.high)
                far.append(not band.low <= wide <= band.high)
                ratio.append(band.value / wide - 1)
            row = f"within {within}"
            yield measured("share near the best", row, f"{count} trials", missed, LEVEL)
            yield measured("octaves", row, f"{count} trials", far)
            yield mean_of("octaves too many", row, f"{count} trials", np.array(ratio))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=2000)
    given = parser.parse_args()
    cells: list[Cell] = []
    for simulate in (pruning, best_scores, tuning):
        cells += simulate(given.studies)
        print(f"{simulate.__name__}: {len(cells)} cells", flush=True)
    write_cells(given.out, cells)


if __name__ == "__main__":
    main()
