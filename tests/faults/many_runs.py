"""A study of very many runs of a tiny model: time, memory and open files of the process as it goes on.

    python tests/faults/many_runs.py --runs 2000 --out docs/results/faults/many-runs.json
    python tests/faults/many_runs.py --out docs/results/faults/many-runs-workers.json -- --workers 2

What follows `--` goes to `manytune run`. Beside the result lies a chart of the memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from manytune.config import Study
from manytune.config.plan import plan_packs, plan_runs
from manytune.storage.directory import Store
from manytune.utils import hardware
from study_files import write_small_study
from tiny import make_tiny


def watched(command: list[str], out: Path) -> dict[str, Any]:
    """Run a command, and note once a second what it holds and how many runs have ended."""
    samples = []
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        watcher = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                rss, files = watcher.memory_info().rss, watcher.num_fds()
            except psutil.Error:
                break
            if rss == 0:  # it has ended, and waits to be asked how
                break
            ended = len(list(out.glob("runs/*/record.json")))
            samples.append({"seconds": time.monotonic() - started, "bytes": rss, "files": files, "ended": ended})
            time.sleep(1.0)
        _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(errors[-2000:])
    return {"seconds": time.monotonic() - started, "samples": samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True, help="the result's JSON file")
    parser.add_argument("run_options", nargs="*", help="options of manytune run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        methods = [{"method": "lora", "rank": [1, 2, 3, 4], "learning_rate": 1e-3}]
        seeds = list(range(options.runs // 4))
        file = write_small_study(folder, make_tiny(folder / "model"), {"max_steps": 2}, seeds=seeds, methods=methods)
        study, out = Study.from_file(file), folder / "out"
        started = time.monotonic()
        runs = plan_runs(study)
        packs = plan_packs(runs, 16)
        planning = time.monotonic() - started
        command = [sys.executable, "-m", "manytune", "run", str(file), "--out", str(out), "--quiet"]
        found = watched([*command, "--no-report", *options.run_options], out)
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "manytune", "status", str(out)], check=True, capture_output=True)
        status = time.monotonic() - started
        started = time.monotonic()
        assert Store.open(out).status().counts["pending"] == 0
        reading = time.monotonic() - started
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    steady = [sample for sample in found["samples"] if sample["ended"] >= options.runs * 0.1]
    result = {
        "run_options": options.run_options,
        "runs": len(runs),
        "packs": len(packs),
        "planning_seconds": planning,
        "study_seconds": found["seconds"],
        "status_command_seconds": status,
        "status_seconds": reading,
        "bytes_on_disk": size,
        "memory_at_a_tenth": steady[0]["bytes"],
        "memory_at_the_end": steady[-1]["bytes"],
        "open_files_at_a_tenth": steady[0]["files"],
        "open_files_at_the_end": steady[-1]["files"],
        "versions": hardware.versions(),
        "hardware": hardware.describe(torch.device("cpu")),
        "samples": found["samples"],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.out.with_suffix(".png"))
    print(json.dumps({name: value for name, value in result.items() if name != "samples"}, indent=2))


def draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    samples = result["samples"]
    axes.plot([sample["ended"] for sample in samples], [sample["bytes"] / 2**20 for sample in samples])
    axes.set(xlabel="runs that have ended", ylabel="memory of the process, MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
