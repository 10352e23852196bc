"""Stage processes on this machine: started, fed with shards, watched, ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rlhf.data.shards import read_counts, shard_name
from rlhf.errors import USER_ERRORS, WorkerFailed, one_line
from rlhf.launch import worker as inside
from rlhf.launch.groups import wait_for_groups
from rlhf.launch.handout import LATER, Handout
from rlhf.launch.machine import environments, starting_environment
from rlhf.launch.server import HEAVY, LIGHT, RULES, Server, without_main
from rlhf.run.console import Console
from rlhf.run.job import Job, Kind, Outcome
from rlhf.run.processes import descendants_of, is_gone, send, state_of
from rlhf.run.stage_table import needs_engine

GRACE_SECONDS = 3.0
"""Between asking a worker to end and ending it."""
# What Python gives as the exit code of a forked worker whose server is dead, since it cannot know it then.
_UNKNOWN_CODE = 255
QUIET_SECONDS = 600.0  # of a worker, until a line says so; then twice as long, and so on
_KEPT = "Finished shards and checkpoints are kept: the same command goes on from there."


@dataclass
class _WorkerProcess:
    """A stage process as the driver sees it.

    One that `is_leaving` has said all that it will, and ends itself and what it has started. `heard_at` is
    the time of its last message and `last_report` what that said; `patience` is how many seconds of silence
    may pass until the next line about it. `server` is what it was forked from, None where it was spawned.
    """

    process: BaseProcess
    pipe: Connection
    log: str
    patience: float
    rank: int = 0
    server: Server | None = None
    outcome: Outcome | None = None
    is_open: bool = True
    is_leaving: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    last_report: str = "starting or loading"

    def silence(self) -> float:
        return time.monotonic() - self.heard_at

    def whereabouts(self) -> str:
        pid = self.process.pid
        assert pid is not None, "it was started"
        return (
            f"worker {self.process.name} (process {pid}, {state_of(pid)}), silent for "
            f"{self.silence():.0f} s, last heard of: {self.last_report}; log: {self.log}"
        )


@dataclass
class LocalLauncher:
    """Starts workers as child processes of this driver, and ends no other process.

    `preload` forks them from processes that have their imports done once (`rlhf.launch.server`).
    """

    run_folder: Path
    token: str
    preload: bool = True
    device: str = "auto"
    on_progress: Callable[[float, float, str], None] = lambda done, total, note: None
    say: Callable[[str], None] = lambda text: None
    on_shard: Callable[[Mapping[str, int]], None] = lambda counts: None
    """Told what was counted in each shard that has been made."""

    def warm_up(self, engines: bool = True, rows: bool = True) -> None:
        """Begin the imports in the background.

        Args:
            engines: whether to begin the heavy ones too.
            rows: whether rows will be read or written; else no more than rules will be called.
        """
        # Here and by no other process: where a refused run's folder was removed, none may make it again.
        (self.run_folder / "logs").mkdir(parents=True, exist_ok=True)
        os.environ.update(starting_environment(self.device))
        if not self.preload:
            return
        log = str(self.run_folder / "logs" / "preload.log")
        if rows:
            LIGHT.warm_up(log)
        else:
            RULES.warm_up(log)
        if engines:
            HEAVY.warm_up(log)

    def launch(self, job: Job[Any], kind: Kind, shards: list[int]) -> Outcome:
        """Run one stage attempt to its end.

        Raises:
            UserError: a worker found the user's input wrong.
            WorkerFailed: a worker raised or died; the first one's message.
        """
        engines = needs_engine(job.stage, job.config)
        only_calls_a_rule = job.stage == "call_rule"
        self.warm_up(engines, rows=not only_calls_a_rule)
        server = None
        if self.preload and only_calls_a_rule:
            server = RULES
        elif self.preload:
            # Who reads and writes rows does not wait until torch is imported.
            server = HEAVY if engines else LIGHT
        # Until a worker says more: with its server's imports that may take a minute on a busy machine.
        self.on_progress(0, 0, "importing torch and the engines" if engines else "starting")
        workers: list[_WorkerProcess] = []
        try:
            tensor_parallel = int(getattr(job.config, "tensor_parallel_size", 1))
            worker_environments = environments(kind, job.compute, tensor_parallel, len(shards))
            world_size = len(worker_environments)
            # One by one into the list: whatever fails here or later, those that were started are ended.
            for rank, environment in enumerate(worker_environments):
                workers.append(self._start(job, rank, world_size, environment, server))
            self._attend(job, workers, Handout(shards, world_size))
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
        server: Server | None,
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
        return _WorkerProcess(process, ours, log, _patience(job), rank, server)

    def _attend(self, job: Job[Any], workers: list[_WorkerProcess], shards: Handout) -> None:
        """Hand out shards and take in what workers report, until all of them have left."""
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
            if shards.total and now - progress_at > 1.0:
                progress_at = now
                self.on_progress(shards.num_made(), shards.total, "shards")

    def _attend_to(self, job: Job[Any], worker: _WorkerProcess, shards: Handout) -> None:
        """Take in one message of a worker, and answer it.

        Raises:
            UserError: it found the user's input wrong.
            WorkerFailed: it raised, or died without an outcome.
        """
        kind, body = _receive(worker)
        worker.heard_at = time.monotonic()
        worker.patience = _patience(job)
        if kind == "next":
            shard = shards.take(worker.rank)
            if shard is None:
                worker.last_report = "finishing"
            elif shard != LATER:
                worker.last_report = f"shard {shard} begun"
            _send(worker, shard)
        elif kind == "made":
            shards.made(worker.rank, body)
            worker.last_report = f"shard {body} made"
            self.on_progress(shards.num_made(), shards.total, "shards")
            self.on_shard(_counts_of(job, body))
        elif kind == "progress":
            done, total, note = body
            worker.last_report = f"{done:g} of {total:g} {note}" if total else note
            self.on_progress(done, total, note)
        elif kind == "say":
            self.say(body)
        elif kind == "outcome":
            worker.outcome = body
            worker.is_leaving = True
        elif kind == "error":
            worker.is_leaving = True
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


def watched_launcher(cfg: Any, folder: Path, token: str, console: Console) -> LocalLauncher:
    """The launcher of a run, whose stages a person sees on a console.

    Args:
        cfg: the run's config.
        folder: of the run.
        token: of its driver (`rlhf.run.lock.hold_run`).
        console: what it tells.
    """
    compute = cfg.compute
    device = compute.device.value
    return LocalLauncher(folder, token, compute.preload, device, console.progress, console.say, console.held)


def _counts_of(job: Job[Any], shard: int) -> dict[str, int]:
    """What was counted in a shard; it is only shown, so that no failure to read it is one of the run."""
    try:
        return read_counts(job.out_path / shard_name(shard))
    except (OSError, ValueError):
        return {}


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
    # The traceback has the others.
    first, _, _ = message.strip().partition("\n")
    lines = text.strip().split("\n")
    # Set off, since the text of an error may come from anywhere, and its lines look like ours.
    last = "\n".join(f"  | {line}" for line in lines[-12:])
    return WorkerFailed(f"{job.name} failed: {one_line(first)}\n{last}\n{_KEPT}\nThe whole log: {worker.log}")


def _no_start(job: Job[Any], error: Exception, server: Server | None) -> Exception:
    """Why a worker could not be started."""
    how = None if server is None else server.how_it_died()
    if how is not None:
        return _death_of_server(job, how)
    what = f"{type(error).__name__}: {error}"
    return WorkerFailed(f"{job.name}: no worker can be started ({what}). {_KEPT}")


def _death(job: Job[Any], worker: _WorkerProcess) -> Exception:
    code = worker.process.exitcode
    if code == _UNKNOWN_CODE and worker.server is not None:
        how = worker.server.how_it_died()
        if how is not None:
            return _death_of_server(job, how)
    how = f"ended with exit code {code}"
    if code is not None and code < 0:
        how = f"was killed by signal {-code}"
    if code == -signal.SIGKILL:
        how += " (the kernel does that when memory runs out: see dmesg)"
    return WorkerFailed(f"{job.name}: its worker {how}. {_KEPT} Log: {worker.log}")


def _death_of_server(job: Job[Any], how: str) -> Exception:
    return WorkerFailed(
        f"{job.name}: the forkserver, which workers are started from, is gone: {how}. Its workers were "
        f"ended. {_KEPT} compute.preload=false starts them without it, each with its own imports."
    )


def _end(workers: list[_WorkerProcess]) -> None:
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


def _wait_for_children(workers: list[_WorkerProcess]) -> None:
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
