"""A Ray cluster of this machine: a head that trains nothing, and nodes, each a process group of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

__all__ = ["NODE", "ray_cluster"]

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
"""What a node has: one pack at a time."""


def ray_cluster(nodes: int = 2, *, connected: bool = False) -> Iterator[Any]:
    """The cluster, taken down at the end.

    Args:
        nodes: Beside the head.
        connected: Whether this process is connected to it all the time: then the nodes' processes, which take seconds
            to import torch, serve one study after another.
    """
    ray = pytest.importorskip("ray", reason="ray is not here: install the extra, `pip install manytune[ray]`")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    try:
        for _ in range(nodes):
            cluster.add_node(**NODE)
        if connected:
            ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster
    finally:
        if connected:
            ray.shutdown()
        cluster.shutdown()
