"""A study on a Ray cluster of this machine: one node is killed in the middle of a pack, another joins later.

    python tests/faults/cluster.py --packs 12 --kill-driver

What comes of it is compared, to the bit, with the same plan in one process. With `--kill-driver` the study is run once
more, by the command, which is killed in the middle and started again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of the one process as of the nodes' tasks
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import torch
import yaml

from manytune.config import Study
from manytune.config.plan import plan_packs, plan_runs
from manytune.executors import Inline
from manytune.executors.ray_executor import OnRay
from manytune.storage.directory import Store
from manytune.study import run_study
from manytune.training.callbacks import Callback, Level, PackEnd
from manytune.utils.hardware import versions
from ray_cluster import NODE
from study_files import results_in, small_task
from tiny import make_tiny


class Saboteur(Callback):
    """Kills a node when its pack has left a checkpoint, and lets another join when packs are done."""

    def __init__(self, cluster: Any, victim: Any) -> None:
        self.cluster = cluster
        self.victim = victim
        self.killed_in: list[str] = []
        self.joined = False
        self.finished = 0
        self.went_on = 0
        self.training: dict[str, int] = {}

    def on_train_begin(self, pack_id: str, *values: Any) -> None:
        self.training[pack_id] = 0

    def on_evaluate(self, pack_id: str, *values: Any) -> None:
        self.training[pack_id] += 1
        if not self.killed_in and sum(times >= 2 for times in self.training.values()) == 2:  # a pack on each node
            self.killed_in = sorted(self.training)
            self.cluster.remove_node(self.victim, allow_graceful=False)

    def on_pack_end(self, end: PackEnd) -> None:
        self.training.pop(end.pack_id, None)
        self.finished += end.how == "done"
        if self.finished == 2 and not self.joined:
            self.joined = True
            self.cluster.add_node(**NODE)

    def on_message(self, text: str, level: Level = "info") -> None:
        print(text, file=sys.stderr)
        self.went_on += "goes on from step" in text


def rays_processes() -> list[str]:
    """Processes of Ray that this one has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
    return found


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something to come true."""
    last = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > last:
            raise SystemExit(f"after {seconds:g} s, {what} has not come")
        time.sleep(0.05)


def killed_driver(address: str, file: Path, out: Path) -> dict[str, Any]:
    """Run the command, kill it when two packs have left checkpoints, wait for its tasks to end, and run it again."""
    command = [sys.executable, "-m", "manytune", "run", str(file), "--out", str(out), "--no-report"]
    command += ["--executor", "ray", "--ray-address", address]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(list(out.glob("packs/*/*.json"))) >= 2, "a checkpoint of each of two packs", 120.0)
    driver.kill()
    driver.wait()
    began = time.monotonic()
    until(lambda: "ray::train" not in rays_processes(), "the end of the killed driver's tasks")
    tasks_ended_in = time.monotonic() - began
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    if again.returncode:
        raise SystemExit(again.stderr[-2000:])
    return {
        "tasks_ended_in_seconds": round(tasks_ended_in, 1),
        "went_on": again.stderr.count("goes on from step"),
        "directories_left_over": len(list(out.glob("packs/*"))),
    }


def campaign(packs: int, steps: int, folder: Path, kill_driver: bool) -> dict[str, Any]:
    """Run the study both ways."""
    from ray.cluster_utils import Cluster

    torch.set_num_threads(1)
    content = {
        "name": "cluster",
        "model": str(make_tiny(folder / "model")),
        "tasks": [small_task(folder)],
        "seeds": list(range(packs)),
        "training": {"max_steps": steps, "eval_every": 20, "precision": "fp32", "max_pack": 2},
        "methods": [{"method": "lora", "rank": [2, 4], "learning_rate": 1e-3}],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    study = Study.from_file(folder / "study.yaml")
    planned = plan_packs(plan_runs(study), 2)
    assert len(planned) == packs
    for name in ("alone", "cluster", "killed"):
        Store.create_or_open(folder / name, study).write_plan(planned)
    run_study(study, folder / "alone", executor=Inline("cpu"), callbacks=[])
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    try:
        victim = cluster.add_node(**NODE)
        cluster.add_node(**NODE)
        saboteur = Saboteur(cluster, victim)
        began = time.perf_counter()
        run_study(study, folder / "cluster", executor=OnRay(cluster.address), callbacks=[saboteur])
        seconds = time.perf_counter() - began
        driver = killed_driver(cluster.address, folder / "study.yaml", folder / "killed") if kill_driver else None
    finally:
        cluster.shutdown()
    alone = results_in(folder / "alone")
    if driver is not None:
        driver["differing"] = differing(alone, results_in(folder / "killed"))
    return {
        "packs": packs,
        "runs": len(plan_runs(study)),
        "seconds": round(seconds, 1),
        "killed_in_the_middle_of": saboteur.killed_in,
        "joined_later": saboteur.joined,
        "went_on_elsewhere": saboteur.went_on,
        "files_compared": len(alone),
        "differing": differing(alone, results_in(folder / "cluster")),
        "killed_driver": driver,
        "left_over_processes": rays_processes(),
        "versions": versions(),
    }


def differing(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Files that are not the same in two study directories."""
    return sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=400, help="of each pack")
    parser.add_argument("--kill-driver", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(options.packs, options.steps, Path(folder), options.kill_driver)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    driver = result["killed_driver"] or {"differing": [], "directories_left_over": 0}
    wrong = (result["differing"], result["left_over_processes"], driver["differing"], driver["directories_left_over"])
    sys.exit(any(wrong))


if __name__ == "__main__":
    main()
