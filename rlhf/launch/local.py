"""Stage processes on this machine: started, fed with shards, watched, ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rlhf.errors import USER_ERRORS, WorkerFailed
from rlhf.launch import worker as inside
from rlhf.launch.machine import environments, starting_environment
from rlhf.run.job import Job, Kind, Outcome

GRACE_SECONDS = 3.0
"""Between asking a worker to end and ending it."""
QUIET_SECONDS = 600.0  # of a worker, until a line says so; then twice as long, and so on
# As /proc names them: a stopped worker is no hang of ours, and a computing one may only be slow.
_STATES = {"T": "stopped by a signal", "D": "waiting for a disk", "R": "computing", "S": "waiting"}
_KEPT = "Finished shards and checkpoints are kept: the same command goes on from there."


@dataclass
class _WorkerProcess:
    """A stage process as the driver sees it.

    `heard_at` is the time of its last message and `last_report` what that said; `patience` is how many
    seconds of silence may pass until the next line about it.
    """

    process: BaseProcess
    pipe: Connection
    log: str
    patience: float
    outcome: Outcome | None = None
    is_open: bool = True
    heard_at: float = field(default_factory=time.monotonic)
    last_report: str = "starting or loading"

    def silence(self) -> float:
        return time.monotonic() - self.heard_at

    def whereabouts(self) -> str:
        pid = self.process.pid
        stat = Path(f"/proc/{pid}/stat")
        state = "gone"
        if stat.exists():
            # The command's name comes before the state in parentheses, and may hold some itself.
            _, fields = stat.read_text().rsplit(")", 1)
            state = fields.split()[0]
        state = _STATES.get(state, state)
        return (
            f"worker {self.process.name} (process {pid}, {state}), silent for "
            f"{self.silence():.0f} s, last heard of: {self.last_report}; log: {self.log}"
        )


@dataclass
class LocalLauncher:
    """Starts workers as child processes of this driver, and ends no other process.

    `preload` starts them from a process that has the heavy imports done once.
    """

    run_folder: Path
    token: str
    preload: bool = True
    device: str = "auto"
    on_progress: Callable[[float, float, str], None] = lambda done, total, note: None
    say: Callable[[str], None] = lambda text: None
    _context: Any = field(default=None, repr=False)

    def warm_up(self) -> None:
        """Begin the heavy imports in the background."""
        os.environ.update(starting_environment(self.device))
        if self._context is not None:
            return
        if not self.preload:
            self._context = multiprocessing.get_context("spawn")
            return
        from multiprocessing import forkserver

        # Read by the module itself: the server gets nothing but the environment and the names of modules.
        os.environ["RLHF_PRELOAD_LOG"] = str(self.run_folder / "logs" / "preload.log")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["rlhf.launch.preload"])
        forkserver.ensure_running()

    def launch(self, job: Job[Any], kind: Kind, shards: list[int]) -> Outcome:
        """Run one stage attempt to its end.

        Raises:
            UserError: a worker found the user's input wrong.
            WorkerFailed: a worker raised or died; the first one's message.
        """
        self.warm_up()
        workers: list[_WorkerProcess] = []
        try:
            tensor_parallel = int(getattr(job.config, "tensor_parallel_size", 1))
            worker_environments = environments(kind, job.compute, tensor_parallel, len(shards))
            world_size = len(worker_environments)
            # One by one into the list: whatever fails here or later, those that were started are ended.
            for rank, environment in enumerate(worker_environments):
                workers.append(self._start(job, rank, world_size, environment))
            self._attend(job, workers, deque(shards))
        finally:
            _end(workers)
        outcome = workers[0].outcome
        assert outcome is not None, "rank 0 ended well and said nothing"
        return outcome

    def _start(
        self,
        job: Job[Any],
        rank: int,
        world_size: int,
        environment: dict[str, str],
    ) -> _WorkerProcess:
        stage = job.name.replace("/", ".")
        log = str(self.run_folder / "logs" / f"{stage}.rank{rank}.log")
        assignment = inside.Assignment(
            run_folder=str(self.run_folder),
            token=self.token,
            log=log,
            rank=rank,
            world_size=world_size,
            num_threads=int(environment["OMP_NUM_THREADS"]),
            environment=environment,
        )
        ours, theirs = multiprocessing.Pipe()
        process = self._context.Process(
            target=inside.main,
            args=(job, assignment, theirs),
            name=f"{job.name}.{rank}",
        )
        process.start()
        # Our copy of its end: while that is open, the pipe of a dead worker would never read as closed.
        theirs.close()
        return _WorkerProcess(process, ours, log, patience=_patience(job))

    def _attend(self, job: Job[Any], workers: list[_WorkerProcess], shards: deque[int]) -> None:
        """Hand out shards and take in what workers report, until all of them have left."""
        num_shards = len(shards)
        progress_at = time.monotonic()
        while True:
            working = [worker for worker in workers if worker.is_open]
            if not working:
                return
            ready = wait([worker.pipe for worker in working], timeout=1.0)
            for worker in working:
                # Also of a dead one: a grandchild may still hold the pipe open.
                if worker.pipe in ready or not worker.process.is_alive():
                    self._attend_to(job, worker, shards)
            self._watch(job, [worker for worker in workers if worker.is_open])
            now = time.monotonic()
            if num_shards and now - progress_at > 1.0:
                progress_at = now
                self.on_progress(num_shards - len(shards), num_shards, "shards begun")

    def _attend_to(self, job: Job[Any], worker: _WorkerProcess, shards: deque[int]) -> None:
        """Take in one message of a worker, and answer it.

        Raises:
            UserError: it found the user's input wrong.
            WorkerFailed: it raised, or died without an outcome.
        """
        kind, body = _receive(worker)
        worker.heard_at = time.monotonic()
        worker.patience = _patience(job)
        if kind == "next":
            shard = shards.popleft() if shards else None
            worker.last_report = "finishing" if shard is None else f"shard {shard} begun"
            _send(worker, shard)
        elif kind == "progress":
            done, total, note = body
            worker.last_report = f"{done:g} of {total:g} {note}"
            self.on_progress(done, total, note)
        elif kind == "say":
            self.say(body)
        elif kind == "outcome":
            worker.outcome = body
        elif kind == "error":
            raise _failure(job, worker, body)
        elif worker.outcome is None:
            # The pipe closes before the process has ended, and only then has it an exit code.
            worker.process.join(GRACE_SECONDS)
            raise _death(job, worker)

    def _watch(self, job: Job[Any], working: list[_WorkerProcess]) -> None:
        """Say who is silent for long, and again after twice as long; fail after `compute.hang_seconds`."""
        limit = float(job.compute.hang_seconds)
        hangs = limit > 0 and any(worker.silence() >= limit for worker in working)
        is_quiet = any(worker.silence() >= worker.patience for worker in working)
        if not hangs and not is_quiet:
            return
        # All of them: ranks wait for each other, and the one that hangs may be another than the silent one.
        waited_for = "\n".join(f"  {worker.whereabouts()}" for worker in working)
        if hangs:
            raise WorkerFailed(
                f"{job.name} hangs:\n"
                f"{waited_for}\n"
                f"It was stopped after compute.hang_seconds={limit:g}. {_KEPT} If the work is only slow, "
                "raise compute.hang_seconds (0 waits for ever)."
            )
        self.say(f"  ? {job.name} waits for\n{waited_for}")
        for worker in working:
            worker.patience = max(worker.patience, 2 * worker.silence())


def _patience(job: Job[Any]) -> float:
    """Seconds of silence before the first line about it."""
    hang_seconds = float(job.compute.hang_seconds)
    if hang_seconds == 0:
        return QUIET_SECONDS
    # A quarter: a line, and another after twice as long, before the stage is stopped.
    return min(QUIET_SECONDS, hang_seconds / 4)


def _receive(worker: _WorkerProcess) -> tuple[str, Any]:
    """The next message of a worker; "closed" where there will be none."""
    try:
        # Without this a pipe that a grandchild holds open would be waited for, for ever.
        if not worker.process.is_alive() and not worker.pipe.poll():
            raise EOFError
        kind, body = worker.pipe.recv()
        return str(kind), body
    except (EOFError, OSError):
        worker.is_open = False
        return "closed", None


def _send(worker: _WorkerProcess, message: Any) -> None:
    try:
        worker.pipe.send(message)
    except OSError:
        worker.is_open = False


def _failure(job: Job[Any], worker: _WorkerProcess, body: tuple[str, str, str]) -> Exception:
    """What a worker raised: an error of the user as it was, anything else with the end of its traceback."""
    kind, message, text = body
    if kind in USER_ERRORS:
        return USER_ERRORS[kind](message)
    lines = text.strip().splitlines()
    last = "\n".join(lines[-12:])
    return WorkerFailed(f"{job.name} failed: {message}\n{last}\n{_KEPT}\nThe whole log: {worker.log}")


def _death(job: Job[Any], worker: _WorkerProcess) -> Exception:
    code = worker.process.exitcode
    how = f"ended with exit code {code}"
    if code is not None and code < 0:
        how = f"was killed by signal {-code}"
    if code == -signal.SIGKILL:
        how += " (the kernel does that when memory runs out: see dmesg)"
    return WorkerFailed(f"{job.name}: its worker {how}. {_KEPT} Log: {worker.log}")


def _end(workers: list[_WorkerProcess]) -> None:
    """End every worker that still lives, with all it started, and wait until it is gone."""
    for worker in workers:
        worker.pipe.close()
    # One with an outcome is on its way out, and is left to flush what it has.
    unfinished = [worker for worker in workers if worker.outcome is None]
    living = [worker for worker in unfinished if worker.process.is_alive()]
    for worker in living:
        _signal_group(worker.process, signal.SIGTERM)
    # One deadline for all: they end side by side.
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in living:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        if worker.outcome is None:
            # Also of one that is gone: what it started may live on.
            _signal_group(worker.process, signal.SIGKILL)
        worker.process.join(10 * GRACE_SECONDS)
        if worker.process.is_alive():
            _signal_group(worker.process, signal.SIGKILL)
            worker.process.join()


def _signal_group(process: BaseProcess, number: int) -> None:
    """Signal a worker's process group; before it has one, the worker itself."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        if process.is_alive():
            os.kill(process.pid, number)
