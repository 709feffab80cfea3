"""Statistics over seeds and over dev examples, from means to verdicts."""

from __future__ import annotations

from manytune.stats.describe import Lead, Summary, leader, summarize
from manytune.stats.examples import bootstrap_weights, combined_p, mcnemar, metric_draws
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
    "Lead",
    "Standing",
    "Summary",
    "Verdict",
    "bootstrap_weights",
    "combined_p",
    "compare",
    "compare_all",
    "leader",
    "mcnemar",
    "metric_draws",
    "standings",
    "summarize",
]
