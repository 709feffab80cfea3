"""What a study would do, without doing it: runs, packs, parameters, steps; roughly time, memory and disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table

from manytune.config import Study
from manytune.config.plan import Pack, plan_packs, plan_runs
from manytune.executors import best_executor
from manytune.executors.base import ExecutorSpec
from manytune.executors.estimate import PackEstimate, estimate_pack, largest_packs, makespan
from manytune.methods import ParameterCount
from manytune.models.loading import check_weights
from manytune.report.views import MANY, percent, plain_table
from manytune.training.workload import TaskWork, prepare
from manytune.utils.text import counted, duration


def render_dry_run(study: Study, device: str, executor: ExecutorSpec | None = None) -> Iterator[RenderableType]:
    """Tables and a sum; data and tokenizer are loaded and checked, weights are not.

    Raises what a real start would raise before it trains.
    """
    runs = plan_runs(study)
    works = {name: prepare(study, name) for name in study.task_names}
    check_weights(study.model)
    executor = best_executor(device, runs, works) if executor is None else executor
    capacity, profile = executor.profile(study.training.precision, next(iter(works.values())).width)
    packs = plan_packs(runs, largest_packs(runs, works, profile, capacity))
    estimates = [(pack, estimate_pack(works[pack.task], pack, profile)) for pack in packs]
    planned = f"{counted(len(runs), 'run')} in {counted(len(packs), 'pack')}"
    at_once = f", {capacity} at once" if capacity > 1 else ""
    dtype = str(profile.dtype).removeprefix("torch.")
    yield f"{study.name}: {planned}{at_once} on {profile.device} in {dtype}; nothing is trained.\n"
    for work in works.values():
        yield _data_line(work)
        task_runs = [run for run in runs if run.task == work.task.name]
        yield from (f"  {text}" for text in (*work.notes, *work.warnings(task_runs)))
    yield _run_table(estimates)
    yield _pack_table(estimates)
    seconds = makespan((estimate.seconds for _, estimate in estimates), capacity)
    memory = sum(sorted((estimate.memory_bytes for _, estimate in estimates), reverse=True)[:capacity])
    disk = sum(estimate.disk_bytes for _, estimate in estimates)
    yield f"In all about {duration(seconds)}, {decimal(memory)} of memory and {decimal(disk)} on disk."


def _data_line(work: TaskWork) -> str:
    train, dev = work.train, work.dev
    rows = f"{work.rows_used} to train on"
    if held_out := train.size - work.train_size:
        rows = f"{counted(work.train_size, 'row')} to train on, {held_out:,} held out to select by"
        rows += "" if work.limited_from is None else f" (the limit: {work.rows_used})"
    lengths = f"{train.lengths.mean():.1f} tokens on average, {train.lengths.max():,} at most"
    return f"{work.task.name}: {rows}, {counted(dev.size, 'dev row')}; {lengths}; from {work.sources[0]}"


def _run_table(estimates: Sequence[tuple[Pack, PackEstimate]]) -> Table:
    """A line a run, or, of more than a hundred, a line a method."""
    runs = [pair for pack, estimate in estimates for pair in zip(pack.runs, estimate.parameters, strict=True)]
    sizes = ("total", "trainable", "of all")
    if len(runs) <= MANY:
        each = [(run.id, run.task, run.label, run.seed, *_sizes(count)) for run, count in runs]
        return plain_table(("run", "task", "method", "seed", *sizes), each, title="Runs")
    alike = Counter((run.task, run.method, count) for run, count in runs)
    rows = [(task, method.label, number, *_sizes(count)) for (task, method, count), number in alike.items()]
    return plain_table(("task", "method", "runs", *sizes), rows, title="Runs")


def _sizes(count: ParameterCount) -> tuple[int, int, str]:
    return count.total, count.trainable, percent(count.trainable, count.total)


def _pack_table(estimates: Sequence[tuple[Pack, PackEstimate]]) -> Table:
    """A line a pack, or, of more than a hundred, a line for those of one task that train alike."""
    groups: dict[object, list[tuple[Pack, PackEstimate]]] = {}
    for pack, estimate in estimates:
        key = pack.id if len(estimates) <= MANY else (pack.task, pack.kind, len(pack.runs))
        groups.setdefault(key, []).append((pack, estimate))
    title = "Packs (time and memory are rough estimates)"
    columns = ("pack", "runs", "steps", "evaluations", "tokens", "time", "memory", "disk")
    return plain_table(columns, map(_pack_row, groups.values()), title=title)


def _pack_row(packs: Sequence[tuple[Pack, PackEstimate]]) -> tuple[object, ...]:
    (pack, first), several = packs[0], [estimate for _, estimate in packs]
    return (
        pack.id if len(packs) == 1 else f"{pack.task}-{pack.kind}: {len(packs):,} packs, each as",
        len(pack.runs),
        first.steps,
        first.evaluations,
        first.tokens,
        duration(max(estimate.seconds for estimate in several)),
        decimal(max(estimate.memory_bytes for estimate in several)),
        decimal(max(estimate.disk_bytes for estimate in several)),
    )
