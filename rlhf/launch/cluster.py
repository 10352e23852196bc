"""The nodes of a Ray cluster, and the supervisor on each: the only place that talks to Ray.

Ray is an extra (`pip install rlhf-iterate[cluster]`), and imported where a run asks for it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config.choices import Device
from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError, WorkerFailed, one_line
from rlhf.launch.machine import num_cores
from rlhf.launch.node import KEPT, Message
from rlhf.launch.remote_node import ANSWER_SECONDS, NodeLost, RemoteNode
from rlhf.launch.supervisor import MARK_SECONDS, Settings, Supervisor, settings_of_libraries
from rlhf.run.file_system_probe import leave_mark, read_mark

_POLL_SECONDS = 0.25
_LOOK_SECONDS = 1.0
"""Between two looks for nodes that have joined."""
_REMINDER_SECONDS = 30.0

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER_BYTES = 9
"""Of HTTP/2: three of the length, then type, flags and four of the stream."""
_SETTINGS_FRAME = 4
_EMPTY_SETTINGS = bytes([0, 0, 0, _SETTINGS_FRAME, 0, 0, 0, 0, 0])


@dataclass
class _Coming:
    """A node whose supervisor starts: its first answer, the file that it is to find, and since when.

    `patience` is how many seconds pass until the next line about it.
    """

    node: RemoteNode
    first_answer: Any
    mark: Path
    since: float = field(default_factory=time.monotonic)
    patience: float = ANSWER_SECONDS


@dataclass
class RayCluster:
    """A cluster that this driver has joined.

    `lost` are the supervisors that ended while their node lived on, by node: Ray ends processes when memory
    runs out.
    """

    compute: ComputeConfig
    run_folder: Path
    token: str
    say: Callable[[str], None]
    _nodes: dict[str, RemoteNode] = field(default_factory=dict)
    _coming: dict[str, _Coming] = field(default_factory=dict)
    """Nodes whose supervisor starts. Others work meanwhile."""
    _refused: dict[str, str] = field(default_factory=dict)
    _without: str = ""
    """How many nodes have nothing that a run could work with."""
    _was_complete: bool = False
    _looked_at: float = 0.0

    def connect(self) -> None:
        """Join the cluster.

        Raises:
            ConfigError: Ray is not installed, or there is no cluster.
        """
        ray = _imported()
        if ray.is_initialized():
            return
        address = self.compute.ray_address or os.environ.get("RAY_ADDRESS") or "auto"
        if address == "auto":
            address = _address_of_this_machine()
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Ray would else take the driver's signals for its own, and print what every node's processes print.
        try:
            require_ray(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True)
        except (OSError, RuntimeError, ValueError) as error:
            first = one_line(str(error).strip().partition("\n")[0])
            if first.startswith("Failed to connect to Ray cluster"):
                # Ray says no more where it is turned away.
                first += "; one started with RAY_AUTH_MODE=token wants that and its RAY_AUTH_TOKEN here too"
            raise ConfigError(
                f"compute.launcher=ray: no Ray cluster can be joined at {address} ({first}). Start one with "
                "`ray start --head` here and `ray start --address=HEAD:6379` on the other nodes, name "
                "its head with compute.ray_address=HEAD:6379 (or RAY_ADDRESS), or do without: compute=local. "
                "docs/cluster.md has SLURM, Kubernetes and SkyPilot."
            ) from None
        _say_nothing_of_raylets()

    def nodes(self) -> list[RemoteNode]:
        """The nodes that are there and can work, always in the same order; new ones are taken in."""
        import ray

        self._looked_at = time.monotonic()
        alive = {row["NodeID"]: row for row in ray.nodes() if row["Alive"]}
        for node_id in set(self._nodes) - set(alive):
            del self._nodes[node_id]
        wants_gpus = any(_num_gpus(row) for row in alive.values()) and self.compute.device is not Device.cpu
        num_without = 0
        for node_id, row in alive.items():
            # One that is to have no work says so, as the head of a Kubernetes cluster does.
            is_for_work = _num_gpus(row) > 0 if wants_gpus else row["Resources"].get("CPU", 0) > 0
            num_without += not is_for_work
            known = node_id in self._nodes or node_id in self._coming or node_id in self._refused
            if not is_for_work or known:
                continue
            if wants_gpus and _num_gpus(row) < (self.compute.num_gpus or 0):
                self._refuse(node_id, f"{_host(row)}: {too_few_gpus(self.compute, _num_gpus(row))}")
            else:
                self._invite(node_id, row)
        lacking = "GPU" if wants_gpus else "core"
        self._without = f"{num_without} more without a {lacking}" if num_without else ""
        for coming in list(self._coming.values()):
            self._take_in(coming)
        return sorted(self._nodes.values(), key=lambda node: (node.address, node.node_id))

    def has_news(self) -> bool:
        """Whether it is time to look at the nodes again."""
        return time.monotonic() - self._looked_at > _LOOK_SECONDS

    def num_needed(self) -> int:
        """Nodes that a stage waits for: `compute.num_nodes` until the run has seen so many, then one.

        A run that has lost a node goes on with the others.
        """
        return 1 if self._was_complete else self.compute.num_nodes

    def wait_for(self, is_enough: Callable[[list[RemoteNode]], bool], wanted: str) -> list[RemoteNode]:
        """Wait until the nodes suffice.

        Args:
            is_enough: whether they do.
            wanted: what is waited for, as a sentence's end.

        Raises:
            WorkerFailed: they did not come within `compute.node_wait_seconds`.
        """
        started = time.monotonic()
        next_word = 5.0
        while True:
            nodes = self.nodes()
            if is_enough(nodes):
                self._was_complete = self._was_complete or len(nodes) >= self.compute.num_nodes
                return nodes
            waited = time.monotonic() - started
            limit = self.compute.node_wait_seconds
            others = [self._without] if self._without else []
            there = "1 node is there" if len(nodes) == 1 else f"{len(nodes)} nodes are there"
            here = "; ".join([there, *others, *self._refused.values()])
            if limit and waited > limit:
                raise WorkerFailed(
                    f"{wanted} did not come within compute.node_wait_seconds={limit:g} ({here}). {KEPT}"
                )
            if waited > next_word:
                next_word = waited + _REMINDER_SECONDS
                self.say(f"  … waiting for {wanted} ({here})")
            time.sleep(0.2)

    def lose(self, node: RemoteNode) -> None:
        """Forget a node whose supervisor is gone; if it lives, it gets a new one."""
        self._nodes.pop(node.node_id, None)
        with contextlib.suppress(Exception):  # it may be gone with all its host
            import ray

            ray.kill(node.actor)

    def end_workers(self, nodes: list[RemoteNode]) -> None:
        """End the workers of some nodes, side by side; those that do not answer are forgotten."""
        calls = [(node, node.actor.end.remote()) for node in nodes]
        for node, reference in calls:
            try:
                node.result(reference)
            except NodeLost:
                self.lose(node)

    def _invite(self, node_id: str, row: dict[str, Any]) -> None:
        """Begin to start a supervisor on a node."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        num_gpus = _num_gpus(row)
        address = row["NodeManagerAddress"]
        num_cpus = int(row["Resources"].get("CPU", 0))
        settings = Settings(
            run_folder=str(self.run_folder.absolute()),
            token=self.token,
            preload=self.compute.preload,
            device=self.compute.device.value,
            working_directory=os.getcwd(),
            environment=settings_of_libraries(),
            has_gpus=num_gpus > 0,
            cores=num_cpus or num_cores(),
            address=address,
        )
        kind = ray.remote(num_cpus=0, num_gpus=num_gpus, max_restarts=0)(Supervisor)
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        runtime = {"env_vars": {"PYTHONPATH": settings.environment["PYTHONPATH"]}}
        actor = kind.options(scheduling_strategy=strategy, runtime_env=runtime).remote(settings)
        node = RemoteNode(node_id, address, num_cpus, num_gpus, actor)
        mark = leave_mark(self.run_folder.absolute(), node_id)
        self._coming[node_id] = _Coming(node, actor.answer.remote(str(mark), node_id), mark)

    def _take_in(self, coming: _Coming) -> None:
        """Take in a node whose supervisor has started, if it works in the same folder."""
        import ray

        node = coming.node
        ready, _ = ray.wait([coming.first_answer], timeout=0)
        if not ready:
            # However long it takes: one that was ended for it would begin anew.
            waited = time.monotonic() - coming.since
            if waited > coming.patience:
                coming.patience = 2 * waited
                self.say(
                    f"  ! {node.name}: its supervisor has not started in {waited:.0f} s, and is waited for: "
                    "another job may hold its GPUs, or it may be slow to read its files"
                )
            return
        del self._coming[node.node_id]
        try:
            node.facts, answer = node.result(coming.first_answer, seconds=1)
            with _gone_afterwards(Path(answer)) as path:
                read_mark(path, node.node_id, MARK_SECONDS)
        except NodeLost:
            ray.kill(node.actor)
            # One that has just died is listed for a while; one that lives is tried anew with the next look.
            if any(row["Alive"] and row["NodeID"] == node.node_id for row in ray.nodes()):
                self.say(
                    f"  ! {node.name}: its supervisor has ended as soon as it started; another one is tried"
                )
        except ConfigError as error:
            ray.kill(node.actor)
            self._refuse(
                node.node_id, f"{node.name} does not work in the same folder, and is left out: {error}"
            )
        else:
            self._nodes[node.node_id] = node
            number, device = (node.num_gpus, "GPU") if node.num_gpus else (node.num_cpus, "core")
            self.say(f"  · {node.name} works for this run, with {number} {device}{'s' * (number != 1)}")
        finally:
            coming.mark.unlink(missing_ok=True)

    def _refuse(self, node_id: str, why: str) -> None:
        """Leave a node out for as long as this driver lives."""
        self._refused[node_id] = why.partition("\n")[0]
        self.say(f"  ! {why}")


