"""What stands for the driver on one node of a cluster: it starts workers, and passes on what they say.

Ray places it and watches it; it holds the node's GPUs, and the workers are the processes that the local
launcher starts. When its driver or its node goes, it goes, and its workers see that and leave.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError
from rlhf.launch.machine import Group, environments, gpus, num_cores, rank_environments, visible_gpus
from rlhf.launch.node import Message, Node, log_of
from rlhf.launch.ports import free_port
from rlhf.launch.starting import Starting
from rlhf.run.attempt_folder import attempt_folder
from rlhf.run.file_system_probe import leave_mark, read_mark
from rlhf.run.job import Job, Kind

_SIOCGIFADDR = 0x8915
"""Of ioctl(2): the address of a network interface."""


MARK_SECONDS = 10.0
"""So long a file that another node has written may take to be seen."""
_FORWARDED = (
    "HF_",
    "TRANSFORMERS_",
    "TORCH_",
    "PYTORCH_",
    "TRITON_",
    "VLLM_",
    "NCCL_",
    "GLOO_",
    "OPENAI_",
    "RLHF_",
    "SSL_CERT_",  # whom a server of a judge is to be signed by
)
"""How variables begin that workers get from the driver's environment; what a stage names comes on top."""


@dataclass(frozen=True)
class Settings:
    """What a supervisor is told when it starts.

    `gpu_ids` are the GPUs that Ray counts on this node, and `cores` its CPUs; `environment` is what the
    driver's has of libraries' settings, which goes where the node does not say otherwise.
    """

    run_folder: str
    token: str
    preload: bool
    device: str
    working_directory: str
    environment: dict[str, str]
    has_gpus: bool
    cores: int
    address: str


@dataclass(frozen=True)
class Facts:
    """What a node says of itself."""

    host: str
    pid: int
    num_gpus: int


class Supervisor:
    """One for each node and run. The driver calls its methods, one at a time, and they answer at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        for name, value in settings.environment.items():
            os.environ.setdefault(name, value)
        if not settings.has_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if Path(settings.working_directory).is_dir():
            os.chdir(settings.working_directory)
        self._run_folder = Path(settings.run_folder)
        self._node = Node(self._run_folder, settings.token, settings.preload, settings.device)
        self._starting = Starting(self._node)

    def facts(self) -> Facts:
        """Where this is, and that it is alive."""
        return Facts(socket.gethostname(), os.getpid(), len(visible_gpus()))

    def answer(self, mark: str, text: str) -> tuple[Facts, str]:
        """Look for what the driver has written in the run folder, and write another file beside it.

        Returns:
            Where this is, and that file.

        Raises:
            ConfigError: the driver's file is not seen from here, or this one cannot be written.
        """
        path = Path(mark)
        read_mark(path, text, MARK_SECONDS)
        try:
            return self.facts(), str(leave_mark(path.parent, text))
        except OSError as error:
            raise ConfigError(f"{path.parent}: cannot be written from there: {error.strerror}") from None

    def missing(self, paths: list[str]) -> list[str]:
        """Those of some paths that this node does not see."""
        return [path for path in paths if not os.path.exists(path)]

    def warm_up(self, engines: bool) -> None:
        """Begin the imports in the background."""
        self._starting.warm_up(engines)

    def port(self) -> int:
        """A port on which rank 0 can listen."""
        return free_port()

    def num_ranks(self, compute: ComputeConfig) -> int:
        """Training ranks that this node has GPUs for; 0 where it has none."""
        return len(gpus(compute))

    def room(self, compute: ComputeConfig, tensor_parallel: int, num_shards: int) -> list[dict[str, str]]:
        """An environment for each inference worker that this node has room for.

        Raises:
            ConfigError: it cannot be shared out as asked.
        """
        cores = self._cores()
        return environments(Kind.inference, compute, tensor_parallel, num_shards, cores)

    def begin_worker(
        self, job: Job[Any], own: str, rank: int, world_size: int, environment: dict[str, str]
    ) -> None:
        """Begin to start an inference worker, whose shards go into a folder of its own.

        Args:
            job: the stage's.
            own: the folder's name among those of attempts, which no other worker ever had.
            rank: 0 does what one worker alone is to do.
            world_size: workers of this node.
            environment: of the process.
        """
        folder = attempt_folder(job.out_path, own)
        self._starting.begin(replace(job, shards_out=str(folder)), rank, world_size, environment)

    def begin_ranks(self, job: Job[Any], ranks: list[int], group: Group, is_alone: bool) -> list[str]:
        """Begin to start training ranks, which write into the job's folder; returns their logs.

        Args:
            job: with the folder of this attempt as `out`.
            ranks: those of this node.
            group: all of them.
            is_alone: whether all ranks are on this machine, and can do without its network.
        """
        interface = "lo" if is_alone else interface_of(self._settings.address)
        interface = os.environ.get("RLHF_SOCKET_IFNAME", interface)
        logs = []
        shared = rank_environments(job.compute, ranks, group, self._cores(), interface)
        for rank, environment in zip(ranks, shared, strict=True):
            self._starting.begin(job, rank, group.world_size, environment)
            logs.append(log_of(self._run_folder, job, rank))
        return logs

    def exchange(self, answers: list[tuple[int, Any]], seconds: float) -> list[Message]:
        """Give workers their answers, and return what is said within so many seconds.

        Raises:
            WorkerFailed: one cannot be started.
        """
        for rank, answer in answers:
            self._node.send(rank, answer)
        return self._starting.messages(seconds)

    def state(self, rank: int) -> str:
        """What a worker does."""
        if self._starting.is_waiting(rank):
            return "not started: its node still imports the libraries"
        return self._node.state(rank)

    def end(self) -> None:
        """End all workers, with all they have started."""
        self._starting.end()

    def _cores(self) -> int:
        return max(1, min(self._settings.cores or num_cores(), num_cores()))


def interface_of(address: str) -> str | None:
    """The name of the network interface that has an IPv4 address, such as "eth0"; None where none has it."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            request = struct.pack("256s", name[:15].encode())
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # it has none
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return None


def settings_of_libraries() -> dict[str, str]:
    """What the driver's environment says to the libraries that workers use, and to rules."""
    found = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
    own = [path for path in sys.path if path]
    # Before those of the node: a rule's module lies where the driver was started.
    found["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *own])
    # What the local launcher sets for a machine without a network is none of a cluster's.
    found.pop("GLOO_SOCKET_IFNAME", None)
    return found


def named_by(config: Any) -> dict[str, str]:
    """The variables that a stage's config names, as the driver's environment has them: a judge's key."""
    name = getattr(config, "api_key_variable", None)
    return {name: os.environ[name]} if name and name in os.environ else {}
