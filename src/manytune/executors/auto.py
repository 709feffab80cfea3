"""How many processes of this machine train a study for which the user chose no executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from manytune.config.plan import Run, plan_packs
from manytune.executors import estimate
from manytune.executors.base import ExecutorSpec
from manytune.executors.inline import Inline
from manytune.executors.workers import Workers
from manytune.storage.directory import Store
from manytune.training.workload import TaskWork
from manytune.utils import hardware

STARTUP_SECONDS = 10.0  # until worker processes are ready
_PRODUCTS_PER_SECOND = 2e11  # of one thread; assumed, not measured: noise must not decide how many threads there are


def best_executor(device: str, runs: Sequence[Run], works: Mapping[str, TaskWork]) -> ExecutorSpec:
    """This process, or workers that share its threads: whichever is expected to end the study first.

    On two cores, two processes of one thread train packs as fast as one process of two threads; packs of a single run
    are 1.3 (BERT-tiny), 1.2 (MiniLM) and 0.75 (roberta-base) times as fast (docs/performance.md). Each process takes
    time to start, and more memory. The choice is the same at every start.
    """
    threads = torch.get_num_threads()
    if hardware.choose_device(device).type != "cpu" or threads < 2 or not runs:
        return Inline(device)
    counts = [2**power for power in range(threads.bit_length()) if threads % 2**power == 0]
    best = min(counts, key=lambda count: _seconds(count, threads // count, runs, works))
    return Workers(best, threads // best) if best > 1 else Inline(device)


def kept_executor(store: Store, device: str) -> ExecutorSpec | None:
    """Where packs trained before, because another number of threads rounds differently; None if that is not kept."""
    kept = store.read_executor()
    if kept is None or device not in ("auto", "cpu"):
        return None
    return Workers(kept["count"], kept["threads"]) if kept["count"] else Inline(device)


def _seconds(count: int, threads: int, runs: Sequence[Run], works: Mapping[str, TaskWork]) -> float:
    """Seconds until the study is expected to end with `count` processes; infinite where memory does not suffice."""
    cpu = torch.device("cpu")
    dtype = hardware.choose_dtype(next(iter(works.values())).study.training.precision, cpu)
    profile = estimate.HardwareProfile(
        "cpu", dtype, hardware.free_memory(cpu) // count, threads * _PRODUCTS_PER_SECOND, threads
    )
    packs = plan_packs(runs, estimate.largest_packs(runs, works, profile, count))
    if count > 1:
        most = max(estimate.estimate_pack(works[pack.task], pack, profile).memory_bytes for pack in packs)
        if most > estimate.SHARE_OF_MEMORY * profile.free_bytes:
            return float("inf")
    return estimate.makespan(estimate.seconds_of(packs, works, profile), count) + (
        STARTUP_SECONDS if count > 1 else 0.0
    )