class Conversation:
    """Hears the workers of some nodes, and answers them."""

    def __init__(self) -> None:
        self._pending: dict[Any, RemoteNode] = {}
        self._starting: dict[Any, RemoteNode] = {}
        self._answers: dict[RemoteNode, list[tuple[int, Any]]] = {}

    def add(self, node: RemoteNode) -> None:
        """Hear one more node."""
        self._answers.setdefault(node, [])

    def begin(self, node: RemoteNode, reference: Any) -> None:
        """Hear a node on which a worker starts: it may be silent for ever, and others are heard meanwhile.

        Args:
            node: the worker's.
            reference: to what the call that starts it gives.
        """
        self.add(node)
        self._starting[reference] = node

    def nodes(self) -> list[RemoteNode]:
        """Those that are heard."""
        return list(self._answers)

    def answer(self, node: RemoteNode, rank: int, message: Any) -> None:
        """Say something to a worker, with the next exchange."""
        self._answers[node].append((rank, message))

    def hear(self, seconds: float) -> Iterator[tuple[RemoteNode, list[Message] | None]]:
        """What each node's workers say, as soon as one says something; None of a node that is gone.

        Raises:
            WorkerFailed: one cannot be started.
        """
        import ray

        busy = set(self._pending.values())
        for node, answers in self._answers.items():
            if node not in busy:
                self._pending[node.actor.exchange.remote(list(answers), _POLL_SECONDS)] = node
                answers.clear()
        ready, _ = ray.wait([*self._starting, *self._pending], num_returns=1, timeout=seconds)
        for reference in ready:
            is_start = reference in self._starting
            node = (self._starting if is_start else self._pending).pop(reference)
            try:
                said = node.result(reference)
            except NodeLost:
                self._answers.pop(node, None)
                yield node, None
            else:
                yield node, [] if is_start else said


