"""How fast packs train, beside transformers' Trainer and peft: one script for every figure of docs/performance.md.

    python benchmarks/speed.py compare growth memory start profile --data GLUE --out result.json
    python benchmarks/speed.py compare growth memory start profile --data GLUE --out result.json --resume
    python docs/make_performance.py    # the tables, of docs/results/speed-cpu.json and speed-cpu-avx2.json

The file is written after every measurement; --resume goes on with what it lacks.

Samples a second are those of training steps, after a warm-up, summed over the runs of a pack. What is compared runs in
turn, round by round, on the same machine, and the medians of the rounds are reported. Trainer trains the same runs one
after the other, in two ways:

- as in the study: fp32, every sentence padded to the longest of the data, 2 threads;
- at its best: bf16 where the hardware is fast at it, dynamic padding, batches grouped by length, fused AdamW, and the
  better of 1 and 2 threads.

A model without weights at hand: `--architecture FOLDER` (config.json and tokenizer) makes random ones of its shape.
A CPU with AVX-512 stands in for one with AVX2 alone: `ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
ATEN_CPU_CAPABILITY=avx2 MANYTUNE_KERNEL_TARGET=x86-64-v3 python benchmarks/speed.py … --precision fp32`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measured import Measurements, machine
from trainer_reference import Rows, build_model, collate, common_arguments
from transformers import AutoConfig, AutoModel, AutoTokenizer, PrinterCallback, Trainer, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from manytune.config import Study
from manytune.config.plan import Run, plan_packs, plan_runs
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel
from manytune.packing.kernels import choose_kernels, kernel_path
from manytune.packing.products import Product
from manytune.training.callbacks import PackCallback
from manytune.training.loop import train_pack
from manytune.training.workload import TaskWork, prepare
from manytune.utils import hardware

LORA = {"method": "lora", "rank": 8, "alpha": 8, "dropout": 0.1, "learning_rate": 1e-3}
WORK: dict[str, dict[str, Any]] = {
    "8 LoRA runs r=8, CoLA": {"tasks": ["cola"], "seeds": list(range(8)), "methods": [LORA]},
    "8 LoRA runs r=8, STS-B": {"tasks": ["stsb"], "seeds": list(range(8)), "methods": [LORA]},
    "8 BitFit runs, CoLA": {
        "tasks": ["cola"],
        "seeds": list(range(8)),
        "methods": [{"method": "bitfit", "learning_rate": 2e-3}],
    },
    "LoRA r = 2, 8, 64, 256, two seeds each, CoLA": {
        "tasks": ["cola"],
        "seeds": [0, 1],
        "methods": [{**LORA, "rank": [2, 8, 64, 256]}],
    },
    "full fine-tuning, one run, CoLA": {
        "tasks": ["cola"],
        "seeds": [0],
        "methods": [{"method": "full", "learning_rate": 5e-5}],
    },
}
"""The work compared: what of a study each is."""

METHODS: dict[str, dict[str, Any]] = {
    "lora r=8": LORA,
    "lora r=8, pissa": {**LORA, "init": "pissa"},
    "lora r=8, all-linear": {**LORA, "targets": "all-linear"},
    "lora r=8, layers top 2": {**LORA, "layers": "top 2"},
    "dora r=8": {"method": "dora", "rank": 8, "learning_rate": 1e-3},
    "dora r=8, dropout 0.1": {"method": "dora", "rank": 8, "dropout": 0.1, "learning_rate": 1e-3},
    "vera r=256": {"method": "vera", "learning_rate": 1e-2},
    "ia3": {"method": "ia3", "learning_rate": 1e-2},
    "adapter pfeiffer": {"method": "adapter", "learning_rate": 1e-3},
    "adapter houlsby": {"method": "adapter", "kind": "houlsby", "learning_rate": 1e-3},
    "ln-tuning": {"method": "ln-tuning", "learning_rate": 2e-3},
    "bitfit": {"method": "bitfit", "learning_rate": 2e-3},
    "head": {"method": "head", "learning_rate": 1e-2},
}
"""Packs of 8 runs on CoLA, whose speeds are compared."""

SIZES = {"cpu": (1, 2, 4, 8, 16, 32), "cuda": (1, 2, 4, 8, 16, 32, 64)}
WARM_UP = 5
"""Steps before the clock starts."""

GROUPED_STEPS, STUDY_STEPS = 50, 15
"""Timed steps of Trainer. Batches grouped by length come from stretches of 50, the longest first, so that fewer than
50 would be a choice of long ones; padded to one length, every step is like the other."""


@dataclass(frozen=True)
class Settings:
    """What every measurement shares."""

    model: str
    data: str | None
    device: torch.device
    steps: int
    rounds: int
    threads: int
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in: ours, and those of Trainer at its best."""
        return hardware.choose_dtype(self.precision, self.device)

    def study(self, what: dict[str, Any], steps: int) -> Study:
        training = {"batch_size": 16, "max_steps": steps, "max_length": 512, "weight_decay": 0.1, "warmup_steps": 2}
        shared = {"model": self.model, "data_dir": self.data, "training": {**training, "precision": self.precision}}
        return Study.model_validate({"name": "speed", **shared, **what})


