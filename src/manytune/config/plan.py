"""Study → runs → packs, and how many steps a run takes: pure functions.

A run's id says what it is and ends with a digest of everything that its result depends on, so it stays the
same when a study grows by a rank, a method, a task or a seed: `cola-lora-r8-lr4e-4-s0-3fa92c`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import TypeAdapter

from manytune.config import MEANS, OwnTask, Study, Training, digest
from manytune.config.spaces import concrete
from manytune.config.training_settings import TWO_FORMS
from manytune.methods import AnyMethod, Method, PackKind
from manytune.utils.errors import StudyError

_EITHER = {*TWO_FORMS, *TWO_FORMS.values()}
_adapter: Any = functools.cache(TypeAdapter)  # made on first use: it takes milliseconds that `--help` does not have


@dataclass(frozen=True)
class Run:
    """One (model, task, method with its hyper-parameters, seed)."""

    id: str  # safe as a file name: letters, digits, `.`, `_` and `-`
    model: str
    task: str
    method: AnyMethod
    seed: int
    # How it trains, where that is not as the study says; precision, max_length, checkpoint_every and max_pack are the
    # study's all the same
    training: Training | None = None
    # Names of the training settings that are not as the study says; None where all are
    apart: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """What tells this run from the study's others, but for its seed: "lora r=8, lr 4e-4, epochs 10"."""
        own = ((name, getattr(self.training, name)) for name in self.apart or ())
        # Of a setting in two forms, the one that is given.
        said = ((name, value) for name, value in own if value is not None or name not in _EITHER)
        return ", ".join([self.method.label, *(f"{name} {_word(value)}" for name, value in said)])


@dataclass(frozen=True)
class Pack:
    """Runs of one task that train together over one copy of the backbone."""

    id: str  # safe as a file name
    task: str
    kind: PackKind
    runs: tuple[Run, ...]
    # Rows of one run that are computed at once, where memory did not suffice for its whole batch
    micro_batch: int | None = None
    # How many runs the planned pack had that this is a part of, where memory did not suffice for it
    cut_from: int | None = None
    # How many runs train at once; the others join, in their order, as runs leave. None: all at once
    room: int | None = None
    # In a search: how many runs are expected to train in it in all; they join and leave as the driver orders
    expected: int | None = None

    @property
    def size(self) -> int:
        """How many runs train together at most."""
        most = len(self.runs) if self.expected is None else self.expected
        return min(self.room or most, most)


def plan_runs(study: Study) -> tuple[Run, ...]:
    """Every run of a study, by task, then method in the study's order, then seed; none of a search, which draws them.

    Raises StudyError where two entries under `methods` give the same run.
    """
    runs: dict[str, Run] = {}
    first: dict[str, int] = {}
    for task in study.task_names if study.search is None else ():
        for index, sweep in enumerate(study.methods):
            for settings in sweep.combinations(task):
                method, training = concrete(sweep.method, settings, study.training)
                for run in make_runs(study, task, method, training, study.seeds):
                    if run.id in runs:
                        raise _repeated(runs[run.id], run, first[run.id], index)
                    runs[run.id], first[run.id] = run, index
    return tuple(runs.values())


def make_runs(
    study: Study, task: str, method: Method, training: Training | None, seeds: Iterable[int]
) -> Iterator[Run]:
    """The runs of one method on one task; `training` is given where it is not the study's."""
    own = training or study.training
    # Without defaults, so that a setting which a later version adds does not rename the runs of earlier ones.
    shared = {
        "model": study.model,
        "task": _task_identity(study, task),
        "training": own.model_dump(mode="json", exclude=MEANS, exclude_defaults=True),
        "template": study.template,
        "selection": study.selection,
        **({} if (limit := study.limit_of(task)) is None else {"limit": limit}),
        "method": {**method.model_dump(mode="json", exclude_defaults=True), "method": method.method},
    }
    apart = [name for name in Training.model_fields if getattr(own, name) != getattr(study.training, name)]
    for seed in seeds:
        name = f"{task}-{method.id_stem}-s{seed}-{digest({**shared, 'seed': seed}, 6)}"
        yield Run(name, study.model, task, method, seed, training, tuple(apart) or None)


