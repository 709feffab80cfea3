"""What a search would do, without doing it: spaces, trials, steps and time with and without pruning, confirmation."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from manytune.config import Study, Training
from manytune.config.confirm import judging_study
from manytune.config.plan import Run, make_runs, total_steps
from manytune.config.search import Halving
from manytune.config.spaces import Choice, Space, search_spaces
from manytune.executors.base import ExecutorSpec
from manytune.executors.estimate import HardwareProfile, largest_packs, training_seconds
from manytune.executors.inline import Inline
from manytune.models.loading import check_weights
from manytune.report.names import joined
from manytune.report.views import plain_table
from manytune.search.halving import trial_rungs
from manytune.training.workload import TaskWork, prepare
from manytune.utils.text import counted, duration

_MOST_DRAWN = 64  # trials that are drawn for an estimate; more are as these are on average


def search_line(study: Study) -> str:
    """What a search is, in words: its spaces, budget, sampler and pruning."""
    search = study.search
    assert search is not None
    spaces = sum(len(search_spaces(study, name)) for name in study.task_names)
    budget = counted(search.trials, "trial") if search.trials is not None else f"{duration(search.seconds or 0.0)}"
    each = " each" if spaces > 1 else ""
    return f"{counted(spaces, 'search space')}, {budget}{each}, drawn by {search.sampler}; {_pruning(search.halving)}"


def _pruning(halving: Halving | None) -> str:
    if halving is None:
        return "no pruning"
    rungs = joined(f"{rung:.0%}" for rung in halving.rungs)
    return f"one in {halving.factor} goes on after {rungs} of its steps, and {halving.unpruned:.0%} are never pruned"


@dataclass(frozen=True)
class _SpaceEstimate:
    """What one space will take; where the budget is time, `trials` is what fits into it."""

    space: Space
    trials: int
    steps: float  # optimizer steps of all trials to their ends
    pruned_steps: float  # those that are expected with pruning
    seconds: float
    pruned_seconds: float
    winner_seconds: float  # of one run of the confirmation

    @property
    def row(self) -> tuple[object, ...]:
        """Its line of the table."""
        steps, pruned = round(self.steps), round(self.pruned_steps)
        times = duration(self.seconds), duration(self.pruned_seconds)
        return self.space.task, self.space.name, self.space.searched, self.trials, steps, pruned, *times


def render_search(study: Study, device: str, executor: ExecutorSpec | None = None) -> Iterator[RenderableType]:
    """A table of spaces and what the search and its confirmation take; data and tokenizer are loaded, weights are not.

    Raises what a real start would raise before it trains, for the ends of every range and each value of a choice too.
    """
    assert study.search is not None
    spaces = {name: search_spaces(study, name) for name in study.task_names}
    works = {name: prepare(_as_fixed(study), name) for name in study.task_names}
    judged = {name: prepare(judging_study(study, name), name) for name in study.task_names}
    check_weights(study.model)
    _, profile = (executor or Inline(device)).profile(study.training.precision, next(iter(works.values())).width)
    dtype = str(profile.dtype).removeprefix("torch.")
    yield f"{study.name}: {search_line(study)}; on {profile.device} in {dtype}; nothing is trained.\n"
    for work in works.values():
        yield _data_line(work, study.search.select)
        yield from (f"  {note}" for note in work.notes)
    found = [
        _estimate(study, space, works[name], judged[name], profile) for name, each in spaces.items() for space in each
    ]
    columns = ("task", "space", "searched", "trials", "steps", "with pruning", "time", "with pruning")
    yield plain_table(columns, [each.row for each in found], title="Search spaces (time and pruning are estimates)")
    yield from _sums(study, found, judged)


def _as_fixed(study: Study) -> Study:
    """A study that prepares data as the search trains on it: a tenth of train set aside, or dev, selects."""
    assert study.search is not None
    return study.model_copy(update={"search": None, "seeds": (0,), "selection": study.search.select})


def _data_line(work: TaskWork, select: str) -> str:
    aside = (
        "the dev rows compare trials" if select == "dev" else f"{work.train.size - work.train_size:,} compare trials"
    )
    return f"{work.task.name}: {counted(work.train_size, 'row')} to train on, {aside}; from {work.sources[0]}"


def _estimate(study: Study, space: Space, work: TaskWork, judged: TaskWork, profile: HardwareProfile) -> _SpaceEstimate:
    assert study.search is not None
    for values in space.edges:
        work.adaptation(_run(study, space, values))
    budget = study.search.trials or _MOST_DRAWN
    generator = random.Random(study.search.seed)
    drawn = [_run(study, space, _draw(space, generator)) for _ in range(min(budget, _MOST_DRAWN))]
    drawn = drawn if space.dimensions else drawn[:1]
    steps = [float(total_steps(run.training or study.training, work.train_size)) for run in drawn]
    shares = [_expected_share(study.search.halving, run.training or study.training, work.train_size) for run in drawn]
    room = largest_packs(drawn, {space.task: work}, profile)[space.task]
    seconds = [_seconds(run, work, room, profile) for run in drawn]
    pruned = [each * share for each, share in zip(seconds, shares, strict=True)]
    mean = sum(pruned) / len(drawn)
    trials = budget
    if study.search.seconds is not None:
        trials = max(1, math.ceil(study.search.seconds / mean))
    if not space.dimensions:  # it has one trial, which nothing is compared with
        trials, pruned, shares = 1, seconds, [1.0]
    times = trials / len(drawn)
    return _SpaceEstimate(
        space=space,
        trials=trials,
        steps=sum(steps) * times,
        pruned_steps=sum(count * share for count, share in zip(steps, shares, strict=True)) * times,
        seconds=sum(seconds) * times,
        pruned_seconds=sum(pruned) * times,
        winner_seconds=sum(_seconds(run, judged, room, profile) for run in drawn) / len(drawn),
    )


def _run(study: Study, space: Space, values: Mapping[str, Any]) -> Run:
    method, training = space.at(values)
    return next(make_runs(study, space.task, method, training, [0]))


def _draw(space: Space, generator: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, each in space.dimensions.items():
        if isinstance(each, Choice):
            values[name] = generator.choice(each.values)
            continue
        low, high = (math.log(each.low), math.log(each.high)) if each.log else (each.low, each.high)
        drawn = low + (high - low) * generator.random()
        number = min(max(math.exp(drawn) if each.log else drawn, each.low), each.high)
        values[name] = round(number) if each.whole else number
    return values


def _seconds(run: Run, work: TaskWork, room: int, profile: HardwareProfile) -> float:
    """Seconds of a run's share of a pack that is full."""
    size = 1 if run.method.pack_kind == "full" else room
    return training_seconds(work, run.method.pack_kind, size, profile, run.training) / size


