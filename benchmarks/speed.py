"""How fast packs train, beside transformers' Trainer and peft: one script for every figure of docs/performance.md.

    python benchmarks/speed.py compare growth memory start profile --data GLUE --out result.json
    python benchmarks/speed.py show result.json
    python benchmarks/speed.py picture result.json growth.svg

Samples a second are those of training steps, after a warm-up, summed over the runs of a pack. What is compared
runs in turn, round by round, on the same machine, and the medians of the rounds are reported. Trainer trains the same
runs one after the other, in two ways:

- as in the study: fp32, every sentence padded to the longest of the data, 2 threads;
- at its best: bf16 where the hardware is fast at it, dynamic padding, batches grouped by length, fused AdamW, and the
  better of 1 and 2 threads.

A model without weights at hand: `--architecture FOLDER` (config.json and tokenizer) makes random ones of its shape.
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
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from trainer_reference import Rows, build_model, collate, common_arguments
from transformers import AutoConfig, AutoModel, AutoTokenizer, Trainer, TrainerCallback, set_seed
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

    def study(self, what: dict[str, Any], steps: int) -> Study:
        training = {"batch_size": 16, "max_steps": steps, "max_length": 512, "weight_decay": 0.1, "warmup_steps": 2}
        return Study.model_validate(
            {"name": "speed", "model": self.model, "data_dir": self.data, "training": training, **what}
        )


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
        dtype = hardware.choose_dtype("auto", settings.device)
        members = [Member(run.seed, work.adaptation(run)) for run in runs]
        model = PackedModel(backbone, members, dtype=dtype, device=settings.device)
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
        bf16 = best and hardware.choose_dtype("auto", self.settings.device) == torch.bfloat16
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
            trainer.train()
        return clock.seconds

    def compare(self, only: str = "") -> list[dict[str, Any]]:
        """Every kind of work whose name has `only` in it: rounds of ours and of Trainer's two ways, in turn."""
        threads = (1, 2) if self.settings.device.type == "cpu" else (self.settings.threads,)
        found = []
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
            rounds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(self.settings.rounds):
                for way, measure in ways.items():
                    rounds[way].append(measure())
            best = max((way for way in ways if way.startswith("best")), key=lambda way: statistics.median(rounds[way]))
            medians = {way: statistics.median(values) for way, values in rounds.items()}
            row = {
                "work": name,
                "samples_per_second": rounds,
                "over_study": medians["manytune"] / medians["study"],
                "over_best": medians["manytune"] / medians[best],
                "best_way": best,
            }
            found.append(row)
            print(f"{name}: {medians}, {row['over_study']:.1f}x study, {row['over_best']:.2f}x best", flush=True)
        return found

    def growth(self) -> list[dict[str, Any]]:
        """Packs of LoRA r=8 on CoLA by size."""
        sizes = SIZES[self.settings.device.type]
        rounds: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(self.settings.rounds):
            for size in sizes:
                rounds[size].append(self.ours({"tasks": ["cola"], "seeds": list(range(size)), "methods": [LORA]}))
        found = [{"runs": size, "samples_per_second": values} for size, values in rounds.items()]
        for row in found:
            print(f"pack of {row['runs']}: {statistics.median(row['samples_per_second']):.0f} samples/s", flush=True)
        return found

    def profile(self) -> dict[str, Any]:
        """Where the time of a pack of 8 LoRA runs on CoLA goes, by kind of work, and what products alone could do.

        On a CPU alone: elsewhere a call returns before its work is done.
        """
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
        found = {
            "step_ms": 1e3 * step,
            "milliseconds": milliseconds,
            "operations": operations[0] / steps,
            "ceiling_per_second": ceiling,
            "share_of_ceiling": operations[0] / steps / ceiling / step,
        }
        print(json.dumps(found, indent=2), flush=True)
        return found

    def ceiling(self, rows: int) -> float:
        """Floating-point operations a second of the encoder's largest product alone, the best of 30."""
        (_, _, backbone) = self.runs({"tasks": ["cola"], "seeds": [0], "methods": [LORA]}, 1)
        width = backbone.model.config.hidden_size
        dtype = hardware.choose_dtype("auto", self.settings.device)
        product = Product(torch.randn(4 * width, width).to(dtype), frozen=True)
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


def memory(arguments: Sequence[str]) -> dict[str, Any]:
    """Peak memory of a pack of 16 LoRA runs and of one full run by Trainer, each in a process of its own."""
    peaks = {}
    for who in ("trainer", "pack"):
        command = [sys.executable, __file__, "peak", *arguments, "--who", who]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[who] = int(done.stdout.strip().splitlines()[-1])
    found = {**peaks, "ratio": peaks["pack"] / peaks["trainer"]}
    print(f"memory: {found}", flush=True)
    return found


