"""A Ray cluster of this machine: a head that trains nothing, and nodes, each a process group of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["NODE", "connected_to", "ray_cluster"]

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
"""What a node has: one pack at a time."""


def ray_cluster(nodes: int = 2) -> Iterator[Any]:
    """A cluster with so many nodes beside the head, taken down at the end."""
    pytest.importorskip("ray", reason="ray is not here: install the extra, `pip install manytune[ray]`")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    try:
        for _ in range(nodes):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def connected_to(cluster: Any) -> Iterator[None]:
    """With this process connected to the cluster."""
    import ray

    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
