"""What is claimed of a task, and what the claims are made from.

Higher scores are better throughout: the caller turns errors around.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray

from manytune.stats.looks import SeedPlan

Array = NDArray[Any]

LEVEL = 0.05
"""Significance level: the share of studies without a true difference in which one may be claimed."""


class Verdict(StrEnum):
    """The result of a comparison of two methods."""

    BETTER = "better"
    """For new seeds and new examples, and no run of it failed, or so few that it is better all the same."""
    WHEN_IT_TRAINS = "better when it trains"
    """Better for new seeds and new examples among runs that train; but some did not, and it may be worse over all."""
    ON_THIS_DEV_SET = "better on this dev set"
    """Better for new seeds; another dev set might say otherwise, or the predictions that would tell were not kept."""
    WITHIN_NOISE = "within noise"
    """No difference can be told from chance."""
    TOO_FEW_SEEDS = "too few seeds"
    """One of the two has fewer than 5 runs that trained: no verdict."""


@dataclass(frozen=True, eq=False)
class Configuration:
    """One way to train: a method with its hyper-parameters, over its seeds."""

    method: str
    label: str
    scores: Mapping[int, float]
    """Seed → score of the runs that trained; higher is better."""
    failures: Mapping[int, float | None] = field(default_factory=dict)
    """Seed → score of the runs that did not train: failed (None), collapsed, or never far above a constant."""
    draws: Array | None = None
    """[draws, seeds] scores in resampled dev sets of the runs in `scores`, in its order; None if unknown."""
    order: tuple[int, ...] = ()
    """All of its seeds in the order that the study has them, by which planned looks go; empty: ascending."""
    parameters: int | None = None
    """How many train: the cost by which a cheaper configuration is recommended."""

    @property
    def mean(self) -> float:
        """Mean score of the runs that trained."""
        return math.fsum(self.scores.values()) / len(self.scores)

    @property
    def runs(self) -> int:
        """How many have ended, whether they trained or not."""
        return len(self.scores) + len(self.failures)


@dataclass(frozen=True)
class Judging:
    """What a verdict depends on besides the scores."""

    margin: float = 0.01
    """How much worse, in the metric's unit, counts as as good."""
    floor: float | None = None
    """The score of the best constant prediction: what a run that failed without a score counts as."""
    ceiling: float | None = None
    """The best score that there is."""
    seeds: SeedPlan = field(default_factory=SeedPlan)
    """When the study was looked at while it grew."""


@dataclass(frozen=True)
class TrainingRate:
    """How often the runs of a configuration train."""

    trained: int
    runs: int
    low: float
    """Lower bound of the 95 % interval (Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404)."""
    high: float

    @property
    def failed(self) -> int:
        """Runs that did not train."""
        return self.runs - self.trained


@dataclass(frozen=True)
class Comparison:
    """Two methods, each represented by its best configuration; the first is the one with the higher mean."""

    first: str
    second: str
    first_label: str
    """The first's configuration with the highest mean."""
    second_label: str
    choices: tuple[int, int]
    """Among how many configurations each was chosen."""
    difference: float
    """Difference of the means of these two, of the runs that trained."""
    seeds: tuple[int, int]
    """Runs of each that trained."""
    low: float | None
    """Lower bound of the 95 % interval for new seeds, of the difference between the two methods' best true means, which
    accounts for the choice of both; None if unknown."""
    high: float | None
    """Its upper bound, never above what the best possible score leaves."""
    p: float
    """Two-sided p that accounts for the choice of both; 1 where the spread is unknown."""
    p_holm: float
    """`p`, corrected over all pairs of methods of the task."""
    verdict: Verdict
    deviation: float | None
    """Standard deviation of one run's score, of both together."""
    effect: float | None
    """`difference` in such standard deviations, with Hedges' correction (1981,
    https://doi.org/10.3102/10769986006002107)."""
    ahead: int
    """Seeds, of those that both have, in which the first is ahead."""
    shared: int
    """Seeds that both have."""
    detectable: float | None
    """The smallest true difference that as many seeds find in 80 % of studies, after all corrections."""
    seeds_needed: int | None
    """Seeds that find a true difference of the margin in 80 % of studies, from the upper 80 % bound of the spread; None
    if unknown or above 1,000."""
    examples_low: float | None
    """Lower bound of the 95 % interval for new seeds and new examples; None where predictions were not kept."""
    examples_high: float | None
    examples_p: float | None
    """Two-sided p for new seeds and new examples; None where predictions were not kept."""
    overall_low: float | None
    """Lower bound of the difference over all runs, with as many failures of the first as cannot be excluded; None if
    unknown."""
    rates: tuple[TrainingRate, TrainingRate]
    rates_p: float
    """Two-sided p of Fisher's exact test that both train equally often."""


@dataclass(frozen=True)
class AsGood:
    """Whether a configuration is shown to be no more than the margin worse than every other one."""

    label: str
    low: float | None
    """One-sided 95 % lower bound of its mean less the best other mean, after correction for all such claims."""
    p: float
    """Holm-adjusted p of the hypothesis that it is worse by the margin or more."""
    shown: bool
    seeds_needed: int | None
    """Seeds that show it in 80 % of studies, if it is as good; None if unknown or above 1,000."""


@dataclass(frozen=True)
class Standing:
    """Whether a configuration may be the best of all."""

    label: str
    p: float  # p of the hypothesis that it is the best; it is no probability of that
    may_be_best: bool | None  # None where there are too few seeds to say


@dataclass(frozen=True)
class TaskVerdict:
    """All that is claimed of one task."""

    judging: Judging
    level: float
    """The level of this look; LEVEL where seeds were not added after a look at the scores."""
    leader: str | None
    """Label of the configuration with the highest mean among runs that trained; None where no run did."""
    comparisons: tuple[Comparison, ...] = ()
    """Every pair of methods, the best method's first."""
    standings: Mapping[str, Standing] = field(default_factory=dict)
    """Label → whether it may be the best."""
    as_good: Mapping[str, AsGood] = field(default_factory=dict)
    """Label → whether it is as good as all others within the margin."""
    rates: Mapping[str, TrainingRate] = field(default_factory=dict)
    """Label → how often its runs train."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Label → 95 % interval of its mean for new seeds, of the runs that trained; without those whose spread is unknown.
    """
    recommended: str | None = None
    """Label of the cheapest configuration shown to be as good, none of whose runs failed."""

    @property
    def against_leader(self) -> tuple[Comparison, ...]:
        """The comparisons of the leader's method with every other."""
        return tuple(each for each in self.comparisons if self.leader in (each.first_label, each.second_label))

    @property
    def decided(self) -> bool:
        """Whether the leader could be compared with another method."""
        return any(each.verdict is not Verdict.TOO_FEW_SEEDS for each in self.against_leader)
