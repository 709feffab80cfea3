"""Kill a pack of ten runs with room for four at chosen moments, let it go on each time, and compare its end.

    python tests/faults/joined_pack.py record:2 step:6 roster:3 checkpoint:4

A child process trains the runs, of different lengths, batches and methods, of which one fails and one stops early; it
is killed by SIGKILL after so many ticks, before a roster is written, after a checkpoint, after a record. Each moment
counts from the start of its process. The last process is left alone.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a child of a process that has threads may hang

import json
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from manytune import Callback
from manytune.config import Study
from manytune.config.plan import Pack, plan_runs
from manytune.executors import Inline
from manytune.executors.driver import Driver
from manytune.executors.pack_inputs import Backbones, PackInputs
from manytune.storage.directory import Store
from manytune.training import checkpoints
from manytune.training.workload import prepare
from study_files import results_in, small_study, small_task
from tiny import make_tiny

ROOM = 4
CHANGES: Sequence[dict[str, Any]] = (
    {"max_steps": 9},
    {"max_steps": 17, "batch_size": 5},
    {"max_steps": 4},
    {"max_steps": 12, "accumulate": 2, "batch_size": 3, "schedule": "cosine"},
    {},
    {"early_stopping": 1, "max_steps": 20},
    {"max_steps": 5, "eval_every": 2},
    {},
    {"max_steps": 3},
    {"max_steps": 11, "weight_decay": 0.2},
)
"""What each run's training has of its own."""


def study(model: Path, task: dict[str, Any]) -> Study:
    """Ten runs; that with the absurd rate fails."""
    return small_study(
        model,
        tasks=[task],
        seeds=[0],
        training={"max_steps": 8, "eval_every": 4, "batch_size": 8, "checkpoint_every": 3, "precision": "fp32"},
        methods=[
            {"method": "lora", "rank": [2, 4], "dropout": 0.1, "learning_rate": [1e-3, 3e-3, 1e-12]},
            {"method": "lora", "rank": 2, "learning_rate": 1e30},
            {"method": "bitfit", "learning_rate": [1e-3, 3e-3, 1e-2]},
        ],
    )


class Killed(Callback):
    """Kills its own process at the n-th moment of a kind."""

    def __init__(self, moment: str) -> None:
        self.kind, _, number = moment.partition(":")
        self.left = int(number or 0)

    def reached(self, kind: str) -> None:
        if kind == self.kind:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        assert len(losses) <= ROOM
        self.reached("step")

    def on_checkpoint(self, pack_id: str, step: int) -> None:
        self.reached("checkpoint")

    def on_run_end(self, pack_id: str, record: Any) -> None:
        self.reached("record")


def train(what: Study, out: Path, moment: str) -> None:
    """Train what has not ended, in this process."""
    torch.set_num_threads(1)
    killed = Killed(moment)
    write = checkpoints.write_atomically

    def write_or_die(path: Path, text: str) -> None:
        killed.reached("roster")
        write(path, text)

    checkpoints.write_atomically = write_or_die
    store = Store.create_or_open(out, what)
    (task,) = what.task_names
    runs = [
        replace(run, training=what.training.model_copy(update=change))
        for run, change in zip(plan_runs(what), CHANGES, strict=True)
    ]
    pack = Pack("queue", task, "adapters", tuple(runs), room=ROOM)
    store.write_plan([pack])
    backbones = Backbones(what.model)
    inputs = PackInputs(store.root, {task: prepare(what, task, backbones.spec)}, backbones)
    ended = set(store.finished_runs())
    assert len(ended) < len(runs), "there is nothing left to train"
    Driver(inputs, [pack], ended, killed).train(Inline("cpu"), [pack])


def run(what: Study, out: Path, moment: str) -> int | None:
    """Train in a child process; returns its exit code."""
    child = multiprocessing.get_context("fork").Process(target=train, args=(what, out, moment))
    child.start()
    child.join()
    return child.exitcode


def campaign(moments: Sequence[str], folder: Path) -> dict[str, Any]:
    """How many runs ended, the kills that happened, and the files that differ from those of an undisturbed pack."""
    what = study(make_tiny(folder / "model"), small_task(folder))
    assert run(what, folder / "undisturbed", "none") == 0
    wanted = results_in(folder / "undisturbed")
    codes = [run(what, folder / "killed", moment) for moment in (*moments, "none")]
    found = results_in(folder / "killed")
    return {
        "records": sum(name.endswith("record.json") for name in wanted),
        "states": sorted(value["state"] for name, value in wanted.items() if name.endswith("record.json")),
        "steps": sorted(value["steps"] for name, value in wanted.items() if name.endswith("record.json")),
        "codes": codes,
        "differing": sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(campaign(sys.argv[1:], Path(temporary))))
