"""Study → runs → packs, and how many steps a run takes: pure functions.

A run's id says what it is and ends with a digest of everything that its result depends on, so it stays the
same when a study grows by a rank, a method, a task or a seed: `cola-lora-r8-lr4e-4-s0-3fa92c`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import TypeAdapter

from manytune.config import MEANS, OwnTask, Study, Training, digest
from manytune.methods import AnyMethod, PackKind
from manytune.utils.errors import StudyError

_adapter: Any = functools.cache(TypeAdapter)  # made on first use: it takes milliseconds that `--help` does not have


@dataclass(frozen=True)
class Run:
    """One (model, task, method with its hyper-parameters, seed)."""

    id: str  # safe as a file name: letters, digits, `.`, `_` and `-`
    model: str
    task: str
    method: AnyMethod
    seed: int

    @property
    def label(self) -> str:
        """What tells this run's method from the study's others: "lora r=8, lr 4e-4"."""
        return self.method.label


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


def plan_runs(study: Study) -> tuple[Run, ...]:
    """Every run of a study, by task, then method in the study's order, then seed.

    Raises StudyError where two entries under `methods` give the same run.
    """
    runs: dict[str, Run] = {}
    first: dict[str, int] = {}
    for task in study.task_names:
        # Without defaults, so that a setting which a later version adds does not rename the runs of earlier ones.
        shared = {
            "model": study.model,
            "task": _task_identity(study, task),
            "training": study.training.model_dump(mode="json", exclude=MEANS, exclude_defaults=True),
            "template": study.template,
            "selection": study.selection,
            **({} if (limit := study.limit_of(task)) is None else {"limit": limit}),
        }
        for index, sweep in enumerate(study.methods):
            for method in sweep.expand(task):
                given = {**method.model_dump(mode="json", exclude_defaults=True), "method": method.method}
                for seed in study.seeds:
                    end = digest({**shared, "method": given, "seed": seed}, 6)
                    run = Run(f"{task}-{method.id_stem}-s{seed}-{end}", study.model, task, method, seed)
                    if run.id in runs:
                        raise _repeated(runs[run.id], run, first[run.id], index)
                    runs[run.id], first[run.id] = run, index
    return tuple(runs.values())


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
        ordered = sorted(groups[task, kind], key=lambda run: (run.method.pack_order, run.seed, run.id))
        count = math.ceil(len(ordered) / (1 if kind == "full" else limit))
        ends = [part * len(ordered) // count for part in range(count + 1)]
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            part = tuple(ordered[start:end])
            packs.append(Pack(f"{task}-{kind}-{number}-{digest([run.id for run in part], 6)}", task, kind, part))
    return tuple(packs)


def smaller_packs(pack: Pack, ended: Container[str], batch_size: int) -> tuple[Pack, ...]:
    """The packs to try after memory ran out for one; `ended` holds the ids of runs that have a record.

    They are its two halves; where one run is left to train, the same pack with a smaller micro-batch that divides
    `batch_size`; none where the micro-batch is one row already.
    """
    left = [run for run in pack.runs if run.id not in ended]
    cut_from = pack.cut_from or len(pack.runs)
    if len(left) > 1:
        second = left[len(left) // 2 :]
        later = {run.id for run in second}
        first = [run for run in pack.runs if run.id not in later]
        return tuple(
            replace(pack, id=f"{pack.id}.{number}", runs=tuple(runs), cut_from=cut_from)
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
    """Packs as JSON values."""
    return _adapter(tuple[Pack, ...]).dump_python(tuple(packs), mode="json")


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
    files = {"train", "dev", "separator", "encoding"} if entry.hub is None else set()
    return {key: value for key, value in described.items() if key not in files or isinstance(value, float)}


def _repeated(one: Run, other: Run, first: int, second: int) -> StudyError:
    if one.method != other.method:
        return StudyError(
            f"Two runs of this study got the same id, {one.id}, by a rare chance. "
            f"Change methods.{second} in a trifle, such as its learning rate by 1 %."
        )
    return StudyError(
        f"methods.{first} and methods.{second} both come to the run {one.label!r} on {one.task}. "
        "Each run may be there once: drop it from one of them."
    )
