"""Directories of searches as `manytune run` leaves them, with made-up trials: for whatever reads results.

Trials are drawn, pruned and put into packs as a search does it; their scores follow a quadratic of the learning rate's
logarithm with noise. The same arguments give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from manytune.config import Study
from manytune.config.confirm import confirm_study
from manytune.config.search import Halving, Search
from manytune.config.spaces import Choice, Range, Space, search_spaces
from manytune.data.tasks import get_task
from manytune.methods.base import Method
from manytune.search.halving import SpaceHalving
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from study_factory import make_study_directory

SEARCH: Mapping[str, Any] = {
    "name": "searched",
    "model": "minilm",
    "tasks": ["cola"],
    "training": {"epochs": 6, "warmup_ratio": 0.1},
    "methods": [
        {"method": "full", "learning_rate": {"low": 1e-5, "high": 2e-4}},
        {"method": "bitfit", "learning_rate": {"low": 1e-4, "high": 1e-2}},
        {
            "method": "lora",
            "rank": {"choice": [2, 8, 64]},
            "alpha": {"choice": [16, {"of_rank": 1}]},
            "learning_rate": {"low": 1e-4, "high": 5e-3},
        },
    ],
    "search": {"trials": 24},
    "confirm": {"seeds": 10},
}
"""Three search spaces: one, one and three settings."""

_BEST_RATE = {"full": 6e-5, "bitfit": 2e-3, "lora": 6e-4, "head": 3e-3}
_PEAK = {"full": 0.56, "bitfit": 0.50, "lora": 0.57, "head": 0.3}
_CURVE = {"full": 0.35, "bitfit": 0.30, "lora": 0.16, "head": 0.1}  # per squared decade of the rate
_TICK = {"full": 0.085, "adapters": 0.34, "head": 0.05}  # seconds of one step of a pack
_ROOM = {"full": 1, "adapters": 8, "head": 16}
_STEPS, _RUNGS = 3210, (803, 1605)
_START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class _Trial:
    """One trial on its way to a record."""

    space: Space
    number: int
    values: dict[str, Any]
    method: Method
    quality: float
    unpruned: bool
    steps: int = _STEPS
    rungs: list[dict[str, Any]] = field(default_factory=list)
    state: str = "finished"
    failure: str | None = None


def make_search_directory(
    root: Path,
    study: Mapping[str, Any] = SEARCH,
    *,
    confirmed: bool = True,
    pending: Sequence[str] = (),
    trials: int | None = None,
    failed: bool = True,
    noise: float = 0.02,
    artifacts: bool = False,
) -> Store:
    """Write the directory of a search, and of its confirm stage in `confirm/TASK`.

    Args:
        root: Where to.
        study: The study's data.
        confirmed: Whether the confirm stage has begun.
        pending: Starts of ids of runs of the confirm stage that have not ended.
        trials: Trials of each space that have ended; None: as many as the study says.
        failed: Whether two trials failed.
        noise: Standard deviation of a trial's score at one rung, and over seeds.
        artifacts: Whether predictions, dev rows and the module tree of the confirm stage are kept.
    """
    made = Study.from_dict(study)
    store = Store.create_or_open(root, made)
    count = trials if trials is not None else made.search.trials or 1
    for place, task in enumerate(made.task_names):
        drawn = [_space_trials(space, made.search, count, noise, place) for space in search_spaces(made, task)]
        if failed:
            _fail(drawn[-1])
        for kind, group in _by_kind(drawn):
            for trial, facts in _scheduled(f"{task}-{kind}-0", kind, group):
                store.write_record(_record(made, task, trial, facts))
        if confirmed:
            winners = [_winner(trials) for trials in drawn]
            fixed = confirm_study(made, task, [(trial.space, trial.values) for trial in winners])
            data = fixed.model_dump(mode="json", exclude_none=True)
            make_study_directory(root / "confirm" / task, data, pending=pending, artifacts=artifacts)
    return store


def _space_trials(space: Space, search: Search, count: int, noise: float, place: int) -> list[_Trial]:
    """The trials of a space with their scores at the rungs, pruned by halving in the order in which they begin."""
    draw = np.random.default_rng([place, *map(ord, space.name)])
    halving = SpaceHalving(search.halving or Halving(), search.seed, space.name)
    found = []
    for number in range(count if space.dimensions else 1):
        values = {name: _drawn(draw, of) for name, of in space.dimensions.items()}
        method, _ = space.at(values)
        off = math.log10(method.learning_rate / _BEST_RATE[method.method])
        quality = _PEAK[method.method] - _CURVE[method.method] * off**2 + noise * draw.normal()
        quality += {2: -0.03, 8: 0.0, 64: 0.01}.get(getattr(method, "rank", 8), 0.0)
        trial = _Trial(space, number, values, method, max(quality, 0.01), halving.unpruned(number))
        if off > 0.3 and method.method == "full":
            trial.state, trial.quality = "collapsed", 0.0
        for step in _RUNGS:
            score = trial.quality * (0.62 + 0.3 * step / _STEPS) + noise * draw.normal()
            kept = search.halving is None or halving.decide(_STEPS, step, {number: score})[number]
            trial.rungs += [] if search.halving is None else [{"step": step, "score": score, "kept": kept}]
            if not kept:
                trial.state, trial.steps = "pruned", step
                break
        else:
            halving.ended(number, trial.quality)
        found.append(trial)
    return found


def _drawn(draw: np.random.Generator, of: Range | Choice) -> Any:
    if isinstance(of, Choice):
        return of.values[int(draw.integers(len(of.values)))]
    if of.whole:
        return int(draw.integers(int(of.low), int(of.high) + 1))
    if of.log:
        return float(f"{10 ** draw.uniform(math.log10(of.low), math.log10(of.high)):.4g}")
    return float(f"{draw.uniform(of.low, of.high):.4g}")


def _fail(trials: Sequence[_Trial]) -> None:
    """Two trials that may be pruned fail before they can be."""
    best = _winner(trials)
    others = [trial for trial in trials if not trial.unpruned and trial is not best]
    for trial, steps in zip(others, (600, 300), strict=False):
        trial.state, trial.steps, trial.rungs = "failed", steps, []
        trial.failure = f"The training loss became nan at step {steps}."


def _winner(trials: Sequence[_Trial]) -> _Trial:
    return max((each for each in trials if each.state == "finished"), key=lambda each: each.quality)


def _by_kind(drawn: Sequence[Sequence[_Trial]]) -> Iterator[tuple[str, list[_Trial]]]:
    """Kind of pack → its trials, the spaces in turn."""
    for kind in dict.fromkeys(trials[0].method.pack_kind for trials in drawn):
        spaces = [trials for trials in drawn if trials[0].method.pack_kind == kind]
        longest = max(map(len, spaces))
        yield kind, [trials[at] for at in range(longest) for trials in spaces if at < len(trials)]


def _scheduled(stem: str, kind: str, trials: Sequence[_Trial]) -> Iterator[tuple[_Trial, dict[str, Any]]]:
    """Each trial's pack, and when it was there; full runs have a pack each, others join as places become free."""
    free = [0] * _ROOM[kind]
    for at, trial in enumerate(trials):
        place = min(range(len(free)), key=lambda each: (free[each], each))
        joined, left = free[place], free[place] + trial.steps
        free[place] = left
        alone = kind == "full"
        yield (
            trial,
            {
                "pack": f"{stem}-{at}" if alone else stem,
                "joined": 0 if alone else joined,
                "left": trial.steps if alone else left,
                "began": joined * _TICK[kind],
                "ended": left * _TICK[kind],
            },
        )


