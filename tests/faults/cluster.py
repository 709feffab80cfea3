"""A study on a Ray cluster of this machine: one node is killed in the middle of a pack, another joins later.

    python tests/faults/cluster.py --packs 12

What comes of it is compared, to the bit, with the same plan in one process. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of the one process as of the nodes' tasks
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import torch

from manytune.config import Study
from manytune.executors import Inline, run_study
from manytune.executors.on_ray import OnRay
from manytune.hardware import versions
from manytune.plan import plan_packs, plan_runs
from manytune.store import Store
from manytune.tasks import Task
from ray_cluster import NODE
from study_files import results_in
from tiny import make_tiny


class Saboteur:
    """A progress that kills a node when its pack has left a checkpoint, and lets another join when packs are done."""

    def __init__(self, cluster: Any, victim: Any) -> None:
        self.cluster = cluster
        self.victim = victim
        self.killed_in: list[str] = []
        self.joined = False
        self.finished = 0
        self.went_on = 0
        self.training: dict[str, int] = {}

    def pack_started(self, pack_id: str, task: Task, runs: Sequence[str], total_steps: int) -> None:
        self.training[pack_id] = 0

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None: ...

    def evaluated(self, pack_id: str, step: int, best: tuple[str, float]) -> None:
        self.training[pack_id] += 1
        if not self.killed_in and sum(times >= 2 for times in self.training.values()) == 2:  # a pack on each node
            self.killed_in = sorted(self.training)
            self.cluster.remove_node(self.victim, allow_graceful=False)

    def run_ended(self, pack_id: str, run_id: str, state: str, note: str | None = None) -> None: ...

    def pack_finished(self, pack_id: str, seconds: float | None) -> None:
        self.training.pop(pack_id, None)
        self.finished += seconds is not None
        if self.finished == 2 and not self.joined:
            self.joined = True
            self.cluster.add_node(**NODE)

    def message(self, text: str, level: str = "info") -> None:
        print(text, file=sys.stderr)
        self.went_on += "goes on from step" in text

    def __enter__(self) -> Saboteur:
        return self

    def __exit__(self, *_: object) -> None: ...


class Silent(Saboteur):
    """One that does nothing."""

    def evaluated(self, pack_id: str, step: int, best: tuple[str, float]) -> None: ...

    def pack_finished(self, pack_id: str, seconds: float | None) -> None: ...


def rays_processes() -> list[str]:
    """Processes of Ray that this one has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
    return found


def campaign(packs: int, folder: Path) -> dict[str, Any]:
    """Run the study both ways."""
    from ray.cluster_utils import Cluster

    torch.set_num_threads(1)
    study = Study.from_dict(
        {
            "name": "cluster",
            "model": str(make_tiny(folder / "model")),
            "tasks": ["builtin-similarity"],
            "seeds": list(range(packs)),
            "training": {"max_steps": 400, "eval_every": 20, "precision": "fp32", "max_pack": 2},
            "methods": [{"method": "lora", "rank": [2, 4], "learning_rate": 1e-3}],
        }
    )
    planned = plan_packs(plan_runs(study), 2)
    assert len(planned) == packs
    for name in ("alone", "cluster"):
        Store.create_or_open(folder / name, study).write_plan(planned)
    run_study(study, folder / "alone", place=Inline("cpu"), progress=Silent(None, None))
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    try:
        victim = cluster.add_node(**NODE)
        cluster.add_node(**NODE)
        saboteur = Saboteur(cluster, victim)
        began = time.perf_counter()
        run_study(study, folder / "cluster", place=OnRay(cluster.address), progress=saboteur)
        seconds = time.perf_counter() - began
    finally:
        cluster.shutdown()
    alone, together = results_in(folder / "alone"), results_in(folder / "cluster")
    return {
        "packs": packs,
        "runs": len(plan_runs(study)),
        "seconds": round(seconds, 1),
        "killed_in_the_middle_of": saboteur.killed_in,
        "joined_later": saboteur.joined,
        "went_on_elsewhere": saboteur.went_on,
        "files_compared": len(alone),
        "differing": sorted(name for name in {*alone, *together} if alone.get(name) != together.get(name)),
        "left_over_processes": rays_processes(),
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", type=int, default=12)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(options.packs, Path(folder))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    sys.exit(bool(result["differing"] or result["left_over_processes"]))


if __name__ == "__main__":
    main()
