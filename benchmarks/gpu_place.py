"""What the steps of `gpu.py` share: where they run, what they train, and how they keep what they find."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from speed import Bench, Settings, random_weights
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from manytune.config.plan import Run
from manytune.packing import Member, PackedModel
from manytune.training.callbacks import PackCallback
from manytune.training.loop import PackData, train_pack
from manytune.training.outcome import Checkpoint
from manytune.utils import hardware
from manytune.utils.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
MINILM, ROBERTA = "minilm", "roberta-base"

LORA = {"method": "lora", "rank": 8, "alpha": 8, "dropout": 0.1, "learning_rate": 1e-3}
BITFIT = {"method": "bitfit", "learning_rate": 2e-3}
HEAD = {"method": "head", "learning_rate": 1e-2}
FULL = {"method": "full", "learning_rate": 5e-5}


class Enough(Exception):  # noqa: N818 - no error
    """Raised by a callback to end a training that has shown what it was for."""


def read_results(path: Path) -> dict[str, Any]:
    """The result file; without one, an empty result."""
    return json.loads(path.read_text()) if path.exists() else {"steps": {}}


@dataclass(frozen=True)
class Place:
    """Where a step runs; travels to its process as JSON."""

    step: str
    out: str  # folder of the results
    scratch: str  # folder of models and studies, which nobody keeps
    bundle: str | None  # folder of rows and models, see `gpu_bundle.py`
    device_name: str
    small: bool  # models of two layers and few cases, to try the steps on a CPU

    @property
    def device(self) -> torch.device:
        return hardware.choose_device(self.device_name)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def note(self, **row: Any) -> None:
        """Keep a row of results: in gpu.json, and as a line of gpu.txt."""
        path = Path(self.out, "gpu.json")
        kept = read_results(path)
        kept["steps"].setdefault(self.step, {}).setdefault("rows", []).append(row)
        write_atomically(path, json.dumps(kept, indent=1, default=str) + "\n")
        self.say("; ".join(f"{name}: {_shown(value)}" for name, value in row.items()))

    def say(self, text: str) -> None:
        print(f"[{self.step}] {text}", flush=True)

    @property
    def models(self) -> tuple[str, ...]:
        """Those that are here."""
        return tuple(name for name in (MINILM, ROBERTA) if self._source(name) is not None)

    def model(self, name: str, layers: int | None = None) -> str:
        """A folder with a model's weights: its own, or random ones of its shape, drawn once.

        With `layers`, or where all is `small`, it has fewer of them, and of random weights.
        """
        source = self._source(name)
        if source is None:
            raise SystemExit(
                f"The bundle {self.bundle} has no {name}/config.json: make it by benchmarks/gpu_bundle.py."
            )
        layers = layers or (2 if self.small else None)
        if layers is None and (source / "model.safetensors").exists():
            return str(source)
        folder = Path(self.scratch, f"{name}-{layers or 'whole'}")
        if not folder.exists():
            shape = Path(self.scratch, f"shape-{os.getpid()}")
            shape.mkdir()
            for file in source.iterdir():
                if file.suffix in (".json", ".txt"):
                    shutil.copyfile(file, shape / file.name)
            config = AutoConfig.from_pretrained(source)
            if layers is not None:
                config.num_hidden_layers = layers
            if self.small:
                config.hidden_size, config.num_attention_heads, config.intermediate_size = 64, 4, 128
            config.save_pretrained(shape)
            shutil.move(random_weights(shape, shape / "made"), folder)
            shutil.rmtree(shape)
        return str(folder)

    def _source(self, name: str) -> Path | None:
        folder = Path(self.bundle or ROOT.parent / "shared/models", name)
        return folder if (folder / "config.json").is_file() else None

    @property
    def glue(self) -> str | None:
        """The folder of GLUE's rows; None takes them from the hub."""
        return str(Path(self.bundle) / "glue") if self.bundle else os.environ.get("MANYTUNE_GLUE_DIR")

    def bench(self, model: str, precision: str = "auto") -> Bench:
        """CoLA for a model at a folder, as `speed.py` prepares it."""
        threads = torch.get_num_threads()
        return Bench(Settings(model, self.glue, self.device, 0, 1, threads, precision))

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def let_go(self) -> None:
        """Free what the last training held."""
        gc.collect()
        hardware.let_go_of_memory(self.device)
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()

    def manytune(self, *arguments: str | Path, code: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command, run to its end; `code` runs before it in its process."""
        command = [*self.command(code), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return done

    def command(self, code: str = "") -> list[str]:
        return [sys.executable, "-c", f"{code}\nfrom manytune.cli import main\nmain()"]

    @cached_property
    def environment(self) -> dict[str, str]:
        # Of one thread, a study on a CPU trains in the command's own process, as it does on a GPU.
        return {**os.environ, "COLUMNS": "120", **({} if self.is_cuda else {"OMP_NUM_THREADS": "1"})}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def what(*methods: Mapping[str, Any], seeds: int = 1) -> dict[str, Any]:
    """The part of a study that says what trains, on CoLA."""
    return {"tasks": ["cola"], "seeds": list(range(seeds)), "methods": [dict(method) for method in methods]}


@dataclass
class Kept(PackCallback):
    """Losses and tensors of a training at some of its steps; ends it after the last of them."""

    at: Sequence[int]  # steps, from 1
    losses: dict[int, list[float]] = field(default_factory=dict)
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.losses[step] = list(losses)

    def should_checkpoint(self, step: int) -> bool:
        return step in self.at

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        if checkpoint.step in self.at:
            tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
            self.checkpoints[checkpoint.step] = Checkpoint(checkpoint.runs, tensors, 0.0)
        if checkpoint.step >= max(self.at):
            raise Enough


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    runs: tuple[Run, ...]
    losses: dict[int, list[float]]  # step → the loss of each run
    start: dict[str, Tensor]  # the bank's tensors before the first step
    checkpoints: dict[int, Checkpoint]
    head: frozenset[str]  # names of the head's tensors

    def vector(self, run: int, part: str, step: int, *, head: bool | None = None) -> Tensor:
        """[n] a run's tensors end to end after a step: `value` as moved since the start, or a moment.

        Of the head alone, of the others alone, or (None) of all.
        """
        found = self.checkpoints[step].tensors_of(run)
        before = Checkpoint(self.checkpoints[step].runs, self.start, 0.0).tensors_of(run)
        names = [name for name, parts in sorted(found.items()) if "exp_avg" in parts]
        names = [name for name in names if head is None or (name in self.head) is head]
        parts = [found[name][part] - (before[name][part] if part == "value" else 0.0) for name in names]
        return torch.cat([each.flatten() for each in parts] or [torch.empty(0)])


def train(
    bench: Bench, work: Mapping[str, Any], at: Sequence[int], device: torch.device, only: int | None = None
) -> Trained:
    """Train the runs of some work, or one of them alone, on a device; keep what they are at some steps.

    Rates are constant, and nothing warms up: so the first step moves what trains.
    """
    settings = {"batch_size": 16, "max_steps": 10_000, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.1}
    precision = bench.settings.precision
    runs, prepared, backbone = bench.runs({**work, "training": {**settings, "precision": precision}}, 0)
    runs = runs if only is None else runs[only : only + 1]
    dtype = hardware.choose_dtype(precision, device)
    members = [Member(run.seed, prepared.adaptation(run)) for run in runs]
    model = PackedModel(backbone, members, dtype=dtype, device=device)
    data = few_to_score(prepared.pack_data(runs))
    start = {name: tensor.clone() for name, tensor in model.bank.dump().items()}
    kept = Kept(at)
    with suppress(Enough):
        train_pack(model, runs, prepared.task, data, prepared.study.training, kept)
    return Trained(runs, kept.losses, start, kept.checkpoints, frozenset(prepared.model_spec.head.shapes()))


def few_to_score(data: PackData) -> PackData:
    """The same rows to train on, and a batch to score."""
    few = tuple(rows[:16] for rows in data.select_rows)
    return PackData(data.train, data.select, data.train_rows, few)


def relative_error(ours: Tensor, wanted: Tensor) -> float:
    """‖ours − wanted‖ / ‖wanted‖ in fp64; 0 for two zeros, infinite for what is not finite."""
    ours, wanted = ours.detach().cpu().double(), wanted.detach().cpu().double()
    if not bool(ours.isfinite().all()):
        return float("inf")
    size = float(wanted.norm())
    difference = float((ours - wanted).norm())
    return difference / size if size else difference


def quiet() -> None:
    """Without transformers' bars and warnings."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found
