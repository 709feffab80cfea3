"""Records of trials → what a search is, for each task and backbone: its spaces, their trials and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from manytune.config.schema import Study
from manytune.config.search import Confirm, Search
from manytune.config.spaces import Choice, Range, search_spaces
from manytune.data.metrics import METRICS, Metric, default_margin
from manytune.data.tasks import TASKS
from manytune.methods import METHODS
from manytune.methods.base import LEARNING_RATE, Axis
from manytune.report.names import file_key, short_title
from manytune.report.series import OTHER_COLOR, Look
from manytune.report.sheets import drawn
from manytune.search.trials import trial_facts
from manytune.search.winners import best_trial
from manytune.stats.budget import TrialFacts
from manytune.stats.describe import Summary
from manytune.storage.record import RunRecord, RunState, Trial
from manytune.utils.text import cut, printable

SELECTING_ROWS = {"train-split": "a tenth of train, held out", "dev": "dev"}
"""What `search.select` says → what to call the rows that compare trials."""

_LONGEST_SPACE = 40  # characters of a name
_PALEST = 0.35  # the tone of a method's last space
_WIDE = 20.0  # largest value / smallest one, from which an axis is logarithmic where no study says


@dataclass(frozen=True)
class Dimension:
    """One searched setting, as axes and tables show it."""

    name: str
    """Dotted, as in a study file: `learning_rate`, `training.epochs`."""
    title: str
    """Of an axis: "learning rate"."""
    prefix: str
    """Before a value: "lr ", "r="."""
    log: bool = False
    values: tuple[Any, ...] | None = None
    """The values to choose from, in their order; None where it is a range."""
    bounds: tuple[float, float] | None = None
    """Of a range, where the study is known."""

    def shown(self, value: Any) -> str:
        """A value as text: "3.1e-4", "8", "of rank 1"."""
        if isinstance(value, Mapping):
            return ", ".join(f"{key.replace('_', ' ')} {self.shown(item)}" for key, item in value.items())
        return drawn(value) if isinstance(value, float) else printable(str(value))


@dataclass(frozen=True, eq=False)
class SpaceFacts:
    """One search space of a task and its trials."""

    name: str
    """As records have it: "lora"."""
    look: Look
    """What tables call it, "LoRA", and how it is drawn."""
    dimensions: tuple[Dimension, ...]
    trials: tuple[RunRecord, ...]
    """Those that have ended, by number; at least one."""
    sign: int
    """1 where a higher score is better, else -1."""

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.trials[0].method

    def in_state(self, *states: RunState) -> tuple[RunRecord, ...]:
        """The trials that ended in one of these states."""
        return tuple(run for run in self.trials if run.state in states)

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """Trials that trained to their end and did not collapse, with a score."""
        return tuple(run for run in self.in_state(RunState.FINISHED) if run.best_score is not None)

    @property
    def facts(self) -> tuple[TrialFacts, ...]:
        """What the statistics ask of its trials; there, higher scores are better."""
        return tuple(map(trial_facts, self.trials))

    @property
    def winner(self) -> RunRecord | None:
        """The finished trial with the best score, the earlier one of equals; None without a finished one."""
        return best_trial(self.trials)

    @property
    def seconds(self) -> float:
        """What its trials took, pruned ones included: training and evaluation, shares of their packs' time."""
        return sum(run.cost.seconds for run in self.trials)

    def settings(self, run: RunRecord) -> str:
        """The searched settings of a trial in words: "lr 3.1e-4, r=8"."""
        found = trial_of(run).settings
        known = (each for each in self.dimensions if each.name in found)
        return ", ".join(f"{each.prefix}{each.shown(found[each.name])}" for each in known)


@dataclass(frozen=True, eq=False)
class SearchFacts:
    """A search on one task and backbone."""

    key: str
    """Safe as a file name and as an anchor; unique in the report."""
    task: str
    model: str
    metric: Metric
    spaces: tuple[SpaceFacts, ...]
    """Those with a trial that has ended, in the study's order, else as they began; at least one."""
    margin: float
    """How much worse counts as as good, from the study's `report`, else the metric's default."""
    search: Search | None = None
    """What the study says of it; None where it is not known."""
    confirm: Confirm | None = None
    """How winners are judged; None where they are not."""
    confirmed: Mapping[str, Summary] = field(default_factory=dict)
    """Label of a winner → its scores on the rows that judge, over the seeds that trained."""

    @property
    def title(self) -> str:
        """What to call the task: "CoLA"."""
        return TASKS[self.task].title if self.task in TASKS else printable(self.task)

    @property
    def sign(self) -> int:
        """1 where a higher score is better, -1 where a lower one is."""
        return self.metric.sign

    @property
    def trials(self) -> tuple[RunRecord, ...]:
        """All trials that have ended, space by space."""
        return tuple(run for space in self.spaces for run in space.trials)

    @property
    def worst(self) -> float:
        """The worst score that a trial was seen with, 0 where none has one."""
        scores = [score for run in self.trials if (score := score_then(run)) is not None]
        return min(scores, key=lambda score: self.sign * score, default=0.0)

    @property
    def selecting_rows(self) -> str:
        """The rows that compared trials."""
        select = self.search.select if self.search else self.trials[0].selection or ""
        return SELECTING_ROWS.get(select, select or "rows that are not known")

    @property
    def ranked(self) -> tuple[SpaceFacts, ...]:
        """The spaces, the best winner first; those without a winner last."""

        def rank(space: SpaceFacts) -> tuple[bool, float]:
            winner = space.winner
            return winner is None, -self.sign * (winner.best_score or 0.0) if winner else 0.0

        return tuple(sorted(self.spaces, key=rank))


