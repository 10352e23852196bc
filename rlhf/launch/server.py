"""The processes that workers are forked from: Python's forkservers, with imports done once.

There are three of them. The light one is up in a moment and has what reads and writes rows; the heavy one
takes ten seconds to import torch and the engines, in the background. The third one is for looks that call
rules, and has next to nothing.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

from rlhf.launch.worker import redirect_output
from rlhf.run.processes import adopt_orphans, children_of, send

_PATIENCE_SECONDS = 1.0
"""So long a process whose pipes are closed may take to have an exit code, or one that was killed to go."""


class Server:
    """A process that workers are forked from; it is started when it is first needed.

    Args:
        preloaded: the modules that it imports first; one of them calls `become_server`.
    """

    def __init__(self, preloaded: list[str]) -> None:
        self.preloaded = preloaded
        # Not the one that Python has for everybody: a library may start its own processes from that.
        self._python: Any = forkserver.ForkServer()

    def warm_up(self, log: str) -> None:
        """Begin the imports in the background, unless they have begun.

        Args:
            log: a file that takes what is printed meanwhile.
        """
        # Read by the modules themselves: the server gets nothing but the environment and their names.
        os.environ["RLHF_PRELOAD_LOG"] = log
        self._python.set_forkserver_preload(self.preloaded)
        with without_main():
            self._python.ensure_running()

    def start(self, process: BaseProcess) -> None:
        """Start a process of the context "forkserver" as a child of this server."""
        # Python's own is what such a process asks for; for this one call it is ours.
        usual = forkserver.connect_to_new_process
        setattr(forkserver, "connect_to_new_process", self._python.connect_to_new_process)  # noqa: B010
        try:
            with without_main():
                process.start()
        finally:
            setattr(forkserver, "connect_to_new_process", usual)  # noqa: B010

    def how_it_died(self) -> str | None:
        """What ended the server, with its process id; None while it lives, or when there is none.

        To the driver its death looks like that of every worker, for it hears of theirs by the server.
        """
        pid = self.pid
        if pid is None:
            return None
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            # Looked at only: Python takes note of the end itself when it starts the next server.
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None:
                break
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        if end.si_code == os.CLD_EXITED:
            return f"process {pid} ended with exit code {end.si_status}"
        text = f"process {pid} was killed by signal {end.si_status}"
        if end.si_status == signal.SIGKILL:
            text += " (the kernel does that when memory runs out: see dmesg)"
        return text

    def end_orphans(self) -> None:
        """End what killed workers have left behind: every child of the server that it was not asked for."""
        pid = self.pid
        if pid is None:
            return
        asked_for = {process.pid for process in multiprocessing.active_children()}
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            # Again and again, for what their own children are becomes the server's child in turn.
            orphans = [child for child in children_of(pid) if child not in asked_for]
            if not orphans:
                return
            for orphan in orphans:
                send(orphan, signal.SIGKILL)
            time.sleep(0.01)

    def stop(self) -> None:
        """End the server, and wait until it has gone."""
        self._python._stop()

    @property
    def pid(self) -> int | None:
        """Its process; None before it is started."""
        # Python names it nowhere else.
        pid: int | None = self._python._forkserver_pid
        return pid


LIGHT = Server(["rlhf.launch.preload_light"])
HEAVY = Server(["rlhf.launch.preload"])
RULES = Server(["rlhf.launch.preload_rules"])


@contextmanager
def without_main() -> Iterator[None]:
    """Let processes that are started meanwhile leave the driver's main module alone.

    Python would import it in each of them again, for functions that are defined in it. Ours is none of
    those, and what a command's main module imports (Hydra) takes most of a second.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def become_server() -> None:
    """Of the server itself, before its imports: end with the driver, print into a log, adopt orphans.

    Nothing where `RLHF_PRELOAD_LOG` is not set: then a test imports what a server would.
    """
    log = os.environ.get("RLHF_PRELOAD_LOG")
    if not log:
        return
    # PR_SET_PDEATHSIG, and at once: do not finish the imports of a driver that is dead.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # What libraries print when they are imported is no part of the run's output.
    redirect_output(log)
    # What a killed worker leaves behind comes here, where the driver finds and ends it. The server waits for
    # any child, and would warn of those that it has not started itself.
    adopt_orphans()
    warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")
