"""Kill a study at random moments, let it go on each time, and compare its end with that of one never disturbed.

    python tests/faults/campaign.py --kills 300 --out docs/results/faults/kills.json

The study has a pack of LoRA and BitFit runs of which one stops early and one fails, a run of full fine-tuning, and
heads. A child process runs it and writes its report; it is killed by SIGKILL at a random moment of a phase chosen by
turns. When the study has ended it is compared, and the next one begins, until there were enough kills.
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
import time
from collections import Counter
from collections.abc import Callable
from ctypes import c_char
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg
import matplotlib.figure
import sklearn.feature_extraction.text
import sklearn.linear_model
import torch
import transformers.models.bert.modeling_bert

from manytune.config import Study
from manytune.executors import job
from manytune.report import writing
from manytune.storage.directory import Store
from manytune.study import run_study
from manytune.training import checkpoints, loop, snapshot
from manytune.utils import hardware
from manytune.utils.files import write_file
from study_files import results_in, small_task
from tiny import make_tiny

LATE = (sklearn, matplotlib, transformers)
"""What a study and its report import when they need it, imported here once: each child would take seconds for it."""

PHASES = ("start", "training", "evaluation", "checkpoint", "snapshot", "record", "report")
LONGEST_WAIT = {"start": 1.0, "evaluation": 0.003, "checkpoint": 0.004, "snapshot": 0.002, "record": 0.002}
"""Seconds from the beginning of a phase to the kill, 0.03 where nothing is said: about as long as the phase takes."""

_context = multiprocessing.get_context("fork")
_phase = _context.Value(c_char, b"\0", lock=False)


def study(model: Path, task: dict[str, Any]) -> Study:
    """Several packs; the runs with the absurd rate fail, and others stop early."""
    return Study.from_dict(
        {
            "name": "killed",
            "model": str(model),
            "tasks": [task],
            "seeds": [0, 1],
            "training": {
                "max_steps": 30,
                "eval_every": 5,
                "checkpoint_every": 2,
                "early_stopping": 2,
                "warmup_steps": 3,
            },
            "methods": [
                {"method": "full", "learning_rate": 1e-3},
                {"method": "bitfit", "learning_rate": 1e-3},
                {"method": "lora", "rank": [2, 4], "dropout": 0.1, "learning_rate": 1e-3},
                {"method": "lora", "rank": 2, "learning_rate": 1e30},
                {"method": "head", "learning_rate": 1e-2},
            ],
        }
    )


def note_phases() -> None:
    """Have this process note in shared memory what it is doing."""

    def within(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            before, _phase.value = _phase.value, bytes([PHASES.index(name)])
            try:
                return real(*given, **named)
            finally:
                _phase.value = before

        return call

    for owner, attribute, name in (
        (job, "train_pack", "training"),
        (loop, "evaluate", "evaluation"),
        (checkpoints.Checkpoints, "keep", "checkpoint"),
        (checkpoints.Checkpoints, "newest", "checkpoint"),
        (snapshot, "save", "snapshot"),
        (Store, "write_record", "record"),
        (writing, "write_report", "report"),
    ):
        setattr(owner, attribute, within(name, getattr(owner, attribute)))


def whole(what: Study, out: Path) -> None:
    """What `manytune run` does, in this process."""
    torch.set_num_threads(1)
    note_phases()
    run_study(what, out, device="cpu", callbacks=[])
    writing.write_report([out])


def start(what: Study, out: Path) -> Any:
    _phase.value = b"\0"
    child = _context.Process(target=whole, args=(what, out))
    child.start()
    return child


def campaign(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill that many times, and compare every study's end.

    Returns:
        Kills by phase, the number of studies, and the files that differ (none, it is to be hoped).
    """
    draw = random.Random(seed)
    what = study(make_tiny(folder / "model"), small_task(folder))
    undisturbed = folder / "undisturbed"
    child = start(what, undisturbed)
    child.join()
    assert child.exitcode == 0
    wanted = results_in(undisturbed)
    done: Counter[str] = Counter()
    differing: list[str] = []
    studies = 0
    while sum(done.values()) < kills or studies == 0:
        out = folder / f"killed-{studies}"
        while True:
            child = start(what, out)
            enough = sum(done.values()) >= kills
            target = PHASES[sum(done.values()) % len(PHASES)]
            delay = draw.random() * LONGEST_WAIT.get(target, 0.03)
            while child.is_alive() and (enough or PHASES[_phase.value[0]] != target):
                time.sleep(0.0005)
            time.sleep(delay if child.is_alive() else 0)
            phase = PHASES[_phase.value[0]]
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
            child.join()
            if child.exitcode == 0:
                break
            if child.exitcode != -signal.SIGKILL:
                raise SystemExit(f"a study that went on ended with {child.exitcode}")
            done[phase] += 1
        found = results_in(out)
        differing += [
            f"killed-{studies}/{name}" for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        ]
        if not (out / "report" / "index.html").is_file():
            differing.append(f"killed-{studies}/report")
        studies += 1
        print(f"{sum(done.values())} kills, {studies} studies, {len(differing)} files differ", flush=True)
        if not differing:
            shutil.rmtree(out)
    return {"kills": sum(done.values()), "phases": dict(done), "studies": studies, "differing": sorted(differing)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="keep the directories here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(options.kills, options.seed, options.folder or Path(folder))
    print(json.dumps(result))
    result |= {"versions": hardware.versions(), "hardware": hardware.describe(torch.device("cpu"))}
    if options.out:
        write_file(options.out, json.dumps(result, indent=2) + "\n")
    sys.exit(bool(result["differing"]))


if __name__ == "__main__":
    main()