def _record(study: Study, task: str, trial: _Trial, facts: Mapping[str, Any]) -> RunRecord:
    metric = get_task(task).primary_metric
    method, seconds = trial.method, (facts["ended"] - facts["began"]) / _ROOM[trial.method.pack_kind]
    scores = {"finished": trial.quality, "collapsed": 0.0, "failed": None}
    score = scores.get(trial.state, trial.rungs[-1]["score"] if trial.rungs else None)
    base, adapter = 22_713_216, 18_432 * getattr(method, "rank", 0)
    trained = {"full": base, "bitfit": 26_112, "lora": adapter}.get(method.method, 0) + 770
    return RunRecord.model_validate(
        {
            "run_id": f"{task}-{method.id_stem}-t{trial.number}",
            "study": study.name,
            "study_hash": study.hash,
            "task": task,
            "model": study.model,
            "method": method.method,
            "label": method.label,
            "hyperparameters": {**method.hyperparameters(), "training": study.training.model_dump(mode="json")},
            "selection": study.search.select if study.search else None,
            "seed": 1000 + trial.number,
            "state": trial.state,
            "failure": trial.failure,
            "primary_metric": metric,
            "best_score": score,
            "best_step": trial.steps,
            "scores": {metric: score},
            "epochs_done": 6 * trial.steps / _STEPS,
            "steps": trial.steps,
            "parameters": {"total": base + adapter + 770, "trainable": trained},
            "cost": {"train_seconds": 0.9 * seconds, "eval_seconds": 0.1 * seconds, "pack_size": 8},
            "provenance": {
                "data_fingerprint": "2a95597362003e9c",
                "started": _START,
                "finished": _START + timedelta(seconds=facts["ended"]),
            },
            "trial": {
                "space": trial.space.name,
                "number": trial.number,
                "settings": trial.values,
                "unpruned": trial.unpruned,
                "rungs": trial.rungs,
                "total_steps": _STEPS,
                **facts,
            },
        }
    )
