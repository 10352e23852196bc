"""The processes of one stage attempt on this machine: started, heard, ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rlhf.errors import WorkerFailed
from rlhf.launch import worker as inside
from rlhf.launch.groups import wait_for_groups
from rlhf.launch.machine import starting_environment
from rlhf.launch.server import HEAVY, LIGHT, RULES, Server, without_main
from rlhf.run.job import Job
from rlhf.run.processes import descendants_of, is_gone, send, state_of
from rlhf.run.stage_table import needs_engine

GRACE_SECONDS = 3.0
"""Between asking a worker to end and ending it."""
KEPT = "Finished shards and checkpoints are kept: the same command goes on from there."
_UNKNOWN_CODE = 255
"""What Python gives as the exit code of a forked worker whose server is dead: it cannot know it then."""

Message = tuple[int, str, Any]
"""Who says what kind of thing, and the thing: (0, "made", 3). "closed" comes last of every worker, with how
it ended."""


@dataclass
class WorkerProcess:
    """A stage process on this machine.

    One that `is_leaving` has said all that it will, and ends itself and what it has started. `server` is what
    it was forked from, None where it was spawned.
    """

    process: BaseProcess
    pipe: Connection
    rank: int = 0
    server: Server | None = None
    is_open: bool = True
    is_leaving: bool = False


class Node:
    """Starts workers as child processes of this process, and ends no other process.

    Args:
        run_folder: whose stages they are.
        token: of the run's driver (`rlhf.run.lock.hold_run`).
        preload: whether they are forked from processes that have their imports done (`rlhf.launch.server`).
        device: `compute.device`.
    """

    def __init__(self, run_folder: Path, token: str, preload: bool = True, device: str = "auto") -> None:
        self._run_folder = run_folder
        self._token = token
        self._preload = preload
        self._device = device
        self._workers: list[WorkerProcess] = []

    def warm_up(self, engines: bool = True, rows: bool = True) -> None:
        """Begin the imports in the background.

        Args:
            engines: whether to begin the heavy ones too.
            rows: whether rows will be read or written; else no more than rules will be called.
        """
        # Here and by no other process: where a refused run's folder was removed, none may make it again.
        (self._run_folder / "logs").mkdir(parents=True, exist_ok=True)
        os.environ.update(starting_environment(self._device))
        if not self._preload:
            return
        log = str(self._run_folder / "logs" / "preload.log")
        if rows:
            LIGHT.warm_up(log)
        else:
            RULES.warm_up(log)
        if engines:
            HEAVY.warm_up(log)

    def start(
        self,
        job: Job[Any],
        rank: int,
        world_size: int,
        environment: dict[str, str],
    ) -> str:
        """Start one worker; returns its log.

        Raises:
            WorkerFailed: it cannot be started.
        """
        log = log_of(self._run_folder, job, rank)
        assignment = inside.Assignment(
            run_folder=str(self._run_folder),
            token=self._token,
            log=log,
            rank=rank,
            world_size=world_size,
            num_threads=int(environment["OMP_NUM_THREADS"]),
            environment=environment,
        )
        server = self._server_for(job)
        ours, theirs = multiprocessing.Pipe()
        context: Any = multiprocessing.get_context("spawn" if server is None else "forkserver")
        process: BaseProcess = context.Process(
            target=inside.main,
            args=(job, assignment, theirs),
            name=f"{job.name}.{rank}",
        )
        try:
            if server is None:
                with without_main():
                    process.start()
            else:
                server.start(process)
        except (OSError, EOFError) as error:
            raise _no_start(job, error, server) from error
        # Our copy of its end: while that is open, the pipe of a dead worker would never read as closed.
        theirs.close()
        self._workers.append(WorkerProcess(process, ours, rank, server))
        return log

    def _server_for(self, job: Job[Any]) -> Server | None:
        """What a stage's workers are forked from; None where they are spawned."""
        if not self._preload:
            return None
        if job.stage == "call_rule":
            return RULES
        # Who reads and writes rows does not wait until torch is imported.
        return HEAVY if needs_engine(job.stage, job.config) else LIGHT

    def messages(self, seconds: float) -> list[Message]:
        """What workers say, one message of each that says something; waits for the first at most so long."""
        listening = [worker for worker in self._workers if worker.is_open]
        if not listening:
            return []
        ready = wait([worker.pipe for worker in listening], timeout=seconds)
        heard = []
        for worker in listening:
            # Also of a dead one: a grandchild may still hold the pipe open.
            if worker.pipe in ready or not worker.process.is_alive():
                kind, body = receive(worker)
                heard.append((worker.rank, kind, body))
        return heard

    def send(self, rank: int, message: Any) -> None:
        """Answer a worker; one that has closed its pipe is heard of by `messages`."""
        for worker in self._workers:
            if worker.rank == rank:
                tell(worker, message)

    def state(self, rank: int) -> str:
        """What a worker does: "process 4711, computing"."""
        for worker in self._workers:
            if worker.rank == rank:
                pid = worker.process.pid
                assert pid is not None, "it was started"
                return f"process {pid}, {state_of(pid)}"
        return "no process"

    def end(self) -> None:
        """End every worker that still lives, with all it started, and wait until it is gone."""
        workers = self._workers
        self._workers = []
        end_workers(workers)


