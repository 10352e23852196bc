"""Fencing: one driver on a run folder, and no new work while a process of an old attempt lives.

Two lock files. The driver holds `.driver.lock` exclusively; every worker holds `.workers.lock` shared. A
driver first takes its own lock, writes its token, then takes the workers' lock exclusively for a moment,
which waits for every worker of an earlier driver to be gone. A worker takes the shared lock, then checks that
the token is still its driver's: if it started too late, it leaves. Kernel locks vanish with their processes,
so nothing is stale after a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rlhf.data.json_text import json_text
from rlhf.data.shards import make_folders
from rlhf.errors import ConfigError, RunInUse, UserError, WorkerFailed, one_line
from rlhf.run.processes import holders_of, holds, state_of

DRIVER_LOCK = ".driver.lock"
WORKERS_LOCK = ".workers.lock"
_BOOKKEEPING = {DRIVER_LOCK, WORKERS_LOCK, ".digests.json", "config.yaml"}
PATIENCE_SECONDS = 5.0
"""After so long a wait for workers of an earlier driver, they are named."""
REMINDER_SECONDS = 30.0
_LOOK_SECONDS = 0.1


def _read_holder(driver_file: IO[str]) -> dict[str, str]:
    """What the driver wrote: {"pid": "4711", "host": "node7", "token": "5f0c…"}; empty before it has."""
    driver_file.seek(0)
    try:
        holder = json.loads(driver_file.read())
    # Between a driver's lock and its line the file is empty, or holds a part of it.
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


@dataclass(frozen=True)
class Driver:
    """Who has taken a run folder last. `is_alive` is None where that cannot be seen from here: on another
    machine, in another container, or without /proc.
    """

    pid: str
    host: str
    is_alive: bool | None


def driver_of(folder: Path) -> Driver | None:
    """The last driver of a run folder, without touching its lock; None where there has been none.

    Who tries a lock holds it for a moment, and would send a driver away that begins just then.
    """
    lock = folder / DRIVER_LOCK
    try:
        with open(lock, encoding="utf-8", errors="replace") as driver_file:
            holder = _read_holder(driver_file)
    except OSError:
        return None
    pid, host = one_line(holder.get("pid", "")), one_line(holder.get("host", ""))
    if not pid.isdecimal():
        return None
    return Driver(pid, host, holds(int(pid), lock) if host == socket.gethostname() else None)


@contextmanager
def hold_run(
    folder: Path,
    say: Callable[[str], None],
    elsewhere: str = "run_dir=<a new folder>",
) -> Iterator[str]:
    """Hold a run folder for as long as the context lasts; yields the token that workers must know.

    A folder that was not there before is removed again where the context ends in a UserError and nothing was
    made in it: a refused run leaves no trace.

    Raises:
        ConfigError: the folder cannot be made, or nothing can be written in it.
        RunInUse: another driver holds it.
    """
    made, was_empty = _make_folder(folder, elsewhere)
    with _open_driver_file(folder, elsewhere) as driver_file:
        try:
            fcntl.flock(driver_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(driver_file)
            pid = one_line(holder.get("pid", "?"))
            host = one_line(holder.get("host", "?"))
            raise RunInUse(
                f"{folder} is in use by process {pid} on {host}. Wait for it, "
                f"stop it (Ctrl-C or SIGTERM: it can be resumed), or work elsewhere with {elsewhere}."
            ) from None
        predecessor = _read_holder(driver_file)
        token = uuid.uuid4().hex
        holder = {"pid": str(os.getpid()), "host": socket.gethostname(), "token": token}
        driver_file.truncate(0)
        driver_file.write(json_text(holder))
        # Before the wait: a late worker that gets its share meanwhile must find the new token.
        driver_file.flush()
        _wait_for_old_workers(folder, predecessor, say)
        try:
            yield token
        except UserError:
            # Still under the lock: nobody else begins to work in it meanwhile.
            if was_empty and not _holds_work(folder):
                _remove(folder, made)
            raise


def _make_folder(folder: Path, elsewhere: str) -> tuple[list[Path], bool]:
    """Make the run folder; returns what was missing of its path, the topmost folder first, and whether the
    folder is empty.
    """
    try:
        made = make_folders(folder)
        return made, not any(folder.iterdir())
    except OSError as error:
        raise _not_writable(folder, error, elsewhere) from None


def _open_driver_file(folder: Path, elsewhere: str) -> IO[str]:
    try:
        # Not "w", which would empty the file before it is known whether another driver holds it.
        return open(folder / DRIVER_LOCK, "a+", encoding="utf-8")
    except OSError as error:
        raise _not_writable(folder, error, elsewhere) from None


def _not_writable(folder: Path, error: OSError, elsewhere: str) -> ConfigError:
    return ConfigError(
        f"{folder}: no folder that can be written ({error.strerror}). "
        f"Mind what is in its place and its rights, or work elsewhere: {elsewhere}."
    )


def _holds_work(folder: Path) -> bool:
    """Whether anything lies in a run folder but what every driver writes down before its first stage."""
    for parent, _, names in os.walk(folder):
        if Path(parent).relative_to(folder).parts[:1] == ("logs",):
            continue
        if not set(names) <= _BOOKKEEPING:
            return True
    return False


def _remove(folder: Path, made: list[Path]) -> None:
    """Remove what a driver has made of a run folder, and the folders above it as far as they are empty."""
    if not folder.exists():
        pass  # a file tool has removed it already
    elif folder not in made:
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    else:
        # Renamed first, so that no process that is about to end writes its log in it again.
        gone = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
    for parent in reversed(made[:-1]):
        with contextlib.suppress(OSError):  # something else is in it by now
            parent.rmdir()


def _wait_for_old_workers(folder: Path, predecessor: dict[str, str], say: Callable[[str], None]) -> None:
    # Closed at the end, which gives the lock back for this driver's own workers.
    with open(folder / WORKERS_LOCK, "a", encoding="utf-8") as workers_file:
        if _take_alone(workers_file):
            return
        say("waiting for the processes of the run's last attempt to leave …")
        started = time.monotonic()
        next_word = PATIENCE_SECONDS
        while not _take_alone(workers_file):
            time.sleep(_LOOK_SECONDS)
            waited = time.monotonic() - started
            if waited >= next_word:
                next_word = waited + REMINDER_SECONDS
                say(_waited_for(folder / WORKERS_LOCK, predecessor, waited))


def _take_alone(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _waited_for(workers_lock: Path, predecessor: dict[str, str], waited: float) -> str:
    """Which processes keep a driver waiting, and how each of them is ended."""
    lines = [f"still waiting after {waited:.0f} s, for"]
    for pid in holders_of(workers_lock):
        # This driver has the file open, too.
        if pid == os.getpid():
            continue
        state = state_of(pid)
        line = f"  process {pid} ({state}): "
        if state.startswith("stopped"):
            line += (
                f"it cannot leave by itself. End it (kill -9 {pid}), or wake it (kill -CONT {pid}): it then "
            )
            line += "sees that its driver is gone, and leaves."
        else:
            line += f"it should leave by itself. If it does not, end it: kill -9 {pid}"
        lines.append(line)
    if len(lines) == 1:
        pid_then = one_line(predecessor.get("pid", "?"))
        host = one_line(predecessor.get("host", "?"))
        lines.append(
            f"  a process that cannot be seen from here. The last driver was process {pid_then} on {host}: "
            f"look there, with its user's rights, for who has {workers_lock} open (fuser), and end that."
        )
    return "\n".join(lines)


def join_run(folder: Path, token: str) -> IO[str]:
    """Take a worker's share of the run folder; the file must stay open for as long as the worker lives.

    Raises:
        WorkerFailed: another driver has taken over meanwhile.
    """
    workers_file = open(folder / WORKERS_LOCK, "a", encoding="utf-8")  # noqa: SIM115 - kept open
    # On a cluster's file system there may be no locks: there, attempts have folders of their own.
    with contextlib.suppress(OSError):
        fcntl.flock(workers_file, fcntl.LOCK_SH)
    # After the lock, not before: from here on a new driver waits for this worker.
    with open(folder / DRIVER_LOCK, encoding="utf-8") as driver_file:
        holder = _read_holder(driver_file)
    if holder.get("token") != token:
        workers_file.close()
        raise WorkerFailed("another driver has taken over the run folder; this worker came too late")
    return workers_file
