"""Fencing: one driver on a run folder, and no new work while a process of an old attempt lives.

Two lock files. The driver holds `.driver.lock` exclusively; every worker holds `.workers.lock` shared. A
driver first takes its own lock, writes its token, then takes the workers' lock exclusively for a moment,
which waits for every worker of an earlier driver to be gone. A worker takes the shared lock, then checks that
the token is still its driver's: if it started too late, it leaves. Kernel locks vanish with their processes,
so nothing is stale after a crash.

That is all on a file system of this machine. Others are shared by machines that may not see each other's
locks: there the record in `.driver.lock` decides too. A driver that leaves in order says so in it; one that
has not, and cannot be seen from here, is taken over by an explicit word only (`take_over`). It finds out
before its next stage, and before it commits one: the token is another's (`require_ours`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from rlhf.config.overrides import override, pasted
from rlhf.data.shards import make_folders
from rlhf.errors import ConfigError, RunInUse, UserError, WorkerFailed, one_line
from rlhf.run.aside import holds_work, remove_made, remove_rest
from rlhf.run.file_system import FileSystem, file_system_of
from rlhf.run.file_system_probe import tried_out
from rlhf.run.holder import (
    DRIVER_LOCK,
    WORKERS_LOCK,
    Holder,
    is_alive,
    mark_ended,
    read_holder,
    this_process,
    write_holder,
)
from rlhf.run.processes import holders_of, state_of
from rlhf.run.progress import read_progress
from rlhf.run.stopwatch import duration

PATIENCE_SECONDS = 5.0
"""After so long a wait for workers of an earlier driver, they are named."""
REMINDER_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_RECORD_SECONDS = 1.0
"""So long a driver that has just made the file has to write its record."""
# What file systems say to a lock that they cannot give: NFS without its lock service, Lustre mounted without.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO, errno.EINVAL)


@dataclass(frozen=True)
class Driver:
    """Who has taken a run folder last. `is_alive` is None where that cannot be seen from here: on another
    machine, in another container, or without /proc. `started` is "" of an older version.
    """

    pid: str
    host: str
    is_alive: bool | None
    started: str = ""


def driver_of(folder: Path) -> Driver | None:
    """The last driver of a run folder, without touching its lock; None where there has been none.

    Who tries a lock holds it for a moment, and would send a driver away that begins just then.
    """
    holder = read_holder(folder)
    if not holder.pid.isdecimal():
        return None
    return Driver(holder.pid, holder.host, is_alive(holder, folder), holder.started)


def still_ours(folder: Path, token: str) -> bool:
    """Whether a driver still has its run folder: its token stands in the record."""
    return read_holder(folder).token == token


def require_ours(folder: Path, token: str) -> None:
    """Stop a driver whose run folder another one has taken over.

    Raises:
        RunInUse: another token stands in the record, or none.
    """
    holder = read_holder(folder)
    if holder.token == token:
        return
    if holder.token:
        how = f"was taken over by {holder}"
    else:
        how = f"has no record any more of who works on it: {DRIVER_LOCK} is gone or damaged"
    raise RunInUse(
        f"{folder} {how}. This driver (process {os.getpid()}) stops here and has changed nothing since. "
        "What is finished is kept; the same command goes on from there when nobody else works on it."
    )


@contextmanager
def hold_run(
    folder: Path,
    say: Callable[[str], None],
    elsewhere: str = "run_dir=<a new folder>",
    take_over: str | None = None,
    is_shared: bool = False,
) -> Iterator[str]:
    """Hold a run folder for as long as the context lasts; yields the token that workers must know.

    A folder that was not there before is removed again where the context ends in a UserError and nothing was
    made in it: a refused run leaves no trace.

    Args:
        folder: the run.
        say: tells a person.
        elsewhere: the setting that leads to another place.
        take_over: `HOST:PID` of a driver that cannot be seen from here and is gone, as a refusal names it.
        is_shared: whether other machines work in it too, which may see it through another file system.

    Raises:
        ConfigError: the folder cannot be made or written in, or its file system lacks what a run asks.
        RunInUse: another driver holds it.
    """
    made, was_empty = _make_folder(folder, elsewhere)
    taking = _Taking(folder, file_system_of(folder), say, elsewhere, take_over)
    driver_file, predecessor = taking.take()
    holder = this_process(uuid.uuid4().hex)
    is_local = taking.system.is_local
    is_removed = False
    try:
        with driver_file:
            try:
                taking.write(driver_file, holder)
                # After the record: a late worker that gets its share meanwhile must find the new token.
                _wait_for_old_workers(folder, predecessor, say, is_local)
                is_ours = partial(still_ours, folder, holder.token)
                with (
                    tried_out(folder, say, elsewhere, is_ours) if is_shared or not is_local else nullcontext()
                ):
                    require_ours(folder, holder.token)  # of two that began at once, the later one has it
                    yield holder.token
            except UserError:
                # Still under the lock. A file tool may have set it aside already.
                may_go = not folder.exists() or still_ours(folder, holder.token)
                if was_empty and not holds_work(folder) and may_go:
                    remove_made(folder, made)
                    is_removed = True
                raise
            finally:
                if still_ours(folder, holder.token):
                    mark_ended(driver_file, holder, is_local)
    finally:
        if is_removed:
            remove_rest(folder, made)


@dataclass
class _Taking:
    """How a driver comes by a run folder; fields as the arguments of `hold_run`."""

    folder: Path
    system: FileSystem
    say: Callable[[str], None]
    elsewhere: str
    take_over: str | None

    def take(self) -> tuple[IO[str], Holder]:
        """Take the folder; returns the lock's file, which must stay open, and who had it before.

        Raises:
            ConfigError: the file cannot be opened.
            RunInUse: another driver has it.
        """
        driver_file, is_new = self._open(self.folder / DRIVER_LOCK)
        try:
            is_locked = _take_alone(driver_file)
            if is_locked is None:
                kind = one_line(self.system.kind)
                self.say(f"{self.folder}: its file system ({kind}) has no locks; {DRIVER_LOCK} alone decides")
            # The kernel's lock.
            decides_alone = self.system.is_local and is_locked is not None
            holder = _holder_of(self.folder, patiently=not is_new and not decides_alone)
            is_at_work = False if decides_alone else self._is_at_work(holder)
            # A server may keep the lock of a machine that is gone, so the word goes before the lock.
            if is_at_work is None and self.take_over == holder.word:
                self.say(f"{self.folder}: taken over from {holder}{self._sign(holder)}")
                return (self._replaced(driver_file) if is_locked is False else driver_file), holder
            if is_at_work is None:
                raise self._unseen(holder)
            if is_at_work or is_locked is False:
                raise self._in_use(holder)
        except BaseException:
            driver_file.close()
            raise
        if self.take_over is not None:
            self.say(f"take_over={one_line(self.take_over)}: nobody has {self.folder}, nothing to take over")
        return driver_file, holder

    def write(self, driver_file: IO[str], holder: Holder) -> None:
        """Write down who has the folder now; ConfigError where that cannot be written."""
        try:
            write_holder(driver_file, holder, self.system.is_local)
        except OSError as error:
            raise _not_writable(self.folder, error, self.elsewhere) from None

    def _open(self, path: Path) -> tuple[IO[str], bool]:
        """The lock's file, and whether it was made here."""
        try:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                is_new = True
            except FileExistsError:
                # Not emptied: it is not known yet whether another driver holds it.
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                is_new = False
        except OSError as error:
            raise _not_writable(self.folder, error, self.elsewhere) from None
        return os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace"), is_new

    def _is_at_work(self, holder: Holder) -> bool | None:
        """Whether the record's driver works; None where it may, and cannot be seen from here."""
        found = is_alive(holder, self.folder)
        if found is None and not holder.started:
            # An older version said its end in its notes alone.
            noted = read_progress(self.folder)
            if noted is not None and holder.word == f"{one_line(noted.host)}:{noted.pid}" and noted.ended:
                return False
        return found

    def _replaced(self, driver_file: IO[str]) -> IO[str]:
        """A new lock file in the place of one whose lock a server still keeps for a machine that is gone."""
        driver_file.close()
        path = self.folder / f"{DRIVER_LOCK}.{uuid.uuid4().hex}"
        fresh, _ = self._open(path)
        _take_alone(fresh)
        os.replace(path, self.folder / DRIVER_LOCK)
        return fresh

    def _in_use(self, holder: Holder) -> RunInUse:
        text = (
            f"{self.folder} is in use by {holder}. Wait for it, "
            f"stop it (Ctrl-C or SIGTERM: it can be resumed), or work elsewhere with {self.elsewhere}."
        )
        if self.take_over is not None:
            text += f" It lives, so that take_over={one_line(self.take_over)} does not help."
        return RunInUse(text)

    def _unseen(self, holder: Holder) -> RunInUse:
        """The refusal where a driver of another machine may still be at work."""
        take_over = pasted(override("take_over", holder.word))
        lines = [
            f"{self.folder} is held by {holder}{self._sign(holder)}. It has not ended in order and cannot be "
            f"seen from here, and locks do not reach everywhere on this file system "
            f"({one_line(self.system.kind)}); nothing was run and nothing was touched."
        ]
        if self.take_over is not None:
            lines.append(f"take_over={one_line(self.take_over)} names another one.")
        lines += [
            "Ways out:",
            "  wait for it, or stop it there (Ctrl-C or SIGTERM: it can be resumed);",
            f"  where it is gone for good (killed, or its machine is down), take its place: {take_over}",
            f"  work elsewhere with {self.elsewhere}.",
        ]
        return RunInUse("\n".join(lines))

    def _sign(self, holder: Holder) -> str:
        """When a driver was last heard of, by its notes."""
        noted = read_progress(self.folder)
        if noted is None or holder.word != f"{one_line(noted.host)}:{noted.pid}":
            return ", no sign of life"
        ago = max(0.0, time.time() - noted.written_at)
        return f", last sign of life {duration(ago)} ago"