def log_of(run_folder: Path, job: Job[Any], rank: int) -> str:
    """The log of one worker."""
    stage = job.name.replace("/", ".")
    return str(run_folder / "logs" / f"{stage}.rank{rank}.log")


def receive(worker: WorkerProcess) -> tuple[str, Any]:
    """The next message of a worker; "closed" where there will be none, with how it ended."""
    try:
        # Without this a pipe that a grandchild holds open would be waited for, for ever.
        if not worker.process.is_alive() and not worker.pipe.poll():
            raise EOFError
        kind, body = worker.pipe.recv()
    except (EOFError, OSError):
        worker.is_open = False
        return "closed", _end_of(worker)
    if kind in ("outcome", "error"):
        worker.is_leaving = True
    return str(kind), body


def tell(worker: WorkerProcess, message: Any) -> None:
    """Send a worker something, if it still listens."""
    with contextlib.suppress(OSError):
        worker.pipe.send(message)


def _end_of(worker: WorkerProcess) -> str:
    """How a worker that has closed its pipe came to its end; "" of one that had said all."""
    if worker.is_leaving:
        return ""
    # The pipe closes before the process has ended, and only then has it an exit code.
    worker.process.join(GRACE_SECONDS)
    return how_it_ended(worker)


def how_it_ended(worker: WorkerProcess) -> str:
    """As a sentence's end: "its worker was killed by signal 9"."""
    code = worker.process.exitcode
    if code == _UNKNOWN_CODE and worker.server is not None:
        how_server = worker.server.how_it_died()
        if how_server is not None:
            return _death_of_server(how_server)
    how = f"its worker ended with exit code {code}."
    if code is not None and code < 0:
        how = f"its worker was killed by signal {-code}."
    if code == -signal.SIGKILL:
        how = (
            f"its worker was killed by signal {-code} (the kernel does that when memory runs out: see dmesg)."
        )
    return how


def _no_start(job: Job[Any], error: Exception, server: Server | None) -> Exception:
    """Why a worker could not be started."""
    how = None if server is None else server.how_it_died()
    if how is not None:
        return WorkerFailed(f"{job.name}: {_death_of_server(how)} {KEPT}")
    what = f"{type(error).__name__}: {error}"
    return WorkerFailed(f"{job.name}: no worker can be started ({what}). {KEPT}")


def _death_of_server(how: str) -> str:
    return (
        f"the forkserver, which workers are started from, is gone: {how}. Its workers were ended. "
        "compute.preload=false starts them without it, each with its own imports."
    )


def end_workers(workers: list[WorkerProcess]) -> None:
    """End every worker that still lives, with all it started, and wait until it is gone."""
    for worker in workers:
        worker.pipe.close()
    unfinished = [worker for worker in workers if not worker.is_leaving]
    living = [worker for worker in unfinished if worker.process.is_alive()]
    for worker in living:
        _end_daemons(worker.process)
        _signal_group(worker.process, signal.SIGTERM)
    # One deadline for all: they end side by side.
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in living:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        if not worker.is_leaving:
            # Also of one that is gone: what it started may live on.
            _signal_group(worker.process, signal.SIGKILL)
        worker.process.join(10 * GRACE_SECONDS)
        if worker.process.is_alive():
            _signal_group(worker.process, signal.SIGKILL)
            worker.process.join()
        if worker.process.exitcode == _UNKNOWN_CODE:
            _wait_for_the_end(worker.process)
    # The others' children are none of ours: an import that goes on meanwhile may have started some.
    for server in {worker.server for worker in workers if worker.server is not None}:
        server.end_orphans()
    _wait_for_children(workers)


def _end_daemons(process: BaseProcess) -> None:
    """End what a worker has started and what has left its process group since."""
    assert process.pid is not None
    for pid in descendants_of(process.pid):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) != process.pid:
                send(pid, signal.SIGKILL)


def _wait_for_the_end(process: BaseProcess) -> None:
    """Wait for a worker of a server that has died: Python has taken both for dead."""
    assert process.pid is not None
    deadline = time.monotonic() + 10 * GRACE_SECONDS
    while not is_gone(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)


def _wait_for_children(workers: list[WorkerProcess]) -> None:
    """Wait until all that workers have started is gone too; what stays is ended.

    The processes of a tensor-parallel engine leave some time after their worker, and hold the GPUs' memory
    until then, which the next stage is to have.
    """
    groups = {worker.process.pid for worker in workers if worker.process.pid is not None}
    if wait_for_groups(groups, 10 * GRACE_SECONDS):
        return
    for worker in workers:
        _signal_group(worker.process, signal.SIGKILL)
    wait_for_groups(groups, 10 * GRACE_SECONDS)


def _signal_group(process: BaseProcess, number: int) -> None:
    """Signal a worker's process group; before it has one, the worker itself."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        if process.is_alive():
            os.kill(process.pid, number)