def trial_of(run: RunRecord) -> Trial:
    """What a trial's record says of the search; a ValueError where the run was none."""
    if run.trial is None:
        raise ValueError(f"{run.run_id} is no trial of a search")
    return run.trial


def score_then(run: RunRecord) -> float | None:
    """The score that a trial is drawn at: of a pruned one, that at its last rung."""
    rungs = trial_of(run).rungs
    return rungs[-1].score if run.state is RunState.PRUNED and rungs else run.best_score


def searches_of(
    records: Iterable[RunRecord],
    *,
    search: Search | None = None,
    confirm: Confirm | None = None,
    dimensions: Mapping[tuple[str, str], Mapping[str, Range | Choice]] | None = None,
    margins: Mapping[str, float | None] | None = None,
) -> tuple[SearchFacts, ...]:
    """One for each task and backbone that has trials, in the order of the records.

    Args:
        records: Of any runs, in the order in which trials began; those that are no trials are passed over.
        search: What the study says of the search.
        confirm: What it says of the confirmation.
        dimensions: (task, space) → its searched settings, in the study's order; where they are not known, the
            trials' values say.
        margins: Task → the margin that the study gives.
    """
    groups: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    trials = [run for run in records if run.trial is not None]
    for run in trials:
        groups.setdefault((run.task, run.model), {}).setdefault(trial_of(run).space, []).append(run)
    models = Counter(task for task, _ in groups)
    found: list[SearchFacts] = []
    for (task, model), unordered in groups.items():
        order = [space for of, space in dimensions or () if of == task]
        known = {name: unordered.pop(name) for name in order if name in unordered}
        spaces = known | unordered
        metric = METRICS[next(iter(spaces.values()))[0].primary_metric]
        looks = _looks({name: runs[0].method for name, runs in spaces.items()})
        margin = (margins or {}).get(task)
        facts = tuple(
            SpaceFacts(
                name,
                looks[name],
                _dimensions(runs, (dimensions or {}).get((task, name), {})),
                tuple(sorted(runs, key=lambda run: trial_of(run).number)),
                metric.sign,
            )
            for name, runs in spaces.items()
        )
        margin = margin if margin is not None else default_margin(metric.name, _largest(trials, task)) or 0.0
        name = task if models[task] == 1 else f"{task}-{model}"
        key = file_key(name, {each.key.removesuffix("-search") for each in found})
        found.append(SearchFacts(f"{key}-search", task, model, metric, facts, margin, search, confirm))
    return tuple(found)


def searches_in(study: Study, records: Iterable[RunRecord]) -> tuple[SearchFacts, ...]:
    """`searches_of` the records of a study, with all that the study says of them."""
    spaces = {(task, space.name): space.dimensions for task in study.task_names for space in search_spaces(study, task)}
    margins = {task: study.margin_of(task) for task in study.task_names}
    return searches_of(records, search=study.search, confirm=study.confirm, dimensions=spaces, margins=margins)


def _largest(trials: Sequence[RunRecord], task: str) -> float:
    """The largest score of a task: of an error, about that of a trial that learned nothing."""
    return max((run.best_score for run in trials if run.task == task and run.best_score is not None), default=0.0)


def _looks(methods: Mapping[str, str]) -> dict[str, Look]:
    """Space → look, from space → method: the colour is the method's."""
    count, seen = Counter(methods.values()), Counter[str]()
    found = {}
    for name, method in methods.items():
        kind, shade = METHODS.get(method), seen[method]
        shown = short_title(method) + name.removeprefix(method) if f"{name} ".startswith(f"{method} ") else name
        tone = _PALEST * shade / max(count[method] - 1, 1)
        color = kind.color if kind else OTHER_COLOR
        found[name] = Look(cut(printable(shown), _LONGEST_SPACE), color, shade, tone)
        seen[method] += 1
    return found


def _dimensions(runs: Sequence[RunRecord], known: Mapping[str, Range | Choice]) -> tuple[Dimension, ...]:
    """The searched settings, in the order of the study or of the trials' settings."""
    kind = METHODS.get(runs[0].method)
    axes: dict[str, Axis] = {axis.name: axis for axis in (LEARNING_RATE, kind.axis if kind else None) if axis}
    names = dict.fromkeys((*known, *(name for run in runs for name in trial_of(run).settings)))
    found = []
    for name in names:
        title = printable(name.removeprefix("training.").replace("_", " "))
        axis = axes.get(name)
        shown = (axis.title, axis.prefix) if axis else (title, f"{title} ")
        values = [trial_of(run).settings[name] for run in runs if name in trial_of(run).settings]
        found.append(_dimension(Dimension(name, *shown), values, known.get(name)))
    return tuple(found)


def _dimension(plain: Dimension, values: Sequence[Any], known: Range | Choice | None) -> Dimension:
    if isinstance(known, Range):
        return replace(plain, log=known.log, bounds=(known.low, known.high))
    if isinstance(known, Choice):
        return replace(plain, values=tuple(known.values))
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    distinct = list({repr(value): value for value in values}.values())
    if len(numbers) < len(values) or len(distinct) <= len(values) // 3:
        ordered = sorted(distinct, key=lambda value: (not isinstance(value, int | float), _number(value), repr(value)))
        return replace(plain, values=tuple(ordered))
    return replace(plain, log=min(numbers) > 0 and max(numbers) > _WIDE * min(numbers))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