def start(settings: Settings) -> list[float]:
    """Seconds from the command `manytune run` on CoLA to its first step, caches warm."""
    found = []
    for _ in range(settings.rounds + 1):
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
                "import sys, time; from manytune import cli; from manytune.training import loop\n"
                "def first(*a, **k):\n    print(time.time(), flush=True); sys.stdout.flush(); import os; os._exit(0)\n"
                "loop._forward_backward = first\n"
                f"sys.argv = ['manytune', 'run', {str(study)!r}, '--out', {folder + '/out'!r}]\n"
                "cli.main()"
            )
            began = time.time()
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            found.append(float(done.stdout.strip().splitlines()[-1]) - began)
    print(f"start to first step: {found[1:]} s (first, colder: {found[0]:.1f})", flush=True)
    return found[1:]


def random_weights(architecture: Path, folder: Path) -> str:
    """A model folder of an architecture, with random weights."""
    set_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(architecture)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(architecture).save_pretrained(folder)
    return str(folder)


def show(path: Path) -> None:
    """The tables of docs/performance.md, from a result file."""
    result = json.loads(path.read_text())
    print("| work | manytune | Trainer, study | ratio | Trainer, best | ratio |\n|---|---|---|---|---|---|")
    for row in result.get("compare", ()):
        ours, study, best = (
            statistics.median(row["samples_per_second"][way]) for way in ("manytune", "study", row["best_way"])
        )
        ratios = row["over_study"], row["over_best"]
        print(f"| {row['work']} | {ours:.0f} | {study:.0f} | {ratios[0]:.1f} | {best:.0f} | {ratios[1]:.2f} |")
    print("\n| runs in the pack | samples/s |\n|---|---|")
    for row in result.get("growth", ()):
        print(f"| {row['runs']} | {statistics.median(row['samples_per_second']):.0f} |")
    profile = result.get("profile")
    if profile:
        print("\n| kind of work | ms a step | share |\n|---|---|---|")
        for kind, spent in profile["milliseconds"].items():
            print(f"| {kind} | {spent:.1f} | {spent / profile['step_ms']:.0%} |")
        ceiling, share = profile["ceiling_per_second"] / 1e9, profile["share_of_ceiling"]
        print(f"\nproducts alone: {ceiling:.0f} GFLOP/s; share of it that a step reaches: {share:.0%}")
    for name in ("memory", "start", "hardware", "versions", "kernels", "commit", "command"):
        print(f"\n{name}: {result.get(name)}")


def picture(result: Path, target: Path) -> None:
    """Samples a second by the number of runs in a pack, beside Trainer's at its best."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "manytune"  # the same bytes from the same figures
    import matplotlib.pyplot as plt

    found = json.loads(result.read_text())
    sizes = [row["runs"] for row in found["growth"]]
    speeds = [statistics.median(row["samples_per_second"]) for row in found["growth"]]
    trainer = next(row for row in found["compare"] if row["work"] == next(iter(WORK)))
    best = statistics.median(trainer["samples_per_second"][trainer["best_way"]])
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot(sizes, speeds, "o-", color="#0072b2", label="manytune, all runs of the pack together")
    axes.axhline(best, color="#b35900", linestyle="--", label="Trainer + peft at its best, one run after the other")
    for size, speed in zip(sizes, speeds, strict=True):
        axes.annotate(f"{speed:.0f}", (size, speed), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(xlabel="LoRA runs (r = 8) in one pack, CoLA", ylabel="samples a second", ylim=(0, 1.15 * max(speeds)))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "compare, growth, memory, start, profile; or: show FILE; or: picture FILE SVG"
    parser.add_argument("parts", nargs="+", help=what)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--architecture", type=Path, help="use random weights of the shape in this folder")
    parser.add_argument("--data", default=os.environ.get("MANYTUNE_GLUE_DIR"), help="local GLUE files")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each measurement of ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="compare only work with this in its name")
    parser.add_argument("--who", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a JSON file; parts that it has already are replaced")
    options = parser.parse_args()
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.parts[0] == "show":
        show(Path(options.parts[1]))
        return
    if options.parts[0] == "picture":
        picture(*map(Path, options.parts[1:]))
        return
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model = random_weights(options.architecture, Path(folder)) if options.architecture else options.model
        device = hardware.choose_device(options.device)
        settings = Settings(model, options.data, device, options.steps, options.rounds, options.threads)
        bench = Bench(settings)
        if options.parts == ["peak"]:
            print(bench.peak(options.who))
            return
        same = ["--model", model, "--device", device.type, "--steps", "10", "--threads", str(options.threads)]
        measure: dict[str, Callable[[], Any]] = {
            "compare": lambda: bench.compare(options.only),
            "growth": bench.growth,
            "memory": lambda: memory([*same, *(["--data", options.data] if options.data else [])]),
            "start": lambda: start(settings),
            "profile": bench.profile,
        }
        result = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
        for part in options.parts:
            result[part] = measure[part]()
        result |= {
            "model": str(options.architecture or options.model),
            "device": device.type,
            "threads": options.threads,
            "kernels": kernel_path(device),
            "hardware": hardware.describe(device),
            "versions": {**hardware.versions(), "peft": __import__("peft").__version__},
            "commit": hardware.git_commit(),
            "load_at_end": os.getloadavg(),
        }
        if options.out:
            options.out.write_text(json.dumps(result, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
