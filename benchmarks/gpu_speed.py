"""Steps of `gpu.py` that time training: ours by the size of the pack, Trainer's with peft alone and several at once.

Both train on the same rows with batches of 16 drawn at random, dropout 0.1, clipping at 1.0, bf16 as `auto` has it, and
AdamW in fp32. Nothing is synchronized between the two ends of the timed steps, and nothing is evaluated or logged.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_place import BITFIT, FULL, LORA, MINILM, ROBERTA, Enough, Place, few_to_score, quiet, what
from trainer_reference import Rows, build_model, collate, common_arguments
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from manytune.packing import Member, PackedModel
from manytune.packing.kernels import kernel_path
from manytune.training.callbacks import PackCallback
from manytune.training.loop import train_pack
from manytune.utils import hardware

BATCH = 16
METHODS: dict[str, dict[str, Any]] = {"LoRA r=8": LORA, "BitFit": BITFIT, "full": FULL}
CELLS = [
    *(("LoRA r=8", size) for size in (1, 8, 32, 16, 64, 4, 2)),
    *(("BitFit", size) for size in (8, 1, 32)),
    ("full", 1),
]
"""Work and the runs of its pack, what matters most first."""
FEW = [("LoRA r=8", 1), ("LoRA r=8", 8), ("LoRA r=8", 32), ("BitFit", 8), ("full", 1)]
SMALL = [("LoRA r=8", 1), ("LoRA r=8", 2), ("full", 1)]


@dataclass
class Stopwatch:
    """Notes when steps end; the device is waited for where the timed steps begin and where they end.

    The warm-up ends after `warm` steps, or earlier once those after the tenth took `seconds`; the timed steps after
    `timed`, or earlier once they took `seconds` and were 8.
    """

    place: Place
    warm: int = 150
    timed: int = 100
    seconds: float = 3.0
    at_warm: Callable[[], None] = lambda: None
    ends: list[float] = field(
        default_factory=list
    )  # of the timed steps, as the host sees them; first the warm-up's end
    steps: int = 0
    _began: float = 0.0

    @classmethod
    def of(cls, place: Place, **changes: Any) -> Stopwatch:
        few = {"warm": 2, "timed": 4, "seconds": 1.0} if place.small else {}
        return cls(place, **{**changes, **few})

    def tick(self) -> bool:
        """A step has ended; returns whether it was the last one."""
        self.steps += 1
        now = time.perf_counter()
        if self.steps in (1, 10):  # compiling kernels, before the tenth, is not what the limit is for
            self._began = now
        if not self.ends:
            if self.steps >= self.warm or (self.steps > 10 and now - self._began > self.seconds):
                self.place.synchronize()
                self.at_warm()
                self.place.synchronize()
                self.ends.append(time.perf_counter())
            return False
        self.ends.append(now)
        done = len(self.ends) - 1
        if done < self.timed and not (done >= 8 and now - self.ends[0] > self.seconds):
            return False
        self.place.synchronize()
        self.ends[-1] = time.perf_counter()
        return True

    def found(self, runs: int) -> dict[str, Any]:
        """Samples a second of all runs, and what single steps took as the host saw them."""
        steps = len(self.ends) - 1
        seconds = self.ends[-1] - self.ends[0]
        single = sorted(1e3 * (b - a) for a, b in zip(self.ends, self.ends[1:], strict=False))
        return {
            "samples_per_second": BATCH * runs * steps / seconds,
            "ms_per_step": 1e3 * seconds / steps,
            "median_step_ms": single[len(single) // 2],
            "slowest_step_ms": single[-1],
            "timed_steps": steps,
            "warm_up_steps": self.steps - steps,
            "peak_bytes": torch.cuda.max_memory_allocated() if self.place.is_cuda else None,
        }


@dataclass
class Ticking(PackCallback):
    """Ends a training when its watch says so."""

    watch: Stopwatch

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        if self.watch.tick():
            raise Enough


def timed_pack(place: Place, bench: Any, work: Mapping[str, Any], watch: Stopwatch) -> dict[str, Any]:
    """Time manytune's own loop."""
    runs, prepared, backbone = bench.runs(work, 10_000)
    hardware.keep_freed_memory()
    members = [Member(run.seed, prepared.adaptation(run)) for run in runs]
    model = PackedModel(backbone, members, dtype=bench.settings.dtype, device=place.device)
    data = few_to_score(prepared.pack_data(runs))
    with suppress(Enough):
        train_pack(model, runs, prepared.task, data, prepared.study.training, Ticking(watch))
    return watch.found(len(runs))


def ours(place: Place) -> None:
    _ours(place, SMALL if place.small else CELLS)


def ours_few(place: Place) -> None:
    _ours(place, SMALL if place.small else FEW)


