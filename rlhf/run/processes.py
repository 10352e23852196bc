"""Processes as /proc shows them: who holds a file, what a process does, and the end of what it started.

Where there is no /proc (no Linux) nothing is found, and so nothing is ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
# As /proc names them: a stopped process is no hang of ours, and a computing one may only be slow.
_STATES = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "D": "waiting for a disk",
    "R": "computing",
    "S": "waiting",
    "Z": "dead, and not yet taken note of",
}
# Of prctl(2), which Python has no name for.
_PR_SET_CHILD_SUBREAPER = 36
_POLITE_SECONDS = 2.0
"""Between asking the children of a process to end and ending them."""
_PATIENCE_SECONDS = 10.0
"""So long the kernel has to take a killed process away: one that waits for a dead disk cannot be ended."""


def state_of(pid: int) -> str:
    """What a process does, such as "computing" or "stopped by a signal"; "gone" where there is none."""
    fields = _stat(pid)
    if fields is None:
        return "gone"
    return _STATES.get(fields[0], fields[0])


def is_gone(pid: int) -> bool:
    """Whether a process has come to its end, also where its parent has not taken note of that yet."""
    fields = _stat(pid)
    return fields is None or fields[0] in "ZX"


def started_at(pid: int) -> str | None:
    """When a living process began, in the kernel's ticks since it booted; None for one that is gone.

    With its number it names a process for as long as the machine is up.
    """
    fields = _stat(pid)
    # The 22nd of all fields, of which the first two are not among these.
    return None if fields is None or fields[0] in "ZX" or len(fields) < 20 else fields[19]


def children_of(parent: int) -> list[int]:
    """The processes that have this parent now, in order; those that are dead already are left out."""
    children = []
    for pid in _pids():
        fields = _stat(pid)
        if fields is not None and fields[0] not in "ZX" and int(fields[1]) == parent:
            children.append(pid)
    return children


def descendants_of(ancestor: int) -> list[int]:
    """Children of a process, their children, and so on."""
    found = []
    parents = [ancestor]
    while parents:
        children = children_of(parents.pop())
        found += children
        parents += children
    return found


def holders_of(file: Path) -> list[int]:
    """The processes that have a file open, as far as this user may look."""
    wanted = file.stat()
    holders = []
    for pid in _pids():
        # Processes end while they are looked at, and those of others are closed to us.
        with contextlib.suppress(OSError):
            for descriptor in (_PROC / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.path.samestat(descriptor.stat(), wanted):
                        holders.append(pid)
                        break
    return holders


def holds(pid: int, file: Path) -> bool | None:
    """Whether a process lives and has a file open; None where that cannot be seen (no /proc).

    A number alone says little: it may be another process's by now.
    """
    if not (_PROC / "self").exists():
        return None
    if is_gone(pid):
        return False
    try:
        wanted = file.stat()
        descriptors = list((_PROC / str(pid) / "fd").iterdir())
    except PermissionError:
        return True  # another user's: that it lives is all that is seen
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if os.path.samestat(descriptor.stat(), wanted):
                return True
    return False


def adopt_orphans() -> None:
    """Become the parent of all processes below this one whose own parent ends, in place of the first of all.

    A daemon leaves its family by ending its parent; so it stays in this one, and is ended with it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """End every process that this one has started, and what those have: asked first, killed after 2 s.

    For a process that has nothing left to do: nobody else can wait for its children afterwards.
    """
    started = time.monotonic()
    asked: set[int] = set()
    while time.monotonic() - started < _PATIENCE_SECONDS:
        is_late = time.monotonic() - started > _POLITE_SECONDS
        for pid in children_of(os.getpid()):
            if is_late:
                send(pid, signal.SIGKILL)
            elif pid not in asked:
                asked.add(pid)
                send(pid, signal.SIGTERM)
        # Children of a child that has ended are now ours (`adopt_orphans`), and found by the next look.
        if not _wait_for_children():
            return
        time.sleep(0.01)


def _wait_for_children() -> bool:
    """Take note of all children that have ended; returns whether others are left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def send(pid: int, number: int) -> None:
    """Signal a process that was found a moment ago; one that has ended meanwhile needs none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _pids() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(_PROC), key=lambda name: (len(name), name)):
            if name.isdecimal():
                yield int(name)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on, the parent next; None for a process that is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name comes before the state in parentheses, and may hold some itself.
    _, _, fields = text.rpartition(")")
    return fields.split()
