"""Steps of `gpu.py` that use the command `manytune`: whole studies, kills, memory that runs out, a memory checker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gpu_place import BITFIT, FULL, LORA, MINILM, ROBERTA, Place, relative_error, seconds_of
from safetensors.torch import load_file

from manytune.config import Study
from manytune.config.plan import plan_packs, plan_runs
from manytune.executors.estimate import HardwareProfile, estimate_pack
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from manytune.training.workload import prepare

CLOCKS = {"started", "finished", "train_seconds", "eval_seconds", "samples_per_second", "peak_memory_bytes"}
"""Fields of a record that differ from start to start."""


def write_study(
    place: Place, name: str, model: str, methods: list[Any], seeds: int, selection: str = "dev", **training: Any
) -> Path:
    """A study of CoLA's first 1,000 rows."""
    study = Path(place.scratch, f"{name}.yaml")
    content = {
        "name": name,
        "model": place.model(model),
        "data_dir": place.glue,
        "tasks": ["cola"],
        "selection": selection,
        "limit": 100 if place.small else 1000,
        "seeds": list(range(seeds)),
        "training": {"batch_size": 16, **training},
        "methods": methods,
    }
    study.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return study


def run_arguments(place: Place, study: Path, out: Path) -> list[str]:
    return ["run", str(study), "--out", str(out), "--device", place.device_name, "--quiet"]


def records(out: Path) -> dict[str, RunRecord]:
    return dict(Store.open(out).finished_runs())


def study(place: Place) -> None:
    """The command from study file to report, on each model: every method, several ranks."""
    for model in place.models:
        methods = [FULL, BITFIT, {**LORA, "rank": [2, 8] if place.small else [2, 8, 64, 256]}]
        steps = {"max_steps": 6} if place.small else {"epochs": 1}
        file = write_study(place, f"study-{model}", model, methods, 1 if place.small else 2, **steps)
        out = Path(place.scratch, f"study-{model}")
        seconds, done = seconds_of(
            lambda file=file, out=out: place.manytune(*run_arguments(place, file, out), check=False)
        )
        if done.returncode:
            place.note(model=model, failed=done.stderr[-2000:], exit_code=done.returncode, passed=False)
            continue
        found = records(out)
        for record in found.values():
            cost, failure = record.cost, record.failure
            place.note(
                model=model,
                run=record.run_id,
                state=str(record.state),
                score=record.best_score,
                runs_in_pack=cost.pack_size,
                samples_per_second_of_run=cost.samples_per_second,
                **({"failure": failure} if failure else {}),
            )
        states = Counter(str(record.state) for record in found.values())
        report = out / "report/index.html"
        note = {
            "seconds": seconds,
            "states": dict(states),
            "report_bytes": report.stat().st_size if report.exists() else 0,
        }
        place.note(model=model, **note, passed=bool(note["report_bytes"]) and "failed" not in states)
        place.say("\n".join(done.stdout.splitlines()[:30]))


KILL = """
import os, signal
from manytune.training.checkpoints import Checkpoints
due = Checkpoints.due
def killed(self, step):
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return due(self, step)
Checkpoints.due = killed
"""
"""Ends a process by SIGKILL after a step, between two checkpoints."""


