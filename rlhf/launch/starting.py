"""Workers of a node are started in the background, so that who asks the node something has an answer at once.

The first start of a node waits until the libraries are imported: seconds, and minutes where a file system is
cold or the machine busy. A supervisor that kept silent meanwhile would be taken for dead.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

from rlhf.launch.node import Message, Node
from rlhf.run.job import Job


class Starting:
    """Starts workers of a node one after the other, in a thread of its own.

    In one thread alone, and one that never ends: the forkservers end with the thread that has started them.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._attempt = object()
        """Whom workers are started for; another one after each `end`."""
        self._waiting: set[int] = set()
        """Ranks that have not been started yet."""
        self._error: BaseException | None = None
        self._work: queue.Queue[Callable[[], None]] = queue.Queue()
        self._has_news = threading.Event()
        """Something was started, or could not be."""
        threading.Thread(target=self._run, name="starting", daemon=True).start()

    def warm_up(self, engines: bool) -> None:
        """Begin the imports."""

        def warm_up() -> None:
            with contextlib.suppress(OSError):  # who starts a worker is told
                self._node.warm_up(engines)

        self._work.put(warm_up)

    def begin(self, job: Job[Any], rank: int, world_size: int, environment: dict[str, str]) -> None:
        """Start one worker, when those before it are; what goes wrong is raised by `messages`."""
        attempt = self._attempt
        self._waiting.add(rank)

        def start() -> None:
            if attempt is not self._attempt:
                return
            self._node.start(job, rank, world_size, environment)
            if attempt is self._attempt:
                self._waiting.discard(rank)
            else:
                # Ended while it started; of the next attempt none is there yet, for they wait behind it.
                self._node.end()

        self._work.put(start)

    def is_waiting(self, rank: int) -> bool:
        """Whether a worker has yet to be started."""
        return rank in self._waiting

    def messages(self, seconds: float) -> list[Message]:
        """What workers say, as of `Node.messages`.

        Raises:
            WorkerFailed: one could not be started.
        """
        self._has_news.clear()
        heard = self._node.messages(seconds if not self._waiting else 0.0)
        if not heard and self._waiting:
            self._has_news.wait(seconds)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return heard

    def end(self) -> None:
        """End all workers, and start none of those that wait for it."""
        self._attempt = object()
        self._waiting = set()
        self._error = None
        self._node.end()

    def _run(self) -> None:
        while True:
            work = self._work.get()
            attempt = self._attempt
            try:
                work()
            except BaseException as error:  # whatever it is, who started the worker must hear of it
                if attempt is self._attempt:
                    self._error = error
            self._has_news.set()