def plan_packs(runs: Iterable[Run], most: int | Mapping[str, int]) -> tuple[Pack, ...]:
    """Put runs that can share a backbone into as few packs as possible, whose sizes differ by at most one.

    A pack holds runs of one task and one kind, at most `most` (or task → how many); a full run is alone. Within a task
    and kind the runs are sorted by their methods' `pack_order` and by seed, so that equal groups lie side by side.
    """
    limits = most.values() if isinstance(most, Mapping) else (most,)
    if any(limit < 1 for limit in limits):
        raise ValueError(f"a pack must hold at least 1 run, not {min(limits)}")
    groups: dict[tuple[str, PackKind], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.task, run.method.pack_kind), []).append(run)
    position = {task: index for index, task in enumerate(dict.fromkeys(task for task, _ in groups))}
    order = sorted(groups, key=lambda group: (position[group[0]], get_args(PackKind).index(group[1])))
    packs = []
    for task, kind in order:
        limit = most[task] if isinstance(most, Mapping) else most
        ordered = sorted(groups[task, kind], key=pack_position)
        count = math.ceil(len(ordered) / (1 if kind == "full" else limit))
        ends = [part * len(ordered) // count for part in range(count + 1)]
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            part = tuple(ordered[start:end])
            packs.append(Pack(f"{task}-{kind}-{number}-{digest([run.id for run in part], 6)}", task, kind, part))
    return tuple(packs)


def pack_position(run: Run) -> Any:
    """Sorts the runs of a pack: equal groups lie side by side."""
    return run.method.pack_order, run.seed, run.id


def smaller_packs(pack: Pack, ended: Container[str], batch_size: int) -> tuple[Pack, ...]:
    """The packs to try after memory ran out for one; `ended` holds the ids of runs that have a record.

    They are its two halves; where one run is left to train, or runs train one by one, the same pack with a smaller
    micro-batch that divides `batch_size`; none where the micro-batch is one row already.
    """
    left = [run for run in pack.runs if run.id not in ended]
    cut_from = pack.cut_from or pack.size
    if pack.expected is not None and pack.room is not None and pack.room > 1:
        # Its trials begin anew: they join by order, and what they were in the larger pack does not fit.
        return (replace(pack, id=f"{pack.id}.1", runs=(), room=math.ceil(pack.room / 2), cut_from=cut_from),)
    if min(len(left), pack.size) > 1:
        room = None if pack.room is None else math.ceil(pack.size / 2)
        # Of a pack that runs join, those that are in it now, and those that wait, are shared out alike.
        second = left[len(left) // 2 :] if room is None else left[1::2]
        later = {run.id for run in second}
        first = [run for run in pack.runs if run.id not in later]
        return tuple(
            replace(pack, id=f"{pack.id}.{number}", runs=tuple(runs), cut_from=cut_from, room=room)
            for number, runs in enumerate((first, second), 1)
        )
    now = pack.micro_batch or batch_size
    micro = next((rows for rows in range(now // 2, 0, -1) if batch_size % rows == 0), None)
    if micro is None:
        return ()
    stem = pack.id.removesuffix(f".m{pack.micro_batch}")
    return (replace(pack, id=f"{stem}.m{micro}", micro_batch=micro, cut_from=cut_from),)


def replan(packs: Iterable[Pack], runs: Iterable[Run], most: int | Mapping[str, int]) -> tuple[Pack, ...]:
    """The packs of a study that was changed and now has these `runs`.

    A pack of which every run is still there stays as it was planned; the other runs get new packs, by `plan_packs`.
    """
    wanted = {run.id: run for run in runs}
    kept = tuple(pack for pack in packs if all(run.id in wanted for run in pack.runs))
    placed = {run.id for pack in kept for run in pack.runs}
    return kept + plan_packs([run for run in wanted.values() if run.id not in placed], most)


def packs_to_json(packs: Iterable[Pack]) -> Any:
    """Packs as JSON values; what few packs and runs have is left out where it is None."""
    values = _adapter(tuple[Pack, ...]).dump_python(tuple(packs), mode="json")
    for entry, name in ((entry, name) for pack in values for entry, name in _optional(pack)):
        if entry[name] is None:
            del entry[name]
    return values


def _optional(pack: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    yield pack, "room"
    yield pack, "expected"
    yield from ((run, name) for run in pack["runs"] for name in ("training", "apart"))


def runs_to_json(runs: Iterable[Run]) -> Any:
    """Runs as JSON values."""
    return _adapter(tuple[Run, ...]).dump_python(tuple(runs), mode="json")


def runs_from_json(values: Any) -> tuple[Run, ...]:
    """What `runs_to_json` made; raises ValueError where it is something else."""
    runs: tuple[Run, ...] = _adapter(tuple[Run, ...]).validate_python(values)
    return runs


def packs_from_json(values: Any) -> tuple[Pack, ...]:
    """What `packs_to_json` made; raises ValueError where it is something else."""
    packs: tuple[Pack, ...] = _adapter(tuple[Pack, ...]).validate_python(values)
    return packs


def steps_per_epoch(n: int, batch_size: int, accumulate: int = 1) -> int:
    """Optimizer steps in one pass over `n` training samples: the partial last batch counts, as in Trainer."""
    if n < 1:
        raise ValueError(f"there must be at least 1 training sample, not {n}")
    return math.ceil(math.ceil(n / batch_size) / accumulate)


def total_steps(training: Training, n: int) -> int:
    """Optimizer steps of a run on `n` training samples: max_steps, or ceil(epochs x steps per epoch)."""
    if training.max_steps is not None:
        return training.max_steps
    assert training.epochs is not None  # Training ensures that one of the two is there
    return math.ceil(training.epochs * steps_per_epoch(n, training.batch_size, training.accumulate))


def warmup_steps(training: Training, total: int) -> int:
    """Optimizer steps of warm-up in a run of `total` steps: warmup_steps, or ceil(warmup_ratio x total)."""
    if training.warmup_ratio is not None:
        return math.ceil(training.warmup_ratio * total)
    return training.warmup_steps or 0


@dataclass(frozen=True)
class EvaluationSteps:
    """The optimizer steps, counted from 1, after which runs are evaluated: each multiple of `every`, and `total`.

    It reads like a list (`step in steps`, `len(steps)`, `steps[0]`) that takes no memory: a study may have a billion.
    """

    every: int
    total: int

    def __contains__(self, step: int) -> bool:
        return step == self.total or (0 < step < self.total and step % self.every == 0)

    def __len__(self) -> int:
        return (self.total - 1) // self.every + 1

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} evaluations, and no number {index}")
        return min((index + 1) * self.every, self.total)


def evaluation_steps(training: Training, steps_per_epoch: int, total: int) -> EvaluationSteps:
    """The optimizer steps after which runs are evaluated."""
    return EvaluationSteps(steps_per_epoch if training.eval_every == "epoch" else int(training.eval_every), total)


def _task_identity(study: Study, name: str) -> Any:
    """A task's part of its runs' ids: its name; of a user's own, its description without the paths of its files.

    So a file that was moved, or saved in another encoding, renames no run; its contents are compared by fingerprint
    elsewhere.
    """
    entry = dict(zip(study.task_names, study.tasks, strict=True))[name]
    if not isinstance(entry, OwnTask):
        return name
    described = entry.model_dump(mode="json", exclude_defaults=True)
    files = {"train", "dev", "separator", "encoding", "test"} if entry.hub is None else {"test"}
    return {key: value for key, value in described.items() if key not in files or isinstance(value, float)}


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_word, value))
    if value is None:
        return "none"
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _repeated(one: Run, other: Run, first: int, second: int) -> StudyError:
    if (one.method, one.training) != (other.method, other.training):
        return StudyError(
            f"Two runs of this study got the same id, {one.id}, by a rare chance. "
            f"Change methods.{second} in a trifle, such as its learning rate by 1 %."
        )
    return StudyError(
        f"methods.{first} and methods.{second} both come to the run {one.label!r} on {one.task}. "
        "Each run may be there once: drop it from one of them."
    )
