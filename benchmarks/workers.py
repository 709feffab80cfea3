"""Which is faster on this machine's cores: one process with all threads, or a process a core? And what a pack costs
beside its training.

    python benchmarks/workers.py --data GLUE --out docs/results/workers-cpu.json [--roberta FOLDER]

Each study trains on CoLA's sentences in the packs that the planner makes for it, with a dev set of 64 rows, so
that it is training that is timed: from the first pack's start to the last one's end. Rounds alternate; medians are
shown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from manytune.config import Study
from manytune.executors import Inline, OnRay, Resources, Workers
from manytune.executors.base import ExecutorSpec
from manytune.models.loading import locate
from manytune.study import run_study
from manytune.training.callbacks import Callback, PackEnd
from manytune.utils import hardware

CORES = len(os.sched_getaffinity(0))
LORA = {"method": "lora", "rank": 8, "learning_rate": 1e-3}
FULL = {"method": "full", "learning_rate": 2e-5}


class Clock(Callback):
    """When packs started and ended."""

    def __init__(self) -> None:
        self.started: list[float] = []
        self.ended: list[float] = []

    def on_train_begin(
        self, pack_id: str, task: str, metric: str, runs: Sequence[str], total_steps: int, first_step: int = 0
    ) -> None:
        self.started.append(time.perf_counter())

    def on_pack_end(self, end: PackEnd) -> None:
        self.ended.append(time.perf_counter())


def study(task: dict[str, Any], model: str, methods: list[dict[str, Any]], seeds: int, **training: Any) -> Study:
    settings = {"batch_size": 16, "max_length": 128, "eval_every": 10**6, **training}
    content = {"name": "workers", "model": model, "tasks": [task], "seeds": list(range(seeds))}
    return Study.from_dict({**content, "training": settings, "methods": methods})


def sentences(glue: Path, folder: Path) -> dict[str, Any]:
    """CoLA as a task of one's own."""
    for split, most in (("train", None), ("dev", 64)):
        lines = (glue / "CoLA" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[:most]
        rows = [{"label": line.split("\t")[1], "text": line.split("\t")[3]} for line in lines]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"train": str(folder / "train.jsonl"), "dev": str(folder / "dev.jsonl")}
    return {"name": "cola-sentences", **files, "text": "text", "label": "label", "labels": ["0", "1"]}


def timed(what: Study, executor: ExecutorSpec) -> Clock:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        result = run_study(what, Path(folder) / "out", executor=executor, callbacks=[clock])
    assert not result.failed, result.failed[0].failure
    return clock


def small_model(folder: Path, source: Path, **figures: Any) -> str:
    """Random weights of a given shape, with a real tokenizer: speed does not depend on what the weights are."""
    config = AutoConfig.from_pretrained(source)
    for name, value in figures.items():
        setattr(config, name, value)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def compare(task: dict[str, Any], models: dict[str, tuple[str, int, int]], rounds: int) -> list[dict[str, Any]]:
    executors: dict[str, ExecutorSpec] = {
        f"1 x {CORES} threads": Inline("cpu"),
        f"{CORES} x 1 thread": Workers(CORES, threads=1),
    }
    rows = []
    for name, (model, lora_steps, full_steps) in models.items():
        for work, methods, seeds, steps in (
            ("16 LoRA runs", [LORA], 16, lora_steps),
            (f"{CORES} full runs", [FULL], CORES, full_steps),
        ):
            seconds: dict[str, list[float]] = {each: [] for each in executors}
            for _ in range(rounds):
                for each, executor in executors.items():
                    clock = timed(study(task, model, methods, seeds, max_steps=steps), executor)
                    seconds[each].append(clock.ended[-1] - clock.started[0])
            medians = {each: statistics.median(values) for each, values in seconds.items()}
            one, many = medians.values()
            rows.append({"model": name, "work": work, "steps": steps, "seconds": seconds, "ratio": one / many})
            print(
                f"{name}, {work}: " + ", ".join(f"{k} {v:.1f} s" for k, v in medians.items()) + f": {one / many:.2f}x"
            )
    return rows


def overhead(task: dict[str, Any], model: str) -> dict[str, float]:
    """Seconds between a pack's end and the start of the next one's training, by where they train."""
    what = study(task, model, [{"method": "head", "learning_rate": 1e-3}], 12, max_steps=1, max_pack=1)
    found = {}
    executors = {"in this process": Inline("cpu"), "in a worker": Workers(1, threads=CORES)}
    if importlib.util.find_spec("ray"):
        executors["on Ray"] = OnRay(resources=Resources(cpu=CORES))
    for name, executor in executors.items():
        clock = timed(what, executor)
        gaps = [start - end for start, end in zip(clock.started[1:], clock.ended[:-1], strict=True)]
        found[name] = statistics.median(gaps)
    print("between two packs: " + ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in found.items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a GLUE folder with CoLA")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--roberta", type=Path, help="configuration and tokenizer of roberta-base")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = sentences(options.data, Path(folder))
        minilm = Path(locate("minilm").path)
        tiny = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
        models = {
            "BERT-tiny's shape (2 layers, 128)": (small_model(Path(folder) / "tiny", minilm, **tiny), 300, 300),
            "MiniLM (6 layers, 384)": ("minilm", 60, 120),
        }
        if options.roberta:
            roberta = small_model(Path(folder) / "roberta", options.roberta)
            models["roberta-base's shape (12 layers, 768)"] = (roberta, 6, 12)
        result = {
            "command": "python benchmarks/workers.py",
            "cores": CORES,
            "hardware": hardware.describe(torch.device("cpu")),
            "versions": hardware.versions(),
            "commit": hardware.git_commit(),
            "rounds": options.rounds,
            "overhead_seconds": overhead(task, models["BERT-tiny's shape (2 layers, 128)"][0]),
            "rows": compare(task, models, options.rounds),
        }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