def _holder_of(folder: Path, patiently: bool) -> Holder:
    """The driver that a run folder names.

    Args:
        folder: the run.
        patiently: whether to wait for the record of a driver that has made the file a moment ago.
    """
    started = time.monotonic()
    while True:
        holder = read_holder(folder)
        if holder.token or not patiently or time.monotonic() - started >= _RECORD_SECONDS:
            return holder
        time.sleep(_LOOK_SECONDS)


def _make_folder(folder: Path, elsewhere: str) -> tuple[list[Path], bool]:
    """Make the run folder; returns what was missing of its path, the topmost folder first, and whether the
    folder is empty.
    """
    try:
        made = make_folders(folder)
        return made, not any(folder.iterdir())
    except OSError as error:
        raise _not_writable(folder, error, elsewhere) from None


def _not_writable(folder: Path, error: OSError, elsewhere: str) -> ConfigError:
    return ConfigError(
        f"{folder}: no folder that can be written ({error.strerror}). "
        f"Mind what is in its place and its rights, or work elsewhere: {elsewhere}."
    )


def _wait_for_old_workers(
    folder: Path, predecessor: Holder, say: Callable[[str], None], is_local: bool
) -> None:
    if _joins_alone(folder):
        return
    say("waiting for the processes of the run's last attempt to leave …")
    started = time.monotonic()
    next_word = PATIENCE_SECONDS
    while not _joins_alone(folder):
        time.sleep(_LOOK_SECONDS)
        waited = time.monotonic() - started
        if waited >= next_word:
            next_word = waited + REMINDER_SECONDS
            say(_waited_for(folder / WORKERS_LOCK, predecessor, waited, is_local))


