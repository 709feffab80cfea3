"""Packs that runs join and leave, over a tiny model: for tests of what each run comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from manytune.config import Training
from manytune.config.plan import Run
from manytune.data.tasks import get_task
from manytune.methods import Method, make_method
from manytune.models.loading import Backbone
from manytune.packing import Member, PackedModel
from manytune.training.callbacks import PackCallback
from manytune.training.live_run import Entry
from manytune.training.loop import PackData, train_pack
from manytune.training.outcome import Checkpoint, Outcome
from tiny import random_rows

TASK = get_task("cola")
ROWS = random_rows(60)
RATE = 1e-2


def entry(backbone: Backbone, seed: int, name: str, rows: int = 40, **settings: Any) -> Entry:
    """A run of a method; `settings` in capitals are the method's, the others the training's."""
    own = {key.lower(): value for key, value in settings.items() if key.isupper()}
    training = {key: value for key, value in settings.items() if not key.isupper()}
    return entry_of(backbone, seed, make_method(name, **{"learning_rate": RATE, **own}), rows, **training)


def entry_of(backbone: Backbone, seed: int, method: Method, rows: int = 40, **training: Any) -> Entry:
    """The same with a given method."""
    defaults = {"batch_size": 8, "max_steps": 12, "eval_every": 5, "warmup_steps": 2, "weight_decay": 0.1}
    member = Member(seed, method.adapt(backbone.model_spec))
    run = Run(f"run{seed}", "tiny", TASK.name, method, seed)
    return Entry(run, member, Training(**{**defaults, **training}), np.arange(rows), np.arange(12))


class Schedule:
    """A source of runs: those that ask to join at each tick, as far as there is room."""

    def __init__(self, plan: Mapping[int, Sequence[Entry]]) -> None:
        self.plan, self.tick, self.waiting = plan, -1, list[Entry]()
        self.ends: list[tuple[str, int]] = []

    def next(self, room: int, joined: Mapping[str, int], tick: int) -> list[Entry]:
        for asked in range(self.tick + 1, tick + 1):
            self.waiting += self.plan.get(asked, ())
        self.tick = tick
        joining, self.waiting = self.waiting[:room], self.waiting[room:]
        return joining

    def leaving(self) -> Mapping[str, int]:
        return {}

    def ended(self, outcome: Outcome) -> None:
        self.ends.append((outcome.run.id, outcome.steps))


class Log(PackCallback):
    """Keeps the losses of each run, and every checkpoint's roster."""

    def __init__(self) -> None:
        self.model: PackedModel | None = None
        self.ids: dict[int, str] = {}
        self.losses: dict[str, list[float]] = {}
        self.rosters: list[tuple[int, list[str]]] = []
        self.at_step: Callable[[int], None] = lambda step: None

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        assert self.model is not None
        for seed, loss in zip(self.model.seeds, losses, strict=True):
            self.losses.setdefault(f"run{seed}", []).append(loss)
        self.at_step(step)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.rosters.append((checkpoint.step, [checkpoint.runs[index].outcome.run.id for index in checkpoint.alive]))


def train(
    backbone: Backbone, first: Sequence[Entry], source: Schedule | None = None, room: int = 8, **options: Any
) -> tuple[Log, dict[str, Outcome]]:
    """Train the runs of a pack to their ends; returns what was logged, and each run's outcome."""
    log = Log()
    log.model = PackedModel(backbone, [each.member for each in first], **options)
    rows = tuple(each.train_rows for each in first), tuple(each.select_rows for each in first)
    trainings = [each.training for each in first]
    runs = [each.run for each in first]
    outcomes = train_pack(log.model, runs, TASK, PackData(ROWS, ROWS, *rows), trainings, log, None, "p", source, room)
    return log, {outcome.run.id: outcome for outcome in outcomes}


def with_losses(backbone: Backbone, each: Entry) -> tuple[Entry, list[float]]:
    """A run, and the losses that it has alone."""
    return each, train(backbone, [each])[0].losses[each.run.id]


def neighbours(backbone: Backbone) -> list[tuple[Entry, list[float]]]:
    """Two runs of different lengths and batches, and the losses that each has alone."""
    first = entry(backbone, 1, "bitfit", max_steps=6)
    return [
        with_losses(backbone, first),
        with_losses(backbone, entry(backbone, 2, "lora", max_steps=5, batch_size=5, RANK=2, DROPOUT=0.2)),
    ]
