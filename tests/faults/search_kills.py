"""Kill a search at random moments, let it go on each time, and compare its end with that of one never disturbed.

    python tests/faults/search_kills.py --kills 200 --out docs/results/faults/search-kills.json

A child process runs the search and the training of its winners; it is killed by SIGKILL at a random line of the
journal (before it, after half of it, or after it), step, checkpoint, record, or writing of the plan or the winners.
When the study has ended it is compared, and the next one begins, until there were enough kills.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a child of a process that has threads may hang

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from optuna.storages.journal import JournalFileBackend

from manytune import Callback
from manytune.config import Study
from manytune.executors import Inline
from manytune.storage.directory import Store
from manytune.study import run_study
from study_files import results_in, small_task
from tiny import make_tiny

MOMENTS = {
    "step": 150,
    "evaluation": 40,
    "room": 12,
    "checkpoint": 40,
    "record": 18,
    "journal": 150,
    "half a line": 150,
    "after a line": 150,
    "plan": 12,
}
"""What a child may be killed at → the most of them that it may see before, about as many as a search has."""


def study(model: Path, task: dict[str, Any]) -> Study:
    """Three spaces of five trials; rates up to absurd ones, at which some fail or collapse."""
    return Study.from_dict(
        {
            "name": "killed-search",
            "model": str(model),
            "tasks": [task],
            "training": {"epochs": 3, "batch_size": 8, "eval_every": 3, "checkpoint_every": 4, "precision": "fp32"}
            | {"max_pack": 3},
            "methods": [
                {"method": "full", "learning_rate": {"low": 1e-4, "high": 1e-2}},
                {
                    "method": "lora",
                    "rank": {"choice": [2, 4]},
                    "dropout": 0.1,
                    "learning_rate": {"low": 1e-4, "high": 1e30},
                    "training": {"epochs": {"choice": [2, 3]}},
                },
                {"method": "bitfit", "learning_rate": {"low": 1e-4, "high": 1e-1}},
            ],
            "search": {"trials": 5, "sampler": "tpe"},
            "confirm": {"seeds": 2},
        }
    )


class Killed(Callback):
    """Kills its own process at the n-th moment of a kind."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.left = kind, number

    def reached(self, kind: str) -> bool:
        """Whether this is the moment; the process dies of it, unless the kind says that it does something before."""
        if kind != self.kind:
            return False
        self.left -= 1
        return self.left == 0

    def die(self, kind: str) -> None:
        if self.reached(kind):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.die("step")

    def on_evaluate(self, pack_id: str, step: int, rows: Any, best: Any) -> None:
        self.die("evaluation")

    def on_room(self, pack_id: str, step: int, room: int, joined: Any) -> None:
        self.die("room")

    def on_checkpoint(self, pack_id: str, step: int) -> None:
        self.die("checkpoint")

    def on_run_end(self, pack_id: str, record: Any) -> None:
        self.die("record")


def _break_journal(killed: Killed) -> None:
    append: Callable[..., None] = JournalFileBackend.append_logs

    def append_or_die(self: Any, logs: list[dict[str, Any]]) -> None:
        killed.die("journal")
        if killed.reached("half a line"):
            line = json.dumps(logs[0])
            with open(self._file_path, "ab") as file:
                file.write(line[: len(line) // 2].encode())
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, logs)
        killed.die("after a line")

    JournalFileBackend.append_logs = append_or_die

    write_plan = Store.write_plan

    def write_plan_or_die(self: Store, *given: Any) -> None:
        killed.die("plan")
        write_plan(self, *given)

    Store.write_plan = write_plan_or_die  # type: ignore[method-assign]


def train(what: Study, out: Path, kind: str, number: int) -> None:
    """Run the study in this process, which may die of it."""
    torch.set_num_threads(1)
    killed = Killed(kind, number)
    _break_journal(killed)
    run_study(what, out, executor=Inline("cpu"), callbacks=[killed])


def run(what: Study, out: Path, kind: str = "", number: int = 0) -> int | None:
    """Run it in a child process; returns its exit code."""
    child = multiprocessing.get_context("fork").Process(target=train, args=(what, out, kind, number))
    child.start()
    child.join()
    return child.exitcode


def outcome(out: Path) -> dict[str, Any]:
    """What trials and winners came to: records, histories, snapshots, predictions."""
    found = {**results_in(out), **{f"confirm {name}": each for name, each in results_in(out / "confirm/small").items()}}
    return {name: each for name, each in found.items() if "runs/" in name or name.endswith("winners.json")}


def campaign(kills: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """How often the search was killed at what, and the files that differ from those of an undisturbed one."""
    what = study(make_tiny(folder / "model"), small_task(folder))
    assert run(what, folder / "undisturbed") == 0
    wanted, out, draw = outcome(folder / "undisturbed"), folder / "killed", random.Random(seed)
    at: Counter[str] = Counter()
    differing: set[str] = set()
    ended, done = 0, False
    while not done:
        enough = sum(at.values()) >= kills
        kind = [*MOMENTS][sum(at.values()) % len(MOMENTS)]
        # Mostly soon, so that one search is killed many times.
        code = run(what, out) if enough else run(what, out, kind, 1 + int(MOMENTS[kind] * draw.random() ** 2))
        if code == -signal.SIGKILL:
            at[kind] += 1
            continue
        assert code == 0, code
        found = outcome(out)
        differing |= {name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)}
        shutil.rmtree(out)
        ended, done = ended + 1, enough
    states = Counter(each["state"] for name, each in wanted.items() if name.startswith("runs/") and "record" in name)
    return {
        "kills": sum(at.values()),
        "moments": dict(at),
        "searches": ended,
        "trials": dict(states),
        "files": len(wanted),
        "differing": sorted(differing),
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        text = json.dumps(campaign(given.kills, Path(temporary), given.seed))
    if given.out is not None:
        given.out.write_text(text + "\n")
    print(text)
