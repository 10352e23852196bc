"""The inside of a stage process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from rlhf.errors import RlhfError, writing, writing_by_libraries
from rlhf.launch.handout import LATER
from rlhf.run.job import Job
from rlhf.run.lock import join_run
from rlhf.run.output import prepare_output, show
from rlhf.run.processes import adopt_orphans, descendants_of, end_children, send
from rlhf.run.stage_table import stage_function


@dataclass(frozen=True)
class Assignment:
    """What one worker is told besides the job."""

    run_folder: str
    token: str
    log: str
    rank: int
    world_size: int
    num_threads: int
    environment: dict[str, str]


class PipeWorker:
    """`rlhf.run.job.Worker` over a pipe to the driver."""

    def __init__(self, assignment: Assignment, pipe: Connection) -> None:
        self.rank = assignment.rank
        self.world_size = assignment.world_size
        self.num_threads = assignment.num_threads
        self._pipe = pipe
        self._kept: list[object] = []

    def shards(self) -> Iterator[int]:
        """Ask the driver for one shard after another until none is left."""
        for index in self.shards_ahead():
            assert index is not None, "who holds none is never told to wait"
            yield index
            self.made(index)

    def shards_ahead(self) -> Iterator[int | None]:
        """Ask the driver for another shard each time, whatever is in hand, until none is left."""
        while True:
            self._pipe.send(("next", None))
            answer = self._pipe.recv()
            if answer is None:
                return
            yield None if answer == LATER else int(answer)

    def made(self, index: int) -> None:
        """Tell the driver that a shard is written."""
        self._pipe.send(("made", index))

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Tell the driver how far this worker is."""
        body = (done, total, note)
        self._pipe.send(("progress", body))

    def say(self, text: str) -> None:
        """Let the driver print some lines."""
        self._pipe.send(("say", text))

    def keep(self, engine: object) -> None:
        """Hold it for as long as this worker lives."""
        self._kept.append(engine)


def main(job: Job[Any], assignment: Assignment, pipe: Connection) -> None:
    """Run one worker of a stage attempt; everything it reports goes through the pipe."""
    # A process group of its own: it can be ended whole, and the terminal's Ctrl-C reaches the driver only.
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    redirect_output(assignment.log)
    adopt_orphans()
    _leave_with_the_driver()
    try:
        # Held to the end of the process: as long as it lives, no other driver begins to work in the folder.
        workers_lock = join_run(Path(assignment.run_folder), assignment.token)
        os.environ.update(assignment.environment)
        if "torch" in sys.modules:  # preloaded: the environment came too late for it
            sys.modules["torch"].set_num_threads(assignment.num_threads)
        run_stage = stage_function(job.stage)
        # By name: what it keeps is to last until the process ends.
        worker = PipeWorker(assignment, pipe)
        began = time.time()
        with writing(), writing_by_libraries(job.out_path):
            outcome = run_stage(job, worker)
        # What is left of a stage's seconds was its start and its commit.
        show(f"{job.name}, rank {assignment.rank}: at work from {began:.3f} to {time.time():.3f}")
        pipe.send(("outcome", outcome))
        workers_lock.flush()
    except BaseException as error:  # whatever it is, the driver must hear of it
        text = traceback.format_exc()
        show(text, error=True)
        # As text: an exception of some library may be one that cannot be sent, or that the driver lacks.
        name = type(error).__name__
        kind = name if isinstance(error, RlhfError) else ""
        body = (kind, str(error) or name, text)
        _tell(pipe, ("error", body))
        _leave(1)
    _leave(0)


def _tell(pipe: Connection, message: tuple[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the driver may be gone, or have heard enough
        pipe.send(message)


def _leave(code: int) -> NoReturn:
    """End this process, after all that a rule or an engine has started in it."""
    with contextlib.suppress(Exception):  # a rule may have put anything in their place
        sys.stdout.flush()
        sys.stderr.flush()
    try:
        end_children()
    finally:
        # Engines leave threads and atexit hooks that can hang; all that matters is on disk and said.
        os._exit(code)


def redirect_output(log: str) -> None:
    """Append all that this process prints to a file, also what C libraries and child processes print.

    Where that file cannot be written, the output is left out: the stage itself may have room elsewhere.
    """
    # Its folder is not made here: where a refused run's folder was removed, nothing may bring it back.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        descriptor = os.open(log, flags, 0o644)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    prepare_output()


def _leave_with_the_driver() -> None:
    """Die, with all children, as soon as the driver is gone; SIGKILL leaves it no time to end its workers."""
    parent: Any = multiprocessing.parent_process()
    assert parent is not None, "a worker has a driver"

    def watch() -> None:
        wait([parent.sentinel])
        # What has left the group (a daemon) is still a descendant.
        for pid in descendants_of(os.getpid()):
            send(pid, signal.SIGKILL)
        os.killpg(0, signal.SIGKILL)  # its own group, itself included

    threading.Thread(target=watch, name="driver-watch", daemon=True).start()