def _joins_alone(folder: Path) -> bool:
    """Whether no worker is left, or the file system has no locks that would tell.

    Opened anew each time, for a person may have removed the file, and closed, which gives the lock back for
    this driver's own workers.
    """
    with open(folder / WORKERS_LOCK, "a", encoding="utf-8") as workers_file:
        return _take_alone(workers_file) is not False


def _take_alone(file: IO[str]) -> bool | None:
    """Whether a file's lock is ours now; None where the file system has none."""
    return _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flock(file: IO[str], operation: int) -> bool | None:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _waited_for(workers_lock: Path, predecessor: Holder, waited: float, is_local: bool) -> str:
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
        lines.append(
            f"  a process that cannot be seen from here. The last driver was {predecessor}: "
            f"look there, with its user's rights, for who has {workers_lock} open (fuser), and end that."
        )
        if not is_local:
            lines.append(
                "  Where that machine is gone for good and the file server still keeps its lock: "
                f"{pasted('rm', str(workers_lock))}"
            )
    return "\n".join(lines)


def join_run(folder: Path, token: str) -> IO[str]:
    """Take a worker's share of the run folder; the file must stay open for as long as the worker lives.

    Raises:
        WorkerFailed: another driver has taken over meanwhile.
    """
    # Open for reading too: NFS gives a shared lock to no other.
    workers_file = open(folder / WORKERS_LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - kept open
    _flock(workers_file, fcntl.LOCK_SH)
    # After the lock, not before: from here on a new driver waits for this worker.
    if not still_ours(folder, token):
        workers_file.close()
        raise WorkerFailed("another driver has taken over the run folder; this worker came too late")
    return workers_file