def resume(place: Place) -> None:
    """A study killed in the middle of a pack and begun again, beside one that was not: the same files to the bit."""
    model = MINILM if MINILM in place.models else ROBERTA
    every = 4 if place.small else 20
    settings = {"max_steps": 4 * every, "eval_every": 2 * every, "checkpoint_every": every}
    file = write_study(place, "resume", model, [BITFIT, LORA], 1 if place.small else 2, **settings)
    whole, killed = Path(place.scratch, "whole"), Path(place.scratch, "killed")
    place.manytune(*run_arguments(place, file, whole), "--no-report")
    code = KILL.format(step=2 * every + every // 2)
    done = place.manytune(*run_arguments(place, file, killed), "--no-report", code=code, check=False)
    rosters = sorted(path.stem for path in killed.glob("packs/*/roster-*.json"))
    ended_before = len(records(killed))
    place.manytune(*run_arguments(place, file, killed), "--no-report")
    a, b = (_results(out) for out in (whole, killed))
    other = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    was_killed = done.returncode == -signal.SIGKILL and bool(rosters) and not ended_before
    place.note(
        model=model,
        exit_code=done.returncode,
        newest_checkpoint=rosters[-1] if rosters else None,
        files=len(a),
        differ=other[:8],
        passed=was_killed and not other and len(a) > 0,
    )


def _results(out: Path) -> dict[str, Any]:
    """Path → content of what runs came to, without their clocks."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("runs/**/*")):
        if path.name == "history.csv":
            found[str(path.relative_to(out))] = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
        elif path.name == "record.json":
            found[str(path.relative_to(out))] = _without_clocks(json.loads(path.read_text()))
        elif path.is_file():
            found[str(path.relative_to(out))] = path.read_bytes()
    return found


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_clocks(inner) for name, inner in value.items() if name not in CLOCKS}
    return value


def memory(place: Place) -> None:
    """The peak of a pack with its evaluation beside the estimate; and a device on which the pack does not fit."""
    model = ROBERTA if ROBERTA in place.models else MINILM
    runs = 2 if place.small else 16
    settings = {"max_steps": 8, "eval_every": 4, "max_pack": runs, "warmup_steps": 2}
    file = write_study(place, "memory", model, [LORA], runs, "none", **settings)
    study = Study.from_file(file)
    work = prepare(study, "cola")
    profile = HardwareProfile.measure(place.device, "auto", work.width)
    (pack,) = plan_packs(plan_runs(study), runs)
    estimate = estimate_pack(work, pack, profile).memory_bytes
    whole = Path(place.scratch, "memory")
    place.manytune(*run_arguments(place, file, whole), "--no-report")
    found = records(whole)
    peak = max(record.cost.peak_memory_bytes or 0 for record in found.values())
    place.note(
        model=model, runs=runs, peak_bytes=peak, estimated_bytes=estimate, estimated_share=estimate / max(peak, 1)
    )
    if not place.is_cuda:
        place.say("memory is not limited on a CPU: nothing to cut")
        return
    for share in (0.6, 0.35):
        _cut(place, file, found, whole, int(peak * share))


def _cut(place: Place, file: Path, wanted: Mapping[str, RunRecord], whole: Path, limit: int) -> None:
    """The same study where torch may hold `limit` bytes of the device."""
    out = Path(place.scratch, f"memory-{limit}")
    total = torch.cuda.get_device_properties(place.device).total_memory
    code = f"import torch; torch.cuda.set_per_process_memory_fraction({limit / total})"
    done = place.manytune(*run_arguments(place, file, out), "--no-report", code=code, check=False)
    if done.returncode:
        place.note(limit_bytes=limit, failed=done.stderr[-2000:], passed=False)
        return
    found = records(out)
    errors = [relative_error(*(_snapshot(each, run) for each in (out, whole))) for run in wanted]
    packs = [len(pack.runs) for pack in Store.open(out).read_plan() or ()]
    place.note(
        limit_bytes=limit,
        packs=packs,
        states=dict(Counter(str(record.state) for record in found.values())),
        peak_bytes=max(record.cost.peak_memory_bytes or 0 for record in found.values()),
        snapshots_differ_by=max(errors),
        said=[line for line in done.stderr.splitlines() if "memory" in line][:3],
        passed=found.keys() == wanted.keys() and len(packs) > 1 and max(errors) < 0.1,
    )


def _snapshot(out: Path, run: str) -> torch.Tensor:
    (file,) = (out / "runs" / run / "best").glob("*.safetensors")
    tensors = load_file(file)
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


def sanitizer(place: Place) -> None:
    """Every kernel once under compute-sanitizer's memcheck."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        place.note(skipped=f"there is no compute-sanitizer on the PATH, nor at {tool}")
        return
    code = f"import gpu_kernels; gpu_kernels.tiny_case({place.device_name!r})"
    folder = str(Path(__file__).parent)
    environment = {
        **os.environ,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}",
    }
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = (done.stdout + done.stderr).splitlines()
    summary = [line for line in lines if "ERROR SUMMARY" in line or "ran once" in line]
    place.note(exit_code=done.returncode, summary=summary, passed=done.returncode == 0)
    if done.returncode:
        place.say("\n".join(lines[:60]))
