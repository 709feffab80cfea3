"""What a study would do, without doing it: runs, packs, parameters, steps, and rough time, memory and disk."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.filesize import decimal

from manytune import hardware
from manytune.config import Study
from manytune.estimate import PackEstimate, estimate_pack
from manytune.plan import Pack, plan_packs, plan_runs
from manytune.report.views import duration, plain_table
from manytune.workload import prepare

__all__ = ["render_dry_run"]


def render_dry_run(study: Study, device: str) -> Iterator[RenderableType]:
    """Tables and a sum; data and tokenizer are loaded and checked, weights are not.

    Raises:
        ManytuneError: What a real start would raise before it trains.
    """
    chosen = hardware.choose_device(device)
    runs = plan_runs(study)
    packs = plan_packs(runs, study.training.max_pack)
    works = {name: prepare(study, name) for name in study.tasks}
    estimates = [(pack, estimate_pack(works[pack.task], pack, chosen)) for pack in packs]
    dtype = str(hardware.choose_dtype(study.training.precision, chosen)).removeprefix("torch.")
    yield f"{study.name}: {len(runs)} runs in {len(packs)} packs on {chosen.type} in {dtype}; nothing is trained.\n"
    for work in works.values():
        train, dev = work.train, work.dev
        yield (
            f"{work.task.name}: {work.train_size} of {train.size} train rows train, mean {train.lengths.mean():.1f} "
            f"and at most {train.lengths.max()} tokens; {dev.size} dev rows; from {work.sources[0]}"
        )
        yield from (
            f"  {text}"
            for text in (*work.notes, *work.warnings([r for r in runs if r.task == work.task.name]))
        )
    yield plain_table(
        ("run", "task", "method", "seed", "total", "trainable", "%"),
        [
            (
                run.id,
                run.task,
                run.label,
                run.seed,
                count.total,
                count.trainable,
                f"{count.trainable / count.total:.2%}",
            )
            for pack, estimate in estimates
            for run, count in zip(pack.runs, estimate.parameters, strict=True)
        ],
        title="Runs",
    )
    yield plain_table(
        ("pack", "runs", "steps", "evaluations", "tokens", "time", "memory", "disk"),
        [_pack_row(pack, estimate) for pack, estimate in estimates],
        title="Packs (time and memory are rough estimates)",
    )
    seconds = sum(estimate.seconds for _, estimate in estimates)
    memory = max(estimate.memory_bytes for _, estimate in estimates)
    disk = sum(estimate.disk_bytes for _, estimate in estimates)
    yield f"In all about {duration(seconds)}, {decimal(memory)} of memory and {decimal(disk)} on disk."


def _pack_row(pack: Pack, estimate: PackEstimate) -> tuple[object, ...]:
    return (
        pack.id,
        len(pack.runs),
        estimate.steps,
        estimate.evaluations,
        estimate.tokens,
        duration(estimate.seconds),
        decimal(estimate.memory_bytes),
        decimal(estimate.disk_bytes),
    )
