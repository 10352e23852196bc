"""A node of a Ray cluster, as the driver speaks with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf.errors import one_line
from rlhf.launch.supervisor import Facts

ANSWER_SECONDS = 60.0
"""So long a node may take to answer a plain question; Ray gives a silent machine up after 65 s."""
_MEMORY = (
    "where memory ran short, and Ray ended the supervisor for it, which holds none of it: with "
    "RAY_memory_monitor_refresh_ms=0 set where Ray is started the system ends the worker that does"
)


class NodeLost(Exception):
    """A node, or its supervisor, is gone."""


@dataclass(eq=False)
class RemoteNode:
    """A node of the cluster with its supervisor.

    `why_lost` is what Ray says of a supervisor that is gone, where that is more than that it is gone.
    """

    node_id: str
    address: str
    num_cpus: int
    num_gpus: int
    actor: Any
    facts: Facts | None = None
    why_lost: str = ""

    @property
    def name(self) -> str:
        """As people are told of it."""
        host = self.facts.host if self.facts is not None else "node"
        why = f", {self.why_lost}" if self.why_lost else ""
        return f"{host} ({self.address}, Ray node {self.node_id[:8]}{why})"

    def ask(self, method: str, *arguments: Any, seconds: float | None = ANSWER_SECONDS) -> Any:
        """Call a method of the supervisor.

        Raises:
            NodeLost: it is gone, or does not answer.
            RlhfError: what it raised.
        """
        reference = getattr(self.actor, method).remote(*arguments)
        return self.result(reference, seconds)

    def result(self, reference: Any, seconds: float | None = ANSWER_SECONDS) -> Any:
        """What a call of this node's supervisor gave."""
        import ray
        from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError

        try:
            return ray.get(reference, timeout=seconds)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            # Whatever it is, this node is not to be worked with: others are, and its next supervisor.
            if isinstance(error, OutOfMemoryError):
                self.why_lost = _MEMORY
            elif not isinstance(error, RayActorError | GetTimeoutError):
                self.why_lost = one_line(str(error).strip().partition("\n")[0])
            raise NodeLost(self.name) from error
