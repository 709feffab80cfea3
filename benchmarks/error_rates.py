"""How often the report's claims are wrong, and how often they find what is there, by simulated studies.

    python benchmarks/error_rates.py --out docs/results/statistics.json [--studies 4000]

All goes through the public functions of `manytune.stats`. Scores are in standard deviations of one run's score. What
`judge` alone can say (failures, examples) is simulated with a tenth of the studies.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from manytune.stats.claims import LEVEL, Configuration, Judging, Verdict
from manytune.stats.design import Design
from manytune.stats.differences import differences, means
from manytune.stats.looks import LOOK_LEVELS, MINIMUM_SEEDS
from manytune.stats.selection import best_of, best_set
from manytune.stats.verdict import judge
from manytune.utils import hardware
from manytune.utils.version import __version__

Array = np.ndarray[Any, Any]
Cell = dict[str, Any]

SEEDS = (5, 10, 20)
NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda draw, shape: draw.normal(0, 1, shape),
    "heavy tails (t, 3 degrees)": lambda draw, shape: draw.standard_t(3, shape) / math.sqrt(3),
    "a shared part a seed": lambda draw, shape: (
        draw.normal(0, 1, shape) + 2 * draw.normal(0, 1, (*shape[:-2], 1, shape[-1]))
    ),
    "ties (whole numbers)": lambda draw, shape: draw.normal(0, 1, shape).round(),
}


def measured(group: str, row: str, column: str, claimed: Any, limit: float | None = None) -> Cell:
    """One cell: the share of studies in which something is claimed, with its Monte-Carlo standard error."""
    hits = np.asarray(claimed, dtype=bool)
    share = float(hits.mean())
    error = math.sqrt(max(share * (1 - share), 1 / len(hits)) / len(hits))
    return {
        "group": group,
        "row": row,
        "column": column,
        "share": round(share, 5),
        "error": round(error, 5),
        "studies": len(hits),
        "limit": limit,
    }


def drawn(noise: str, ways: int, seeds: int, studies: int) -> tuple[Array, Array]:
    """Scores [studies, ways, seeds] of two methods that are equally good."""
    every = NOISES[noise](np.random.default_rng(seeds), (studies, 2 * ways, seeds))
    return every[:, :ways], every[:, ways:]


def better(a: Array, b: Array, *, anytime: bool = False, level: float = LEVEL) -> tuple[Array, Array]:
    """[studies] whether a is called better, and whether b is."""
    found = best_of(differences(means(a), means(b), anytime=anytime), level)
    claimed = found.p < level
    return claimed & (found.low > 0), claimed & (found.high < 0)


def equal_methods(studies: int) -> Iterator[Cell]:
    for noise in NOISES:
        for ways in (1, 4, 16):
            for seeds in SEEDS:
                some = studies if ways < 16 else studies // 4
                first, second = better(*drawn(noise, ways, seeds, some))
                yield measured("false better", f"{noise}, {ways} against {ways}", f"{seeds}", first | second, LEVEL)


def power(studies: int) -> Iterator[Cell]:
    for ways in (1, 4):
        for size in (1.0, 1.5, 2.0):
            for seeds in SEEDS:
                a, b = drawn("normal", ways, seeds, studies)
                worse = -1.5 * np.arange(ways)[:, None]
                found, _ = better(a + size + worse, b + worse)
                yield measured("better found", f"difference {size}, {ways} against {ways}", f"{seeds}", found)


def as_good(studies: int) -> Iterator[Cell]:
    for row, shift, limit in (("worse by the margin", 1.0, LEVEL), ("equally good", 0.0, None)):
        for seeds in SEEDS:
            cheap, dear = drawn("normal", 1, seeds, studies)
            found = differences(means(cheap), means(dear + shift))
            p = replace(found, mean=found.mean + 1.0).greater_p()[:, 0, 0]
            yield measured("as good within 1 sd", row, f"{seeds}", p < LEVEL, limit)


def may_be_best(studies: int) -> Iterator[Cell]:
    for seeds in SEEDS:
        draw = np.random.default_rng(seeds)
        lower = np.array([0, 0, 0, 0.5, 1, 3])[:, None]
        tables = means(draw.normal(0, 1, (studies, 6, seeds)) - lower)
        p = best_set(differences(tables, tables))
        yield measured("may be the best", "one of the three best is left out", f"{seeds}", p[:, 0] <= LEVEL, LEVEL)
        yield measured("may be the best", "one that is worse by 3 is left out", f"{seeds}", p[:, 5] <= LEVEL)


def wide(studies: int) -> Iterator[Cell]:
    for ways in (1, 2, 4):
        for seeds in SEEDS:
            a, b = drawn("normal", ways, seeds, studies)
            a[:, 0] *= 5
            for group in (a, b):
                group[:, 1:] -= 50  # out of the race, they lend their variance alone
            first, second = better(a, b)
            yield measured("one scatters five times", f"{ways} against {ways}", f"{seeds}", first | second, LEVEL)


def looks(studies: int) -> Iterator[Cell]:
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(2, studies, 1, 20))

    def claimed(at: tuple[int, ...], levels: tuple[float, ...], anytime: bool, shift: float = 0.0) -> Array:
        hits = np.zeros(studies, dtype=bool)
        for look, level in zip(at, levels, strict=True):
            first, second = better(a[..., :look] + shift, b[..., :look], anytime=anytime, level=level)
            hits |= first if shift else first | second
        return hits

    every = tuple(range(MINIMUM_SEEDS, 21))
    ways: tuple[tuple[str, tuple[int, ...], tuple[float, ...], bool], ...] = (
        ("one look, at 20 seeds", (20,), (LEVEL,), False),
        ("5, then 10 seeds, unpaid", (5, 10), (LEVEL,) * 2, False),
        ("5, 10, 20 seeds, unpaid", SEEDS, (LEVEL,) * 3, False),
        ("5 to 20 one by one, unpaid", every, (LEVEL,) * len(every), False),
        ("planned 5, 10, 20", SEEDS, LOOK_LEVELS[3], False),
        ("grown one by one, paid", every, (LEVEL,) * len(every), True),
    )
    for row, at, levels, anytime in ways:
        limit = None if "unpaid" in row else LEVEL
        yield measured("looks", row, "no difference", claimed(at, levels, anytime), limit)
        yield measured("looks", row, "difference 1", claimed(at, levels, anytime, 1.0))
    # A planned look at 5 that claims nothing, and then growth that was not planned.
    first, second = better(a[..., :5], b[..., :5], level=LOOK_LEVELS[3][0])
    both = first | second | claimed(every[1:], (LEVEL,) * (len(every) - 1), True)
    yield measured("looks", "planned at 5, then grown", "no difference", both, LEVEL)
    for row, levels in (("planned 5, 10, 20", LOOK_LEVELS[3]), ("5, 10, 20 seeds, unpaid", (LEVEL,) * 3)):
        hits = np.zeros(studies, dtype=bool)
        for look, level in zip(SEEDS, levels, strict=True):
            found = differences(means(a[..., :look]), means(b[..., :look] + 1.0))
            hits |= replace(found, mean=found.mean + 1.0).greater_p()[:, 0, 0] < level
        yield measured("looks", row, "as good, worse by the margin", hits, None if "unpaid" in row else LEVEL)


def failing(studies: int) -> Iterator[Cell]:
    """A method fails in 20 % of runs, at a score of 0; what is worse by 10 sd."""
    for row, gain in (("equal when it trains", 0.0), ("1 sd better when it trains", 1.0), ("equal over all runs", 2.5)):
        for seeds in SEEDS:
            draw = np.random.default_rng(seeds)
            found = {Verdict.BETTER: [False] * studies, Verdict.WHEN_IT_TRAINS: [False] * studies}
            for study in range(studies):
                failed = draw.random(seeds) < 0.2
                scores = draw.normal(10 + gain, 1, seeds)[~failed]
                sound = draw.normal(10, 1, seeds)
                failures = {100 + seed: 0.0 for seed in range(int(failed.sum()))}
                if not len(scores):
                    continue
                often = Configuration("full", "full", dict(enumerate(scores)), failures, certain(scores))
                never = Configuration("lora", "lora", dict(enumerate(sound)), draws=certain(sound))
                (pair,) = judge([often, never], Judging(floor=0.0)).comparisons
                if pair.first == "full" and pair.verdict in found:
                    found[pair.verdict][study] = True
            for verdict, hits in found.items():
                # Equal when it trains: any claim is false. Otherwise "better" is said where no run was seen to fail.
                limit = None if gain else LEVEL / 2
                yield measured("fails in 20 %", f"{row}: {verdict}", f"{seeds}", hits, limit)


def certain(scores: Array) -> Array:
    """[draws, seeds] scores in resampled dev sets that all say the same."""
    return scores + np.random.default_rng(0).normal(0, 1e-6, (50, 1))


def examples(studies: int) -> Iterator[Cell]:
    for by_seed, by_example in ((1.0, 0.3), (0.3, 1.0), (0.5, 0.5)):
        for seeds in SEEDS[:2]:
            draw, hits = np.random.default_rng(seeds), []
            for _ in range(studies):
                made = [with_examples(draw, name, seeds, by_seed, by_example) for name in ("full", "lora")]
                (pair,) = judge(made).comparisons
                hits.append((pair.examples_p if pair.examples_p is not None else 1.0) < LEVEL)
            row = f"spread over seeds {by_seed}, over dev sets {by_example}"
            yield measured("new seeds and new examples", row, f"{seeds}", hits, LEVEL)


def with_examples(draw: np.random.Generator, name: str, seeds: int, by_seed: float, by_example: float) -> Configuration:
    """A method whose scores are means over 60 dev examples, with a part of each seed, each example, and of both."""
    count = 60
    each = (
        draw.normal(0, by_seed, (seeds, 1))
        + draw.normal(0, by_example * count**0.5, count)
        + draw.normal(0, 0.3 * count**0.5, (seeds, count))
    )
    weights = draw.multinomial(count, np.full(count, 1 / count), size=100) / count
    return Configuration(name, name, dict(enumerate(each.mean(1))), draws=weights @ each.T)


def planned(studies: int) -> Iterator[Cell]:
    for ways in (1, 4):
        for size in (0.7, 1.0, 2.0):
            needed = Design(1.0, 2, ways).for_better(size)
            for column, seeds, rivals in (
                ("one rival", needed.seeds, -50.0),
                ("all rivals equally good", needed.with_ties, 0.0),
            ):
                if seeds is not None:
                    a, b = drawn("normal", ways, seeds, studies)
                    a[:, 0] += size
                    a[:, 1:] -= 50
                    b[:, 1:] += rivals
                    found, _ = better(a, b)
                    row = f"difference {size}, {ways} against {ways}"
                    yield {**measured("seeds by plan", row, column, found), "seeds": seeds}


def write_cells(out: Path, cells: Sequence[Cell]) -> None:
    """Write what was found, with versions and processor; print the cells that are above their limits."""
    versions = {"manytune": __version__, "numpy": np.__version__, "scipy": scipy.__version__}
    facts: Cell = {
        "versions": versions | {"python": platform.python_version()},
        "processor": hardware.describe(torch.device("cpu"))["processor"],
    }
    out.write_text(json.dumps({**facts, "level": LEVEL, "cells": [*cells]}, indent=1) + "\n")
    for cell in cells:
        if cell["limit"] is not None and cell["share"] > cell["limit"] + 3 * cell["error"]:
            print(f"above its limit: {cell}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=4000)
    given = parser.parse_args()
    cells: list[Cell] = []
    for simulate in (equal_methods, power, as_good, may_be_best, wide, looks, planned):
        cells += simulate(given.studies)
        print(f"{simulate.__name__}: {len(cells)} cells", flush=True)
    for judged in (failing, examples):
        cells += judged(given.studies // 10)
        print(f"{judged.__name__}: {len(cells)} cells", flush=True)
    write_cells(given.out, cells)


if __name__ == "__main__":
    main()
