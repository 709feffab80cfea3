"""Statistics over seeds and over dev examples: what describes, what tests, and what that comes to in words.

describe.py   means and spreads
paired.py     differences between configurations over the seeds that both have; power
choice.py     the best of several configurations is never tested as if it had been the only one; Holm
examples.py   bootstrap over dev examples, McNemar
verdict.py    all of it for the methods of one task
"""

from __future__ import annotations

from manytune.stats.describe import Lead, Summary, leader, summarize
from manytune.stats.examples import bootstrap_weights, combined_p, mcnemar, metric_draws
from manytune.stats.paired import (
    Differences,
    detectable,
    differences,
    effect_size,
    power,
    seeds_needed,
    sign_flip,
)
from manytune.stats.selection import best_of, best_set, holm
from manytune.stats.verdict import (
    LEVEL,
    MINIMUM_SEEDS,
    Comparison,
    Configuration,
    Standing,
    Verdict,
    compare,
    compare_all,
    standings,
)

__all__ = [
    "LEVEL",
    "MINIMUM_SEEDS",
    "Comparison",
    "Configuration",
    "Differences",
    "Lead",
    "Standing",
    "Summary",
    "Verdict",
    "best_of",
    "best_set",
    "bootstrap_weights",
    "combined_p",
    "compare",
    "compare_all",
    "detectable",
    "differences",
    "effect_size",
    "holm",
    "leader",
    "mcnemar",
    "metric_draws",
    "power",
    "seeds_needed",
    "sign_flip",
    "standings",
    "summarize",
]
