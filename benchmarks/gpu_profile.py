"""The step `profile` of `gpu.py`: what one training step launches, copies and waits for, and how busy the device is."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_place import LORA, Enough, Place, few_to_score, what
from torch.autograd import DeviceType

from manytune.packing import Member, PackedModel
from manytune.training.callbacks import PackCallback
from manytune.training.loop import train_pack

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
CALLS = {
    "graph_launches": ("cudaGraphLaunch",),
    "captures": ("cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphInstantiateWithFlags"),
    "copies": ("cudaMemcpyAsync", "cudaMemcpy"),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    "allocations": ("cudaMalloc", "cudaHostAlloc", "cudaFree"),
}
"""Name of a figure → calls of CUDA's runtime that it counts."""

WARM_UP, STEPS, WATCHED = 50, 20, 3


@dataclass
class Stages(PackCallback):
    """Warms up, profiles some steps, then has torch warn at every wait for the device in a few more."""

    place: Place
    profiler: Any
    waits: list[str] = field(default_factory=list)

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        warm, steps = (2, 2) if self.place.small else (WARM_UP, STEPS)
        if step == warm:
            self.place.synchronize()
            self.profiler.start()
        elif step == warm + steps:
            self.place.synchronize()
            self.profiler.stop()
            if not self.place.is_cuda:
                raise Enough
            torch.cuda.set_sync_debug_mode("warn")
        elif step == warm + steps + WATCHED:
            torch.cuda.set_sync_debug_mode("default")
            raise Enough

    def note_wait(self, message: Any, *_: Any, **__: Any) -> None:
        """Take the place of `warnings.showwarning`."""
        if "synchroniz" in str(message):
            frames = [
                f for f in traceback.extract_stack() if "manytune" in f.filename and "benchmarks" not in f.filename
            ]
            self.waits.append(
                " < ".join(f"{f.filename.rpartition('manytune/')[2]}:{f.lineno}" for f in reversed(frames))
            )


def profile(place: Place) -> None:
    """Packs of 1 and of 32 LoRA runs."""
    for model in place.models:
        bench = place.bench(place.model(model))
        for size in (1, 2) if place.small else (1, 32):
            runs, prepared, backbone = bench.runs(what(LORA, seeds=size), 10_000)
            members = [Member(run.seed, prepared.adaptation(run)) for run in runs]
            packed = PackedModel(backbone, members, dtype=bench.settings.dtype, device=place.device)
            # On a GPU its runtime's calls and its kernels alone: noting every operation of torch would slow steps down.
            kind = torch.profiler.ProfilerActivity.CUDA if place.is_cuda else torch.profiler.ProfilerActivity.CPU
            stages = Stages(place, torch.profiler.profile(activities=[kind]))
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = stages.note_wait
                data = few_to_score(prepared.pack_data(runs))
                with suppress(Enough):
                    train_pack(packed, runs, prepared.task, data, prepared.study.training, stages)
            steps = 2 if place.small else STEPS
            place.note(model=model, runs=size, **figures(stages.profiler.events(), steps, place.is_cuda))
            for stack, count in Counter(stages.waits).most_common(12):
                place.note(model=model, runs=size, waits_a_step=count / WATCHED, where=stack)
            del packed
            place.let_go()


def figures(events: Iterable[Any], steps: int, on_cuda: bool) -> dict[str, Any]:
    """What a step comes to, from the profiler's events of so many."""
    host, device = [], []
    for event in events:
        (device if event.device_type == DeviceType.CUDA else host).append(event)
    timed = device if on_cuda else host
    spent: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in timed:
        spent[event.name] += event.time_range.elapsed_us() if on_cuda else event.self_cpu_time_total
        counts[event.name] += 1
    calls = Counter(event.name for event in host)
    spans = [(event.time_range.start, event.time_range.end) for event in [*host, *device]]
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    busy = covered((event.time_range.start, event.time_range.end) for event in device)
    top = [f"{us / steps:.1f} µs in {counts[name] / steps:.1f}: {name[:110]}" for name, us in spent.most_common(20)]
    return {
        "ms_per_step": whole / steps / 1e3,
        "busy_share": busy / whole if device else None,
        "device_ms_per_step": busy / steps / 1e3 if device else None,
        "kernels_per_step": len([e for e in device if not e.name.startswith(("Memcpy", "Memset"))]) / steps,
        "launches_per_step": sum(calls[name] for name in LAUNCHES) / steps,
        **{f"{figure}_per_step": sum(calls[name] for name in names) / steps for figure, names in CALLS.items()},
        "copies_by_kind_per_step": {n: c / steps for n, c in counts.items() if n.startswith(("Memcpy", "Memset"))},
        "top": top,
    }


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