def _ours(place: Place, cells: Sequence[tuple[str, int]]) -> None:
    graphs = ", graphs" if place.is_cuda and os.environ.get("MANYTUNE_CUDA_GRAPHS") == "1" else ""
    benches = {name: place.bench(place.model(name)) for name in place.models}
    for work, size in cells:
        for name, bench in benches.items():
            facts = {"model": name, "work": work, "runs": size, "kernels": kernel_path(place.device) + graphs}
            try:
                found = timed_pack(place, bench, what(METHODS[work], seeds=size), Stopwatch.of(place))
            except Exception as error:  # a size that fails costs no other
                found = {"failed": f"{type(error).__name__}: {error}"[:1000]}
            place.note(**facts, **found)
            place.let_go()


def timed_trainer(
    place: Place, model: str, work: str, watch: Stopwatch, compile_mode: str | None = None, length: int | None = None
) -> dict[str, Any]:
    """Time Trainer on one run, at its best: bf16, dynamic padding, fused AdamW.

    With a `compile_mode` the model is compiled by torch; with a `length` rows are padded to that many tokens.
    """
    bench = place.bench(place.model(model))
    runs, prepared, _ = bench.runs(what(METHODS[work]), 10_000)

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = watch.tick()

    def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        more = (0, max((length or 0) - batch["input_ids"].shape[1], 0))
        return {k: torch.nn.functional.pad(v, more) if v.dim() == 2 else v for k, v in batch.items()}

    compiled: dict[str, Any] = {}
    if compile_mode is not None:
        torch._dynamo.reset()  # else what earlier models left counts towards the limit of compilations
        compiled = {"torch_compile": True, "torch_compile_mode": compile_mode}
    with tempfile.TemporaryDirectory() as folder:
        set_seed(0)
        trainer = Trainer(
            model=build_model(runs[0], prepared),
            args=common_arguments(
                folder,
                0,
                per_device_train_batch_size=BATCH,
                max_steps=10_000,
                learning_rate=runs[0].method.learning_rate,
                weight_decay=0.1,
                max_grad_norm=1.0,
                optim="adamw_torch_fused",
                logging_nan_inf_filter=False,  # it would wait for the device at every step
                train_sampling_strategy="random",
                bf16=bench.settings.dtype == torch.bfloat16,
                use_cpu=not place.is_cuda,
                **compiled,
            ),
            train_dataset=Rows(prepared.train),
            data_collator=padded,
            callbacks=[Steps()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch.found(1)


def _noted(place: Place, model: str, work: str, way: str, watch: Stopwatch, **how: Any) -> None:
    try:
        found = timed_trainer(place, model, work, watch, **how)
    except Exception as error:  # compilation may not work; that is a result too
        found = {"failed": f"{type(error).__name__}: {error}"[:1000]}
    place.note(model=model, work=work, way=way, processes=1, **found)
    place.let_go()


def trainer(place: Place) -> None:
    """One run of each kind by Trainer and peft, without compilation."""
    for work in METHODS if not place.small else ("LoRA r=8",):
        for model in place.models:
            _noted(place, model, work, "eager", Stopwatch.of(place))


def trainer_compiled(place: Place) -> None:
    """The same compiled: with dynamic shapes, and as CUDA graphs with every row padded to one length.

    Compilation falls into the warm-up.
    """
    for work in ("LoRA r=8", "full", "BitFit"):
        for model in reversed(place.models):
            slow = {"warm": 60, "timed": 60, "seconds": 40.0}
            _noted(place, model, work, "compiled", Stopwatch.of(place, **slow), compile_mode="default")
            watch = Stopwatch.of(place, **slow)
            _noted(place, model, work, "graphs", watch, compile_mode="reduce-overhead", length=_longest(place, model))


def _longest(place: Place, model: str) -> int:
    _, prepared, _ = place.bench(place.model(model)).runs(what(LORA), 1)
    return int(prepared.train.lengths.max())


def trainers(place: Place) -> None:
    """Several processes of Trainer at once on the device: the sum of their speeds, while all of them train."""
    model = ROBERTA if ROBERTA in place.models else MINILM
    for count in (2,) if place.small else (4, 8):
        for name in (model,) if place.small or model == MINILM else (model, MINILM):
            place.model(name)
            place.note(model=name, work="LoRA r=8", way="eager", processes=count, **_at_once(place, name, count))


def _at_once(place: Place, model: str, count: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(count), context.Queue()
    children = [context.Process(target=_one_of, args=(place, model, count, gate, results)) for _ in range(count)]
    for child in children:
        child.start()
    found = [results.get(timeout=100) for _ in children]
    for child in children:
        child.join()
    if failed := [each for each in found if isinstance(each, str)]:
        return {"failed": failed[0]}
    return {"samples_per_second": sum(found), "each": found}


def _one_of(place: Place, model: str, count: int, gate: Any, results: Any) -> None:
    """One of several processes: it is timed from when all are warm."""
    quiet()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    try:
        watch = Stopwatch.of(place, at_warm=lambda: gate.wait(timeout=120), seconds=60.0)
        results.put(timed_trainer(place, model, "LoRA r=8", watch)["samples_per_second"])
    except BaseException as error:
        gate.abort()
        results.put(f"{type(error).__name__}: {error}"[:1000])
