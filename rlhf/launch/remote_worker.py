"""A worker on a node of a cluster, as the driver sees it, and what it must see there."""

from __future__ import annotations

from typing import Any

from rlhf.errors import ConfigError
from rlhf.launch import attending
from rlhf.launch.attending import Watched
from rlhf.launch.remote_node import NodeLost, RemoteNode
from rlhf.run.job import Job


def watched(job: Job[Any], node: RemoteNode, rank: int, log: str) -> Watched:
    """What the driver keeps of a worker on a node."""

    def state() -> str:
        try:
            return str(node.ask("state", rank, seconds=5))
        except NodeLost:
            return "not to be reached"

    return Watched(f"{job.name}.{rank}", rank, log, attending.patience_of(job), state, f" on {node.name}")


def require_inputs(job: Job[Any], nodes: list[RemoteNode]) -> None:
    """Refuse a stage whose inputs a node does not see.

    Raises:
        ConfigError: with the node, the paths and the ways out.
        NodeLost: one is gone.
    """
    for node in nodes:
        missing = node.ask("missing", sorted(job.inputs.values()))
        if missing:
            raise ConfigError(
                f"{job.name}: {node.name} does not see {', '.join(missing)}. What a run reads must lie on "
                "a file system that all nodes share; models of the Hub lie in HF_HOME: set it to a shared "
                "folder where the driver runs."
            )
