"""What manytune does on a GPU: that it is right, how fast it is beside Trainer, and where the time goes, in one run.

    python benchmarks/gpu_bundle.py                            # where there is a network
    python -m pip install -q --no-index --no-deps --target /tmp/site .gpu/wheels/*.whl     # on the GPU machine
    PYTHONPATH=/tmp/site:src python benchmarks/gpu.py OUT --bundle .gpu
    python benchmarks/gpu.py OUT --small --device cpu          # a try of the same steps, in three minutes

Each step runs in a process of its own and under a time limit of its own, and keeps each result as it is found: in
OUT/gpu.json, and as a line of OUT/gpu.txt. So a step that fails or is killed costs no other. Steps that OUT has already
are done again; others stay as they are. Summaries of all that is there are printed at the end.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLAIN = {"MANYTUNE_KERNELS": "plain", "MANYTUNE_CUDA_GRAPHS": "0"}
TRITON = {"MANYTUNE_KERNELS": "triton", "MANYTUNE_CUDA_GRAPHS": "0"}


@dataclass(frozen=True)
class Step:
    """What one step runs."""

    function: str  # module:name, called with the step's `Place`
    seconds: float  # after which it is killed
    environment: Mapping[str, str] = field(default_factory=dict)
    needs_gpu: bool = False


STEPS = {
    "versions": Step("gpu_checks:versions", 60),
    "kernels": Step("gpu_kernels:compare", 150),
    "step": Step("gpu_checks:one_step", 90),
    "packed": Step("gpu_checks:packed", 90),
    "repeat": Step("gpu_checks:repeat", 90),
    "speed": Step("gpu_speed:ours", 120),
    "speed-triton": Step("gpu_speed:ours_few", 120, TRITON, needs_gpu=True),
    "speed-plain": Step("gpu_speed:ours_few", 120, PLAIN),
    "trainer": Step("gpu_speed:trainer", 120),
    "profile": Step("gpu_profile:profile", 90),
    "study": Step("gpu_studies:study", 150),
    "memory": Step("gpu_studies:memory", 120),
    "resume": Step("gpu_studies:resume", 120),
    "trainers": Step("gpu_speed:trainers", 120),
    "trainer-compile": Step("gpu_speed:trainer_compiled", 180, needs_gpu=True),
    "sanitizer": Step("gpu_studies:sanitizer", 200, needs_gpu=True),
}
"""In their order. CUDA graphs are on unless a step says otherwise; `speed` has the kernels that manytune chooses."""


def selected(only: str, skip: str) -> list[str]:
    """The steps asked for; `speed` stands for every step whose name begins so."""

    def named(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        unknown = [word for word in words if not any(name.startswith(word) for name in STEPS)]
        if unknown:
            raise SystemExit(f"There is no step {', '.join(unknown)}; there are: {', '.join(STEPS)}.")
        exact = [word for word in words if word in STEPS and word != "speed"]
        starts = [word for word in words if word not in exact]
        return [name for name in STEPS if name in exact or any(name.startswith(word) for word in starts)]

    return [name for name in (named(only) or STEPS) if name not in named(skip)]


def run_step(name: str, place: Mapping[str, Any], seconds: float, log: Any) -> str:
    """Run a step in its own process; returns how it ended."""
    command = [sys.executable, __file__, place["out"], "--step", json.dumps({**place, "step": name})]
    environment = {"MANYTUNE_CUDA_GRAPHS": "1", **os.environ, **STEPS[name].environment}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    assert child.stdout is not None
    lines = child.stdout

    def copy() -> None:
        for line in lines:
            print(line, end="", flush=True)
            log.write(line)
            log.flush()

    copying = threading.Thread(target=copy, daemon=True)
    copying.start()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"killed after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):  # also those that the step started
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        copying.join(timeout=5)
        lines.close()
    if child.returncode < 0:
        return f"ended by signal {-child.returncode}"
    return "done" if child.returncode == 0 else f"failed, exit code {child.returncode}"


def work(place: Mapping[str, Any]) -> None:
    """Be the process of a step."""
    import gpu_place

    gpu_place.quiet()
    where = gpu_place.Place(**place)
    module, _, name = STEPS[where.step].function.partition(":")
    try:
        getattr(importlib.import_module(module), name)(where)
    except BaseException as error:
        where.note(failed="".join(traceback.format_exception(error))[-3000:])
        raise SystemExit(1) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument(
        "--bundle", type=Path, help="what gpu_bundle.py made; without one, ../shared/models and the hub"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="models of two layers, few cases")
    parser.add_argument("--only", default="", metavar="STEP,…", help=", ".join(STEPS))
    parser.add_argument("--skip", default="", metavar="STEP,…")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together; later ones are left out")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        work(json.loads(options.step))
        return
    import gpu_summary

    names = selected(options.only, options.skip)
    if options.device == "cpu":
        names = [name for name in names if not STEPS[name].needs_gpu]
    options.out.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch, (options.out / "gpu.txt").open("a") as log:
        os.environ.setdefault("MANYTUNE_CACHE_DIR", f"{scratch}/cache")
        if options.bundle is not None:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all is there; nobody waits for a network that is not
        place = {
            "out": str(options.out.resolve()),
            "scratch": scratch,
            "bundle": None if options.bundle is None else str(options.bundle.resolve()),
            "device_name": options.device,
            "small": options.small,
        }
        for name in names:
            left = ends_at - time.monotonic()
            gpu_summary.begin_step(options.out, name)
            started = time.monotonic()
            most = STEPS[name].seconds * (10 if os.environ.get("TRITON_INTERPRET") == "1" else 1)  # in numpy
            how = run_step(name, place, min(left, most), log) if left > 5 else "left out: time is up"
            gpu_summary.end_step(options.out, name, how, time.monotonic() - started)
            print(f"[{name}] {how}, {time.monotonic() - started:.1f} s", flush=True)
    summary = gpu_summary.summary(options.out)
    (options.out / "summary.txt").write_text(summary)
    print(summary)


if __name__ == "__main__":
    main()
