"""Fit a study into the time that a user has: how many seeds, training rows and epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from manytune.config import Study
from manytune.config.plan import plan_packs, plan_runs
from manytune.config.quick_study import Size, epochs_for
from manytune.data.splits import Encoded
from manytune.executors.auto import best_executor
from manytune.executors.base import ExecutorSpec
from manytune.executors.estimate import largest_packs, makespan, seconds_of
from manytune.executors.pack_inputs import Backbones
from manytune.executors.probe import Probe
from manytune.training.workload import TaskWork, prepare
from manytune.utils.errors import StudyError
from manytune.utils.text import counted, duration

_LADDER = ((5, 1500), (3, 800), (2, 300), (1, 100))
"""Seeds → the fewest rows that they are worth: fewer seeds come before fewer rows than these."""

_MOST_ROWS = 50_000  # training rows of a quick study; what is more is not even tokenized


@dataclass(frozen=True)
class Fitted:
    """A size that fits, and about how long it takes."""

    size: Size
    rows: int  # training rows that there are
    seconds: float


def fit(draft: Callable[[Size], Study], device: str, seconds: float, overhead: float, probe: Probe) -> Fitted:
    """The largest study, seeds first, that is expected to end within `seconds`, of which `overhead` are not training.

    `draft` makes the study of a size; `probe` keeps what it measures, for `run_study`. Raises StudyError where even the
    smallest takes longer, and ManytuneError where the data or the model cannot be used.
    """
    study = draft(Size(1, _MOST_ROWS, 1))
    work = prepare(study, study.task_names[0])
    most = work.train.size
    rows_there = work.limited_from or most

    expectation = _Expectation(work, device, probe)

    def expected(seeds: int, rows: int) -> float:
        return overhead + expectation.seconds(draft(Size(seeds, rows, epochs_for(rows))), rows)

    def fits(seeds: int, rows: int) -> bool:
        return expected(seeds, rows) <= seconds

    for seeds, least in _LADDER:
        few = min(least, most)
        if not fits(seeds, few):
            continue
        rows = _largest(few, most, partial(fits, seeds))
        size = Size(seeds, None if rows == rows_there else rows, epochs_for(rows))
        return Fitted(size, rows_there, expected(seeds, rows))
    takes = expected(1, few)
    raise StudyError(
        f"--minutes: even a study of one seed and {counted(few, 'row')} takes about {duration(takes)} on this machine. "
        f"Give --minutes {math.ceil(takes / 60 + 0.5)}, or a smaller model."
    )


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number of rows from `low`, which fits, to `high`, in steps of 1 %."""
    if fits(high):
        return high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if low < 200 else low // 50 * 50


class _Expectation:
    """Expects how long studies of one task take."""

    def __init__(self, whole: TaskWork, device: str, probe: Probe) -> None:
        self._whole = whole
        self._device = device
        self._backbones = Backbones(whole.study.model)
        self._probe = probe

    def seconds(self, study: Study, rows: int) -> float:
        """Seconds that a study trains on so many rows, and scores its runs."""
        runs, whole = plan_runs(study), self._whole
        works = {whole.task.name: replace(whole, study=study, train=_first(whole.train, rows))}
        executor: ExecutorSpec = best_executor(self._device, runs, works)
        capacity, profile = executor.profile(study.training.precision, whole.width)
        packs = plan_packs(runs, largest_packs(runs, works, profile, capacity))
        if profile.device != "cpu":
            return makespan(seconds_of(packs, works, profile), capacity)
        return makespan(self._probe.measured(packs, works, profile, self._backbones), capacity)


def _first(rows: Encoded, count: int) -> Encoded:
    """The first rows."""
    end = rows.offsets[count]
    return replace(
        rows, ids=rows.ids[:end], types=rows.types[:end], offsets=rows.offsets[: count + 1], labels=rows.labels[:count]
    )
