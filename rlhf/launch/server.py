"""The process that workers are forked from: Python's forkserver, with the heavy imports done once."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
import warnings
from multiprocessing import forkserver

from rlhf.launch.worker import redirect_output
from rlhf.run.processes import adopt_orphans, children_of, send

PRELOADED = ["rlhf.launch.preload"]

_PATIENCE_SECONDS = 1.0
"""So long a process whose pipes are closed may take to have an exit code, or one that was killed to go."""


def start(log: str) -> None:
    """Begin the imports of `rlhf.launch.preload` in the background, unless they have begun.

    Args:
        log: a file that takes what is printed meanwhile.
    """
    # Read by the module itself: the server gets nothing but the environment and the names of modules.
    os.environ["RLHF_PRELOAD_LOG"] = log
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def become_server(log: str) -> None:
    """Of the server itself, before its imports: end with the driver, print into a log, adopt orphans."""
    # PR_SET_PDEATHSIG, and at once: do not finish the imports of a driver that is dead.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # What libraries print when they are imported is no part of the run's output.
    redirect_output(log)
    # What a killed worker leaves behind comes here, where the driver finds and ends it. The server waits for
    # any child, and would warn of those that it has not started itself.
    adopt_orphans()
    warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")


def how_it_died() -> str | None:
    """What ended the server, with its process id; None while it lives, or when there is none.

    To the driver its death looks like that of every worker, for it hears of theirs by the server.
    """
    pid = _pid()
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


def end_orphans() -> None:
    """End what killed workers have left behind: every child of the server that it was not asked for."""
    pid = _pid()
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


def _pid() -> int | None:
    # Python names it nowhere else.
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid
