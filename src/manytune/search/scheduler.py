"""Which trials a search starts, in which pack, and which of them go on: the driver's part."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from manytune.config import Study, digest
from manytune.config.plan import Pack, Run, make_runs, total_steps
from manytune.config.search import Search
from manytune.config.spaces import Space
from manytune.data.metrics import METRICS
from manytune.methods import METHODS, PackKind
from manytune.search.halving import SpaceHalving, trial_rungs
from manytune.search.journal import Journal, KeptTrial
from manytune.search.sampling import Drawn, SpaceSampler, seed_of
from manytune.storage.record import HistoryRow, Rung, RunRecord, RunState, Trial

_MOST_FAILURES = 5
"""Trials in a row that fail before their first step, after which a space under a budget of seconds begins no more."""


@dataclass(frozen=True)
class TaskFacts:
    """What the scheduler knows of a task."""

    metric: str  # the primary one
    train_size: int  # rows that a trial trains on


@dataclass
class LiveTrial:
    """A trial that has begun."""

    key: int  # in the journal
    space: Space
    number: int
    values: Mapping[str, Any]
    run: Run
    pack_id: str
    order: int  # among all that was decided in the search
    began: float
    unpruned: bool
    total_steps: int
    rungs: tuple[int, ...]  # optimizer steps after which it is compared
    joined: int = 0
    decided: dict[int, tuple[float | None, bool]] = field(default_factory=dict)  # step → score, and whether it went on
    scores: dict[int, float] = field(default_factory=dict)  # step → score
    losses: dict[int, float | None] = field(default_factory=dict)  # step of a rung → loss on the rows that select
    record: RunRecord | None = None

    @property
    def pruned_at(self) -> int | None:
        """The optimizer steps after which it is to leave before its end; None where it is not."""
        return min((step for step, (_, kept) in self.decided.items() if not kept), default=None)

    @property
    def steps(self) -> int:
        """Optimizer steps that it took, if it has ended."""
        return 0 if self.record is None else self.record.steps or 0

    @property
    def seconds(self) -> float:
        """What it took, if it has ended."""
        return 0.0 if self.record is None else self.record.cost.seconds


class Scheduler:
    """The trials of a search. All that it decides is in the journal before it is done, and is decided once."""

    def __init__(
        self,
        study: Study,
        spaces: Sequence[Space],
        facts: Mapping[str, TaskFacts],
        journal: Journal,
        ended: Mapping[str, RunRecord],
        handed_out: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ended` maps run id → record, of all that the study directory has.

        `handed_out` are ids of runs that have packs of their own already.
        """
        assert study.search is not None
        self._study, self._search, self._spaces, self._facts = study, study.search, list(spaces), facts
        self._journal, self._clock = journal, clock
        self._samplers = {self._key(space): SpaceSampler(self._search, space) for space in spaces}
        self._halvings: dict[tuple[str, str], SpaceHalving] = {}
        self._trials: dict[tuple[str, str], list[LiveTrial]] = {self._key(space): [] for space in spaces}
        self._by_run: dict[str, LiveTrial] = {}
        self._order = 0
        self._handed_out = set(handed_out)  # ids of runs
        for space in spaces:
            if (halving := self._search.halving) is not None:
                better = METRICS[facts[space.task].metric].higher_is_better
                name = f"{space.task}: {space.name}"
                self._halvings[self._key(space)] = SpaceHalving(halving, self._search.seed, name, better)
        self._take_up(ended)
        # Times in which no process worked on the search do not count.
        self._before = max([0.0, *(trial.began for trial in self._by_run.values()), *self._ends()])
        self._started = clock()

    # Which trials begin.

    def next_full(self) -> Pack | None:
        """A pack of the next trial of a method that trains every weight; None where there is none to begin."""
        for trial in self._by_run.values():  # those of before come first
            if trial.record is None and trial.run.method.pack_kind == "full" and trial.run.id not in self._handed_out:
                return self._hand_out(trial)
        space = self._next_space([space for space in self._spaces if _kind(space) == "full"])
        return None if space is None else self._hand_out(self._begin(space, None))

    def _hand_out(self, trial: LiveTrial) -> Pack:
        self._handed_out.add(trial.run.id)
        return Pack(trial.pack_id, trial.run.task, "full", (trial.run,), expected=1)

    def assigned(self, pack_id: str) -> tuple[Run, ...]:
        """The trials that a pack has, had or is to have."""
        return tuple(trial.run for trial in self._by_run.values() if trial.pack_id == pack_id)

    def has_work(self, pack: Pack) -> bool:
        """Whether trials wait in a pack, or for it."""
        waits = any(t.record is None and t.pack_id == pack.id for t in self._by_run.values())
        return waits or self._next_space(self._spaces_of(pack)) is not None

    def room(self, pack: Pack, room: int, joined: Mapping[str, int]) -> tuple[tuple[Run, ...], dict[str, int], bool]:
        """What a pack with room for so many runs is told: who joins, who leaves, and whether no more will join.

        Those that leave are given with the optimizer steps that they take before.

        `joined` maps the id of each run that it has or had → its steps when the run joined.
        """
        for run_id, tick in joined.items():
            trial = self._by_run[run_id]
            if trial.joined != tick:
                trial.joined = tick
                self._journal.note(trial.key, "joined", tick)
        mine = [trial for trial in self._by_run.values() if trial.pack_id == pack.id and trial.record is None]
        # Those that were to join a process which died before they did come first, in their order.
        waiting = sorted((each for each in mine if each.run.id not in joined), key=lambda each: each.order)
        while len(waiting) < room and (space := self._next_space(self._spaces_of(pack))) is not None:
            waiting.append(self._begin(space, pack.id))
        more = len(waiting) > room or self._next_space(self._spaces_of(pack)) is not None
        leave = {each.run.id: step for each in mine if (step := each.pruned_at) is not None}
        return tuple(each.run for each in waiting[:room]), leave, not more

    def unused(self) -> dict[str, int]:
        """Name of each space whose trials could not all be begun → how many were not."""
        if self._search.trials is None:
            return {}
        wanted = {self._key(space): self._search.trials if space.dimensions else 1 for space in self._spaces}
        left = {key: count - len(self._trials[key]) for key, count in wanted.items()}
        return {f"{task}: {name}": count for (task, name), count in left.items() if count > 0}

    def rehome(self, packs: Sequence[Pack]) -> None:
        """Give trials whose pack is not among these to one that is: the process died while a pack was cut."""
        there = {pack.id for pack in packs}
        for trial in [each for each in self._by_run.values() if each.record is None and each.pack_id not in there]:
            fitting = [pack for pack in packs if pack.room is not None and trial.space in self._spaces_of(pack)]
            if fitting:
                self.move(trial.pack_id, fitting[-1].id)

    def move(self, old: str, new: str) -> None:
        """Give the trials of a pack that have not ended to another one, in which they begin anew."""
        for trial in self._by_run.values():
            if trial.pack_id == old and trial.record is None:
                trial.pack_id, trial.joined = new, 0
                self._journal.note(trial.key, "pack", new)

    # Which go on.

    def evaluated(self, rows: Mapping[str, HistoryRow]) -> dict[str, int]:
        """Take in evaluations, and decide of the trials that are at a rung.

        Returned are ids of those that leave → optimizer steps that they take before.
        """
        arriving: dict[tuple[tuple[str, str], int, int], dict[int, LiveTrial]] = {}
        for run_id, row in rows.items():
            trial = self._by_run[run_id]
            score = row.metrics.get(self._facts[trial.space.task].metric)
            if score is not None and trial.scores.get(row.step) != score:
                trial.scores[row.step] = score
                self._journal.score(trial.key, row.step, score)
            # One that learns late that it is to leave is not compared again.
            leaves = trial.pruned_at is not None and trial.pruned_at < row.step
            if row.step in trial.rungs and not leaves and self._key(trial.space) in self._halvings:
                group = self._key(trial.space), trial.total_steps, row.step
                trial.losses.setdefault(row.step, row.eval_loss)
                arriving.setdefault(group, {})[trial.number] = trial
        for (key, total, step), trials in arriving.items():
            scores = {number: trial.scores.get(step) for number, trial in trials.items()}
            losses = {number: trial.losses[step] for number, trial in trials.items()}
            decided = self._halvings[key].decide(total, step, scores, losses)
            new = [number for number, trial in trials.items() if step not in trial.decided]
            self._order += bool(new)
            for number in new:
                trials[number].decided[step] = scores[number], decided[number]
                values = {
                    "score": scores[number],
                    "loss": losses[number],
                    "kept": decided[number],
                    "order": self._order,
                }
                self._journal.note(trials[number].key, f"rung {step}", values)
        left = {run_id: self._by_run[run_id].pruned_at for run_id in rows}
        return {run_id: step for run_id, step in left.items() if step is not None}

    def with_trial(self, record: RunRecord) -> RunRecord:
        """The record of a trial that has ended, with its part in the search."""
        trial = self._by_run[record.run_id]
        described = Trial(
            space=trial.space.name,
            number=trial.number,
            settings=dict(trial.values),
            unpruned=trial.unpruned,
            rungs=[Rung(step=step, score=score, kept=kept) for step, (score, kept) in sorted(trial.decided.items())],
            total_steps=trial.total_steps,
            pack=trial.pack_id,
            joined=trial.joined,
            left=trial.joined + (record.steps or 0),
            began=trial.began,
            ended=max(self._now(), trial.began),
        )
        return record.model_copy(update={"trial": described})

    def ended(self, record: RunRecord) -> None:
        """Take in the record of a trial, once it is on the disk."""
        trial = self._by_run[record.run_id]
        if trial.record is None:
            trial.record = record
            self._order += 1
            state = str(record.state)
            facts = {"order": self._order, "state": state, "steps": trial.steps, "seconds": trial.seconds}
            self._journal.note(trial.key, "ended", facts)
            self._tell_rungs(trial, record)
            self._journal.end(trial.key, state, record.best_score)

    # How that is found.

    def _spaces_of(self, pack: Pack) -> list[Space]:
        return [space for space in self._spaces if space.task == pack.task and _kind(space) == pack.kind]

    def _next_space(self, spaces: Iterable[Space]) -> Space | None:
        """The one that has used the least part of its budget; None where all have used theirs."""
        used = [(self._used(space), space) for space in spaces]
        part, space = min(used, key=lambda each: each[0], default=(1.0, None))
        return space if part < 1.0 else None

    def _used(self, space: Space) -> float:
        """Which part of its budget a space has used, or has given to trials that have begun."""
        trials = self._trials[self._key(space)]
        if not space.dimensions:  # there is nothing to draw
            return float(bool(trials))
        if self._search.trials is not None:
            return len(trials) / self._search.trials
        assert self._search.seconds is not None
        ended = [trial for trial in trials if trial.record is not None]
        if len(ended) >= _MOST_FAILURES and not any(trial.steps for trial in ended[-_MOST_FAILURES:]):
            return 1.0  # none of the last ones took a step: the next would not either
        step = self._seconds_a_step(trials) or self._seconds_a_step(
            [trial for other in self._trials.values() for trial in other if trial.space.task == space.task]
        )
        if step is None:  # nothing is known yet: they begin with as many each
            return 1e-6 * len(trials)
        begun = sum(trial.total_steps for trial in trials if trial.record is None)
        return (sum(trial.seconds for trial in ended) + begun * step) / self._search.seconds

    @staticmethod
    def _seconds_a_step(trials: Iterable[LiveTrial]) -> float | None:
        """What a step took of those that have ended; None where none took one."""
        ended = [trial for trial in trials if trial.steps]
        return sum(trial.seconds for trial in ended) / sum(trial.steps for trial in ended) if ended else None

    def _begin(self, space: Space, pack_id: str | None) -> LiveTrial:
        trials = self._trials[self._key(space)]
        number = len(trials)
        values = self._samplers[self._key(space)].draw(number, [self._drawn(trial) for trial in trials])
        self._order += 1
        run = self._run(space, number, values)
        attributes = {
            "run_id": run.id,
            "method": run.label,
            "seed": run.seed,
            "pack": pack_id or f"{space.task}-full-{digest([run.id], 6)}",
            "order": self._order,
            "began": round(self._now(), 3),
        }
        trial = self._trial(space, number, values, run, attributes, key=-1)
        more = {"unpruned": trial.unpruned, "total_steps": trial.total_steps}
        trial.key = self._journal.begin(space, values, {**attributes, **more})
        self._add(trial)
        return trial

    def _run(self, space: Space, number: int, values: Mapping[str, Any]) -> Run:
        method, training = space.at(values)
        seed = seed_of(self._search, "seed", space.task, space.name, number)
        return next(make_runs(self._study, space.task, method, training, [seed]))

    def _trial(
        self, space: Space, number: int, values: Mapping[str, Any], run: Run, attributes: Mapping[str, Any], key: int
    ) -> LiveTrial:
        training = run.training or self._study.training
        rows = self._facts[space.task].train_size
        halving = self._search.halving
        kept = self._halvings.get(self._key(space))
        return LiveTrial(
            key=key,
            space=space,
            number=number,
            values=values,
            run=run,
            pack_id=attributes["pack"],
            order=attributes["order"],
            began=attributes["began"],
            unpruned=kept is None or kept.unpruned(number),
            total_steps=total_steps(training, rows),
            rungs=() if halving is None else trial_rungs(halving, training, rows),
            joined=attributes.get("joined", 0),
        )

    def _add(self, trial: LiveTrial) -> None:
        self._trials[self._key(trial.space)].append(trial)
        self._by_run[trial.run.id] = trial

    def _drawn(self, trial: LiveTrial) -> Drawn:
        """A trial as a sampler sees it."""
        sign = METRICS[self._facts[trial.space.task].metric].sign
        values = dict(trial.values)
        if trial.record is None:
            return Drawn(values, "running")
        if trial.record.state is RunState.PRUNED:
            step = max(trial.scores, default=0)
            score = trial.scores.get(step)
            return Drawn(values, "pruned", None if score is None else sign * score, step)
        if trial.record.best_score is None:
            return Drawn(values, "failed")
        return Drawn(values, "ended", sign * trial.record.best_score, trial.record.steps or 0)

    def _take_up(self, ended: Mapping[str, RunRecord]) -> None:
        """Take up what the journal holds, in the order in which it was decided."""
        events: list[tuple[int, Any, LiveTrial]] = []
        late: list[LiveTrial] = []
        for space in self._spaces:
            for kept in self._journal.trials(space):
                trial = self._again(space, kept)
                trial.record = ended.get(trial.run.id)
                self._add(trial)
                for name, value in kept.attributes.items():
                    if name.startswith("rung "):
                        step = int(name.removeprefix("rung "))
                        trial.decided[step] = value["score"], value["kept"]
                        trial.losses[step] = value["loss"]
                        events.append((value["order"], step, trial))
                if trial.record is not None:
                    if "ended" in kept.attributes:
                        events.append((kept.attributes["ended"]["order"], None, trial))
                    if not kept.finished:
                        late.append(trial)
        self._by_run = dict(sorted(self._by_run.items(), key=lambda item: item[1].order))
        self._order = max([0, *(order for order, _, _ in events), *(each.order for each in self._by_run.values())])
        for (_, step), group in groupby(sorted(events, key=lambda each: each[0]), key=lambda each: each[:2]):
            self._repeat(step, [trial for _, _, trial in group])
        for trial in late:  # the process was killed between its record and the journal
            record, trial.record = trial.record, None
            assert record is not None
            self.ended(record)

    def _again(self, space: Space, kept: KeptTrial) -> LiveTrial:
        run = self._run(space, kept.number, kept.values)
        trial = self._trial(space, kept.number, kept.values, run, kept.attributes, kept.key)
        trial.scores = kept.scores
        return trial

    def _repeat(self, step: int | None, trials: Sequence[LiveTrial]) -> None:
        """Let the rungs know what was decided together, or who ended."""
        halving = self._halvings.get(self._key(trials[0].space))
        if halving is None:
            return
        if step is not None:
            decided = {trial.number: trial.decided[step] for trial in trials}
            losses = {trial.number: trial.losses[step] for trial in trials}
            halving.restore(trials[0].total_steps, step, decided, losses)
            return
        for trial in trials:
            assert trial.record is not None
            self._tell_rungs(trial, trial.record)

    def _tell_rungs(self, trial: LiveTrial, record: RunRecord) -> None:
        """Let rungs be measured by what a trial came to in the end."""
        halving = self._halvings.get(self._key(trial.space))
        if halving is not None and (record.state in (RunState.FINISHED, RunState.COLLAPSED) or record.did_not_train):
            # What diverged ranks last, whatever it scored before.
            halving.ended(trial.number, None if record.state is RunState.FAILED else record.best_score)

    def _ends(self) -> list[float]:
        records = [trial.record for trial in self._by_run.values() if trial.record is not None]
        return [record.trial.ended for record in records if record.trial is not None]

    def _now(self) -> float:
        """Seconds of the search's work."""
        return self._before + self._clock() - self._started

    @staticmethod
    def _key(space: Space) -> tuple[str, str]:
        return space.task, space.name


