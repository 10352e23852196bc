"""Ray nodes on this machine, for tests and for `make test-cluster`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def ray_nodes(num_nodes: int, cpus: int = 1) -> Iterator[Any]:
    """A cluster with a head that has no work, and so many nodes; the environment says where it is."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # As docs/cluster.md says; what else is at work on this machine would end the nodes' supervisors.
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112
    # Ray's own choice of 15 would have the nodes starve beside whatever else this machine does.
    os.environ["RAY_worker_niceness"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=cpus)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()


def wait_for(is_so: Any, seconds: float = 300.0, what: str = "it") -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
