"""What joining and leaving costs: runs of different lengths through a continuous pack, beside a full static pack.

    python benchmarks/continuous.py --data GLUE --out docs/results/continuous-cpu.json

The continuous pack has room for 8 of 24 LoRA runs, of which each joins as soon as another leaves. The static pack has 8
runs of one length, so it is full to its end. Samples a second are those of all runs over the time of their steps,
joining and leaving included; evaluation and checkpoints are apart. `full` is until no run waits any more: after that
the continuous pack empties, as any pack whose runs differ in length does.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measured import Measurements, machine
from speed import LORA, Bench, Settings

from manytune.config.plan import Run, pack_position
from manytune.packing import Member, PackedModel
from manytune.packing.kernels import kernel_path
from manytune.training import loop
from manytune.training.callbacks import PackCallback
from manytune.training.live_run import Entry, WaitingRuns
from manytune.training.loop import PackData, train_pack
from manytune.utils import hardware

RUNS, ROOM, BATCH = 24, 8, 16
WARM_UP = 5
"""Ticks before the clock starts."""


@dataclass
class Clock(PackCallback):
    """The seconds of each tick, with joining and leaving, without evaluation and checkpoints; and its runs."""

    ends: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    apart: float = 0.0

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.ends.append(time.perf_counter() - self.apart)
        self.sizes.append(len(losses))

    def outside(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time does not count."""

        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return real(*given, **named)
            finally:
                self.apart += time.perf_counter() - began

        return call

    def samples_per_second(self, ticks: int) -> float:
        """Of the ticks after the warm-up, up to so many."""
        return BATCH * sum(self.sizes[WARM_UP:ticks]) / (self.ends[ticks - 1] - self.ends[WARM_UP - 1])


def lengths(steps: int) -> list[int]:
    """Optimizer steps of each run: from a third of `steps` to five thirds, in a fixed random order."""
    found = [steps // 3 + round(number * steps * 4 / 3 / (RUNS - 1)) for number in range(RUNS)]
    random.Random(0).shuffle(found)
    return found


def measure(bench: Bench, counts: Sequence[int], steps: int) -> dict[str, float]:
    """Train runs of so many steps in a pack with room for `ROOM`."""
    settings = bench.settings
    what = {"tasks": ["cola"], "seeds": list(range(len(counts))), "methods": [LORA]}
    planned, work, backbone = bench.runs(what, steps)
    training = work.study.training
    runs = [
        replace(run, training=training.model_copy(update={"max_steps": count}))
        for run, count in zip(planned, counts, strict=True)
    ]
    torch.set_num_threads(settings.threads)
    hardware.keep_freed_memory()
    data = work.pack_data(runs[:1])
    few = data.select_rows[0][:16]

    def entry(run: Run) -> Entry:
        assert run.training is not None
        return Entry(run, Member(run.seed, work.adaptation(run)), run.training, data.train_rows[0], few)

    first = [entry(run) for run in sorted(runs[:ROOM], key=pack_position)]
    model = PackedModel(backbone, [each.member for each in first], dtype=settings.dtype, device=settings.device)
    rows = PackData(data.train, data.select, data.train_rows * len(first), (few,) * len(first))
    clock, source = Clock(), WaitingRuns(runs[ROOM:], entry)
    evaluate, checkpoint = loop.evaluate, loop._LivePack.checkpoint
    with (
        patch.object(loop, "evaluate", clock.outside(evaluate)),
        patch.object(loop._LivePack, "checkpoint", clock.outside(checkpoint)),
    ):
        own = [each.training for each in first]
        train_pack(model, [each.run for each in first], work.task, rows, own, clock, None, "pack", source, ROOM)
    full = sum(size == ROOM for size in clock.sizes)
    return {"full": clock.samples_per_second(full), "whole": clock.samples_per_second(len(clock.ends))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="a folder of GLUE's files; None takes CoLA from the hub")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--steps", type=int, default=45, help="optimizer steps of a run, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    device = hardware.choose_device("cpu")
    settings = Settings(
        options.model, options.data, device, options.steps, options.rounds, options.threads, options.precision
    )
    bench = Bench(settings)
    counts = lengths(options.steps)
    facts = {
        "model": options.model,
        "threads": options.threads,
        "lengths": counts,
        "room": ROOM,
        "kernels": kernel_path(device),
        "machine": machine(device, settings.dtype),
        "versions": hardware.versions(),
        "commit": hardware.git_commit(),
    }
    kept = Measurements(options.out, facts, resume=False)
    found = kept.begin("samples_per_second", {"static": [], "continuous": []})
    for _ in range(options.rounds):
        found["static"].append(measure(bench, [options.steps] * ROOM, options.steps)["full"])
        found["continuous"].append(measure(bench, counts, options.steps))
        kept.save()
    for part in ("full", "whole"):
        shares = [own[part] / static for own, static in zip(found["continuous"], found["static"], strict=True)]
        kept.parts.setdefault("shares", {})[part] = shares
        print(f"{part}: {statistics.median(shares):.1%} of the static pack's samples/s", flush=True)
    kept.save()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