@dataclass
class Clock(PackCallback):
    """Called by the training loop, or by Trainer; notes when steps end."""

    ends: list[float]
    at_warm: Callable[[], None]

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if len(self.ends) == WARM_UP - 1:
            self.at_warm()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """From the end of the warm-up to the last step."""
        return self.ends[-1] - self.ends[WARM_UP - 1]


class Bench:
    """Measures work of one kind, keeping loaded data and backbones."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._works: dict[str, TaskWork] = {}
        self._backbones: dict[int, Backbone] = {}

    def runs(self, what: dict[str, Any], steps: int) -> tuple[tuple[Run, ...], TaskWork, Backbone]:
        """The runs of some work, in the order of their pack, with their data and backbone."""
        study = self.settings.study(what, steps)
        (task,) = study.tasks
        if task not in self._works:
            self._works[task] = prepare(study, task)
        work = replace(self._works[task], study=study)
        outputs = work.task.num_outputs
        if outputs not in self._backbones:
            self._backbones[outputs] = load_backbone(study.model, outputs)
        (pack,) = plan_packs(plan_runs(study), 64)
        return pack.runs, work, self._backbones[outputs]

    def ours(self, what: dict[str, Any], at_warm: Callable[[], None] = lambda: None) -> float:
        """Samples a second of manytune's own loop; `at_warm` is called when the clock starts."""
        settings = self.settings
        steps = WARM_UP + settings.steps
        runs, work, backbone = self.runs(what, steps)
        torch.set_num_threads(settings.threads)
        hardware.keep_freed_memory()  # as `manytune run` does; Trainer has the advantage of it too from here on
        members = [Member(run.seed, work.adaptation(run)) for run in runs]
        model = PackedModel(backbone, members, dtype=settings.dtype, device=settings.device)
        data = work.pack_data(runs)
        few = tuple(rows[:16] for rows in data.select_rows)  # the evaluation at the end is not timed
        clock = Clock([], at_warm)
        data = type(data)(data.train, data.select, data.train_rows, few)
        train_pack(model, runs, work.task, data, work.study.training, clock)
        return 16 * len(runs) * settings.steps / clock.seconds

    def trainer(self, what: dict[str, Any], *, best: bool, threads: int) -> float:
        """Samples a second of Trainer, over the runs of the work one after the other; one run of each kind is timed."""
        timed = GROUPED_STEPS if best else STUDY_STEPS
        runs, work, _ = self.runs(what, WARM_UP + timed)
        kinds = list({run.label: run for run in runs}.values())
        torch.set_num_threads(threads)
        seconds = sum(self._train(run, work, WARM_UP + timed, best=best) for run in kinds)
        return 16 * len(kinds) * timed / seconds

    def _train(self, run: Run, work: TaskWork, steps: int, *, best: bool) -> float:
        clock = Clock([], lambda: None)

        class Steps(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.on_step_end("", 0, ())

        cpu = self.settings.device.type == "cpu"
        bf16 = best and self.settings.dtype == torch.bfloat16
        rows = Rows(work.train)
        longest = int((work.train.offsets[1:] - work.train.offsets[:-1]).max())
        with tempfile.TemporaryDirectory() as folder:
            set_seed(run.seed)
            trainer = Trainer(
                model=build_model(run, work),
                args=common_arguments(
                    folder,
                    run.seed,
                    per_device_train_batch_size=16,
                    max_steps=steps,
                    learning_rate=run.method.learning_rate,
                    weight_decay=0.1,
                    optim="adamw_torch_fused" if best else "adamw_torch",
                    train_sampling_strategy="group_by_length" if best else "random",
                    length_column_name="length",
                    bf16=bf16,
                    use_cpu=cpu,
                ),
                train_dataset=rows,
                data_collator=collate if best else padded_to(longest),
                callbacks=[Steps()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return clock.seconds

    def compare(self, kept: Measurements, only: str = "") -> None:
        """Every kind of work whose name has `only` in it: rounds of ours and of Trainer's two ways, in turn."""
        threads = (1, 2) if self.settings.device.type == "cpu" else (self.settings.threads,)
        rows = kept.begin("compare", [])
        for name, what in WORK.items():
            if only not in name:
                continue
            ways: dict[str, Callable[[], float]] = {
                "manytune": lambda what=what: self.ours(what),
                "study": lambda what=what: self.trainer(what, best=False, threads=self.settings.threads),
                **{
                    f"best, {count} threads": lambda what=what, count=count: self.trainer(
                        what, best=True, threads=count
                    )
                    for count in threads
                },
            }
            row = next((row for row in rows if row["work"] == name), None)
            if row is None:
                row = {"work": name, "samples_per_second": {}}
                rows.append(row)
            kept.in_turn(row["samples_per_second"], ways, self.settings.rounds)
            medians = {way: round(statistics.median(values), 1) for way, values in row["samples_per_second"].items()}
            print(f"{name}, samples/s: {medians}", flush=True)

    def growth(self, kept: Measurements) -> None:
        """Packs of LoRA r=8 on CoLA by size."""
        rounds = kept.begin("growth", {})

        def measure(size: int) -> float:
            return self.ours({"tasks": ["cola"], "seeds": list(range(size)), "methods": [LORA]})

        sizes = SIZES[self.settings.device.type]
        kept.in_turn(rounds, {str(size): partial(measure, size) for size in sizes}, self.settings.rounds)
        for size, values in rounds.items():
            print(f"pack of {size}: {statistics.median(values):.0f} samples/s", flush=True)

    def methods(self, kept: Measurements) -> None:
        """Packs of 8 runs on CoLA of every method."""
        rounds = kept.begin("methods", {})

        def measure(method: dict[str, Any]) -> float:
            return self.ours({"tasks": ["cola"], "seeds": list(range(8)), "methods": [method]})

        ways = {name: partial(measure, method) for name, method in METHODS.items()}
        kept.in_turn(rounds, ways, self.settings.rounds)
        for name, values in rounds.items():
            print(f"{name}: {statistics.median(values):.0f} samples/s", flush=True)

    def profile(self, kept: Measurements) -> None:
        """Where the time of a pack of 8 LoRA runs on CoLA goes, by kind of work, and what products alone could do.

        On a CPU alone: elsewhere a call returns before its work is done.
        """
        found = kept.begin("profile", {})
        if found:
            return
        kernels = type(choose_kernels(self.settings.device))
        kinds = {
            "products with frozen matrices": [(Product, "forward"), (Product, "backward")],
            "LoRA: its products and dropout, with its random numbers": [(kernels, "lora_"), (kernels, "lora_grad")],
            "attention, with its softmax and random numbers": [(kernels, "attention"), (kernels, "attention_grad")],
            "element-wise: residuals, norms, GELU, dropout with its random numbers": [
                (kernels, name)
                for name in ("residual_norm", "residual_norm_grad", "gelu", "gelu_grad_", "drop", "segment_sums")
            ],
            "optimizer": [(kernels, "adamw_")],
        }
        spent = dict.fromkeys(kinds, 0.0)
        operations, tokens = [0], [0]

        def timed(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                started = time.perf_counter()
                made = real(*given, **named)
                spent[kind] += time.perf_counter() - started
                if isinstance(given[0], Product):
                    operations[0] += 2 * len(given[1]) * given[0].weight.numel()
                    tokens[0] = max(tokens[0], len(given[1]))
                return made

            return call

        def reset() -> None:
            spent.update(dict.fromkeys(kinds, 0.0))
            operations[0] = 0

        steps = self.settings.steps
        what = {"tasks": ["cola"], "seeds": list(range(8)), "methods": [LORA]}
        with ExitStack() as stack:
            for kind, places in kinds.items():
                for owner, name in places:
                    stack.enter_context(patch.object(owner, name, timed(kind, getattr(owner, name))))
            step = 16 * 8 / self.ours(what, reset)
        milliseconds = {kind: 1e3 * seconds / steps for kind, seconds in spent.items()}
        milliseconds["rest: Python, autograd, embeddings, head, data"] = 1e3 * step - sum(milliseconds.values())
        ceiling = self.ceiling(tokens[0])
        found |= {
            "step_ms": 1e3 * step,
            "milliseconds": milliseconds,
            "operations": operations[0] / steps,
            "ceiling_per_second": ceiling,
            "share_of_ceiling": operations[0] / steps / ceiling / step,
        }
        kept.save()
        print(json.dumps(found, indent=2), flush=True)

    def ceiling(self, rows: int) -> float:
        """Floating-point operations a second of the encoder's largest product alone, the best of 30."""
        (_, _, backbone) = self.runs({"tasks": ["cola"], "seeds": [0], "methods": [LORA]}, 1)
        width = backbone.model.config.hidden_size
        dtype = self.settings.dtype
        product = Product(torch.randn(4 * width, width).to(dtype), choose_kernels(self.settings.device), frozen=True)
        x, best = torch.randn(rows, width).to(dtype), float("inf")
        for _ in range(30):
            started = time.perf_counter()
            product.forward(x)
            best = min(best, time.perf_counter() - started)
        return float(2 * x.numel() * 4 * width / best)

    def peak(self, who: str) -> int:
        """Peak memory of this process, in bytes, after some steps of one kind of work."""
        if who == "trainer":
            self.trainer(WORK["full fine-tuning, one run, CoLA"], best=True, threads=self.settings.threads)
        else:
            self.ours({"tasks": ["cola"], "seeds": list(range(16)), "methods": [LORA]})
        if self.settings.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return hardware.PeakMemory(self.settings.device).bytes() or 0


def padded_to(length: int) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """A collator that pads every batch to one length, as the study did."""

    def collator(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        wide = {
            name: torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]))
            for name, tensor in batch.items()
            if name != "labels"
        }
        return {**wide, "labels": batch["labels"]}

    return collator


def memory(kept: Measurements, arguments: Sequence[str]) -> None:
    """Peak memory of a pack of 16 LoRA runs and of one full run by Trainer, each in a process of its own."""
    peaks = kept.begin("memory", {})
    for who in ("trainer", "pack"):
        if who not in peaks:
            command = [sys.executable, __file__, "peak", *arguments, "--who", who]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[who] = int(done.stdout.strip().splitlines()[-1])
            kept.save()
    print(f"peak memory, bytes: {peaks}", flush=True)


def start(kept: Measurements, settings: Settings) -> None:
    """Seconds from the command `manytune run` on CoLA to its first step, caches warm: one start before is not kept."""
    found = kept.begin("start", [])
    for kind in ("colder", *(["warm"] * (settings.rounds - len(found)))):
        with tempfile.TemporaryDirectory() as folder:
            study = Path(folder) / "study.yaml"
            study.write_text(
                json.dumps(
                    settings.study({"tasks": ["cola"], "seeds": list(range(8)), "methods": [LORA]}, 1).model_dump(
                        mode="json", exclude_none=True, exclude_defaults=True
                    )
                )
            )
            code = (
                "import sys, time; from manytune import cli; from manytune.training import step\n"
                "def first(*a, **k):\n    print(time.time(), flush=True); sys.stdout.flush(); import os; os._exit(0)\n"
                "step.forward_backward = first\n"
                f"sys.argv = ['manytune', 'run', {str(study)!r}, '--out', {folder + '/out'!r}]\n"
                "cli.main()"
            )
            began = time.time()
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            seconds = float(done.stdout.strip().splitlines()[-1]) - began
            print(f"start to first step, {kind}: {seconds:.1f} s", flush=True)
            if kind == "warm":
                found.append(seconds)
                kept.save()


def random_weights(architecture: Path, folder: Path) -> str:
    """A model folder of an architecture, with random weights."""
    set_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(architecture)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(architecture).save_pretrained(folder)
    return str(folder)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", help="compare, growth, methods, memory, start, profile")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--architecture", type=Path, help="use random weights of the shape in this folder")
    parser.add_argument("--data", default=os.environ.get("MANYTUNE_GLUE_DIR"), help="local GLUE files")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each measurement of ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="compare only work with this in its name")
    parser.add_argument("--who", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a JSON file, written as it goes; parts that it has are begun anew")
    parser.add_argument("--resume", action="store_true", help="go on with what the file lacks instead")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model = random_weights(options.architecture, Path(folder)) if options.architecture else options.model
        device = hardware.choose_device(options.device)
        chosen = (options.data, device, options.steps, options.rounds, options.threads, options.precision)
        settings = Settings(model, *chosen)
        bench = Bench(settings)
        if options.parts == ["peak"]:
            print(bench.peak(options.who))
            return
        torch.set_num_threads(options.threads)
        facts = {
            "model": str(options.architecture or options.model),
            "threads": options.threads,
            "steps": options.steps,
            "kernels": kernel_path(device),
            "machine": machine(device, settings.dtype),
            "versions": {**hardware.versions(), "peft": __import__("peft").__version__},
            "commit": hardware.git_commit(),
        }
        kept = Measurements(options.out, facts, resume=options.resume)
        same = ["--model", model, "--device", device.type, "--steps", "10", "--threads", str(options.threads)]
        same += ["--precision", options.precision, *(["--data", options.data] if options.data else [])]
        measure: dict[str, Callable[[], None]] = {
            "compare": lambda: bench.compare(kept, options.only),
            "growth": lambda: bench.growth(kept),
            "methods": lambda: bench.methods(kept),
            "memory": lambda: memory(kept, same),
            "start": lambda: start(kept, settings),
            "profile": lambda: bench.profile(kept),
        }
        for part in options.parts:
            measure[part]()


if __name__ == "__main__":
    main()