def _expected_share(halving: Halving | None, training: Training, rows: int) -> float:
    """The share of a trial's steps that it is expected to take."""
    total = total_steps(training, rows)
    if halving is None:
        return 1.0
    left, before, share = 1.0, 0, 0.0
    for step in [*trial_rungs(halving, training, rows), total]:
        share += left * (step - before) / total
        left, before = left / halving.factor, step
    return halving.unpruned + (1 - halving.unpruned) * share


def _sums(study: Study, found: Sequence[_SpaceEstimate], judged: Mapping[str, TaskWork]) -> Iterator[str]:
    trials = sum(each.trials for each in found)
    steps, pruned = (round(sum(getattr(each, name) for each in found)) for name in ("steps", "pruned_steps"))
    seconds, less = (sum(getattr(each, name) for each in found) for name in ("seconds", "pruned_seconds"))
    about = f"with pruning about {pruned:,} steps and {duration(less)}; without, {steps:,} and {duration(seconds)}"
    yield f"Search: {counted(trials, 'trial')}, {about}."
    if study.confirm is None:
        yield "No confirmation (confirm: none): the best trial's score was chosen by, so it is too high."
        return
    seeds = study.confirm.seeds
    after = seeds * sum(each.winner_seconds for each in found)
    rows = joined(f"{work.dev.size:,} {study.confirm.on} rows of {name}" for name, work in judged.items())
    winners = (
        f"{counted(len(found), 'winner')} with {counted(seeds, 'seed')} each, {counted(seeds * len(found), 'run')}"
    )
    yield f"Confirmation: {winners} on all training rows, judged by the {rows}: about {duration(after)}."
    yield f"In all about {duration(less + after)}."
