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
_STATES = {"T": "stopped by a signal", "D": "waiting for a disk", "R": "computing", "S": "waiting"}
_KEPT = "Finished shards and checkpoints are kept: the same command goes on from there."


@dataclass
class _Started:
    process: BaseProcess
    pipe: Connection
    log: str
    outcome: Outcome | None = None
    open: bool = True
    heard: float = field(default_factory=time.monotonic)
    last: str = "starting or loading"
    patience: float = QUIET_SECONDS

    def silence(self) -> float:
        return time.monotonic() - self.heard

    def whereabouts(self) -> str:
        stat = Path(f"/proc/{self.process.pid}/stat")
        state = stat.read_text().rsplit(")", 1)[1].split()[0] if stat.exists() else "gone"
        return (
            f"worker {self.process.name} (process {self.process.pid}, {_STATES.get(state, state)}), silent for "
            f"{self.silence():.0f} s, last heard of: {self.last}; log: {self.log}"
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
        if self._context is None:
            self._context = multiprocessing.get_context("forkserver" if self.preload else "spawn")
            if self.preload:
                from multiprocessing import forkserver

                os.environ["RLHF_PRELOAD_LOG"] = str(self.run_folder / "logs" / "preload.log")
                self._context.set_forkserver_preload(["rlhf.launch.preload"])
                forkserver.ensure_running()

    def launch(self, job: Job[Any], kind: Kind, shards: list[int]) -> Outcome:
        """Run one stage attempt to its end.

        Raises:
            UserError: a worker found the user's input wrong.
            WorkerFailed: a worker raised or died; the first one's message.
        """
        self.warm_up()
        started: list[_Started] = []
        try:
            tensor_parallel = int(getattr(job.config, "tensor_parallel_size", 1))
            for rank, env in enumerate(envs := environments(kind, job.compute, tensor_parallel, len(shards))):
                started.append(self._start(job, rank, len(envs), env))
            self._attend(job, started, deque(shards))
        finally:
            _end(started)
        outcome = started[0].outcome
        assert outcome is not None, "rank 0 ended well and said nothing"
        return outcome

    def _start(self, job: Job[Any], rank: int, world_size: int, env: dict[str, str]) -> _Started:
        log = self.run_folder / "logs" / f"{job.name.replace('/', '.')}.rank{rank}.log"
        assignment = inside.Assignment(
            str(self.run_folder), self.token, str(log), rank, world_size, int(env["OMP_NUM_THREADS"]), env
        )
        ours, theirs = multiprocessing.Pipe()
        process = self._context.Process(target=inside.main, args=(job, assignment, theirs), name=f"{job.name}.{rank}")
        process.start()
        theirs.close()
        return _Started(process, ours, str(log), patience=_patience(job))

    def _attend(self, job: Job[Any], started: list[_Started], shards: deque[int]) -> None:
        total, handed, said = len(shards), 0, time.monotonic()
        while any(w.open for w in started):
            ready = wait([w.pipe for w in started if w.open], timeout=1.0)
            for each in started:
                dead = each.open and not each.process.is_alive()  # a grandchild may still hold the pipe open
                if each.open and (each.pipe in ready or dead):
                    kind, body = _receive(each)
                    each.heard, each.patience = time.monotonic(), _patience(job)
                    if kind == "next":
                        handed += bool(shards)
                        given = shards.popleft() if shards else None
                        each.last = "finishing" if given is None else f"shard {given} begun"
                        _send(each, given)
                    elif kind == "progress":
                        each.last = "{:g} of {:g} {}".format(*body)
                        self.on_progress(*body)
                    elif kind == "outcome":
                        each.outcome = body
                    elif kind == "error":
                        raise _failure(job, each, body)
                    elif each.outcome is None:
                        each.process.join(GRACE_SECONDS)
                        raise _death(job, each)
            self._watch(job, [w for w in started if w.open])
            if total and time.monotonic() - said > 1.0:
                said = time.monotonic()
                self.on_progress(handed, total, "shards begun")

    def _watch(self, job: Job[Any], working: list[_Started]) -> None:
        """Say who has been silent for long, and again after twice as long; fail after `compute.hang_seconds`."""
        limit = float(job.compute.hang_seconds)
        hangs = limit and any(each.silence() >= limit for each in working)
        if not hangs and not any(each.silence() >= each.patience for each in working):
            return
        waited = "\n".join(f"  {each.whereabouts()}" for each in working)
        if hangs:
            raise WorkerFailed(
                f"{job.name} hangs:\n{waited}\nIt was stopped after compute.hang_seconds={limit:g}. {_KEPT} If the "
                "work is only slow, raise compute.hang_seconds (0 waits for ever)."
            )
        self.say(f"  ? {job.name} waits for\n{waited}")
        for each in working:
            each.patience = max(each.patience, 2 * each.silence())


def _patience(job: Job[Any]) -> float:
    """Seconds of silence before the first line about it."""
    return min(QUIET_SECONDS, float(job.compute.hang_seconds) / 4 or QUIET_SECONDS)


def _receive(each: _Started) -> tuple[str, Any]:
    try:
        if not each.process.is_alive() and not each.pipe.poll():
            raise EOFError
        kind, body = each.pipe.recv()
        return str(kind), body
    except (EOFError, OSError):
        each.open = False
        return "closed", None


def _send(each: _Started, message: Any) -> None:
    try:
        each.pipe.send(message)
    except OSError:
        each.open = False


def _failure(job: Job[Any], each: _Started, body: tuple[str, str, str]) -> Exception:
    kind, message, text = body
    if kind in USER_ERRORS:
        return USER_ERRORS[kind](message)
    last = "\n".join(text.strip().splitlines()[-12:])
    return WorkerFailed(f"{job.name} failed: {message}\n{last}\n{_KEPT}\nThe whole log: {each.log}")


def _death(job: Job[Any], each: _Started) -> Exception:
    code = each.process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    hint = " (the kernel does that when memory runs out: see dmesg)" if code == -signal.SIGKILL else ""
    return WorkerFailed(f"{job.name}: its worker {how}{hint}. {_KEPT} Log: {each.log}")


def _end(started: list[_Started]) -> None:
    """End every worker that still lives, with all it started, and wait until it is gone."""
    for each in started:
        each.pipe.close()
    living = [each for each in started if each.process.is_alive() and each.outcome is None]
    for each in living:
        _signal_group(each.process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for each in living:
        each.process.join(max(0.0, deadline - time.monotonic()))
    for each in started:
        if each.outcome is None:
            _signal_group(each.process, signal.SIGKILL)
        each.process.join(10 * GRACE_SECONDS)
        if each.process.is_alive():
            _signal_group(each.process, signal.SIGKILL)
            each.process.join()


def _signal_group(process: BaseProcess, number: int) -> None:
    """Signal a worker's process group; before it has one, the worker itself."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        if process.is_alive():
            os.kill(process.pid, number)