def _kind(space: Space) -> PackKind:
    """The kind of pack that the trials of a space train in."""
    return METHODS[space.method].pack_kind


def search_packs(study: Study, spaces: Sequence[Space], sizes: Mapping[str, int], capacity: int) -> tuple[Pack, ...]:
    """The packs in which a search begins: for each task and kind as many as can train at once.

    None is larger than `sizes` (task → runs) says. Trials that train every weight get packs of their own as they begin.
    """
    assert study.search is not None
    packs = []
    kinds = dict.fromkeys((space.task, _kind(space)) for space in spaces)
    for task, kind in kinds:
        if kind == "full":
            continue
        mine = [space for space in spaces if (space.task, _kind(space)) == (task, kind)]
        trials = expected_trials(study.search, mine)
        count = min(capacity, math.ceil(trials / sizes[task]))
        for number in range(count):
            part = trials * (number + 1) // count - trials * number // count
            # Under a budget of seconds nobody knows how many trials there will be.
            room = sizes[task] if study.search.trials is None else min(sizes[task], part)
            part = max(part, room)
            packs.append(Pack(f"{task}-{kind}-search-{number}", task, kind, (), room=room, expected=part))
    return tuple(packs)


def expected_trials(search: Search, spaces: Sequence[Space], seconds: float = 60.0) -> int:
    """How many trials some spaces come to; under a budget of seconds roughly, if one takes so many `seconds`."""
    each = search.trials if search.trials is not None else max(1, round((search.seconds or 0.0) / seconds))
    return sum(each if space.dimensions else 1 for space in spaces)