def gpu_workers_of_cluster(compute: ComputeConfig, tensor_parallel: int) -> int:
    """Inference workers that the GPUs of the cluster's nodes can hold side by side; 1 without GPUs."""
    import ray

    if not ray.is_initialized():
        return 1  # only planned
    total = 0
    for row in ray.nodes():
        devices = _num_gpus(row) if row["Alive"] else 0
        devices = min(devices, compute.num_gpus or devices)
        total += min(compute.num_inference_workers or devices, devices // tensor_parallel)
    return max(1, total)


def gpus_of_nodes() -> list[tuple[str, int]] | None:
    """Name and GPUs of each node that has any; None where no cluster was joined, as by a look or a plan."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    found = []
    for row in ray.nodes():
        if row["Alive"] and _num_gpus(row):
            found.append((_host(row), _num_gpus(row)))
    return sorted(found)


def too_few_gpus(compute: ComputeConfig, there: int) -> str:
    """Why a node has no part in a run that asks for more GPUs of each node."""
    return f"has {there} GPUs where compute.num_gpus={compute.num_gpus} asks for more, and is left out"


def _host(row: dict[str, Any]) -> str:
    return f"{row['NodeManagerHostname']} ({row['NodeManagerAddress']})"


@contextlib.contextmanager
def _gone_afterwards(path: Path) -> Iterator[Path]:
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def require_ray(address: str, seconds: float = 10.0) -> None:
    """Raise OSError where no Ray listens at a cluster's address: Ray would try for minutes, in silence.

    A head speaks gRPC: it answers a client's first bytes with a frame of settings (HTTP/2, RFC 9113, section
    3.4). With TLS it says nothing before a handshake, so only the listener is looked for.
    """
    if "://" in address:
        raise OSError("HOST:PORT of the head itself is wanted, not of a client or a web page")
    if address == "local":
        raise OSError("`local` would start a Ray for this command alone")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return
        connection.sendall(_HTTP2_PREFACE + _EMPTY_SETTINGS)
        try:
            answer = connection.recv(_FRAME_HEADER_BYTES, socket.MSG_WAITALL)
        except TimeoutError:
            raise OSError(f"what listens there is no Ray head: it said nothing for {seconds:g} s") from None
    if len(answer) < _FRAME_HEADER_BYTES or answer[3] != _SETTINGS_FRAME:
        raise OSError("what listens there is no Ray head: it does not speak gRPC")


def _address_of_this_machine() -> str:
    """The head that this machine's last `ray start` has joined, dead or alive; "auto" where none is known.

    Told "auto", Ray takes this one as well, and waits for a dead one for ever.
    """
    try:
        # There is no public name for it.
        from ray._private.utils import read_ray_address

        return read_ray_address() or "auto"
    except (ImportError, OSError):
        return "auto"


def _say_nothing_of_raylets() -> None:
    """Keep Ray from printing forty lines of a dead node's log among ours, which say that it is lost."""
    from ray._private import worker

    # There is no setting for it: `log_to_driver` is about what workers print.
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *arguments, **settings: None


def _num_gpus(row: dict[str, Any]) -> int:
    return int(row["Resources"].get("GPU", 0))


def _imported() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "compute.launcher=ray: Ray is not installed here. Install it on all nodes, in one version "
            '(pip install "rlhf-iterate[cluster]", or -r requirements/cluster.txt), or use compute=local.'
        ) from None
    return ray
