"""Ray nodes on this machine, for tests and for `make test-cluster`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.run.lock import WORKERS_LOCK
from rlhf.run.processes import descendants_of, holders_of


@contextlib.contextmanager
def ray_nodes(num_nodes: int, cpus: int = 1) -> Iterator[Any]:
    """A cluster with a head that has no work, and so many nodes; the environment says where it is."""
    from ray.cluster_utils import Cluster

    # By Ray's own settings the nodes would starve beside whatever else this machine does (a niceness of 15),
    # and be ended for the memory that others take.
    quiet = {"RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", **quiet}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=cpus)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()


def node_of(cluster: Any, pid: int) -> Any:
    """The node below whose raylet a process was started; None for no node of the cluster."""
    for node in cluster.worker_nodes:
        if pid in descendants_of(node.all_processes["raylet"][0].process.pid):
            return node
    return None


def nodes_at_work(cluster: Any, run: Path) -> list[Any]:
    """The nodes that have a worker of a run."""
    found = {node_of(cluster, pid) for pid in holders_of(run / WORKERS_LOCK)}
    return sorted(found - {None}, key=lambda node: node.node_id)
