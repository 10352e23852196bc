"""Who has taken a run folder last, as its `.driver.lock` says, and what can be told of it from here."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from rlhf.data.json_text import json_text
from rlhf.errors import one_line
from rlhf.run.processes import holds, started_at
from rlhf.run.progress import pid_space

DRIVER_LOCK = ".driver.lock"
WORKERS_LOCK = ".workers.lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@dataclass(frozen=True)
class Holder:
    """A driver, as it wrote itself down. All are texts fit for a line of ours; "" is what its version did not
    write, or the system does not tell.

    `boot` and `pid_space` say on which kernel, since when, and among which processes `pid` is a number, and
    `born` when that process began, in the kernel's ticks: another one may have its number by now. `ended` is
    when it left in order. Times that people read are UTC.

    Example:
        Holder("4711", "node7", "5f0c…", "2026-11-27 05:14:50 UTC", "40284da0-…", "pid:[4026531836]", "881")
    """

    pid: str = ""
    host: str = ""
    token: str = ""
    started: str = ""
    boot: str = ""
    pid_space: str = ""
    born: str = ""
    ended: str = ""

    @property
    def word(self) -> str:
        """What names it on a command line."""
        return f"{self.host}:{self.pid}"

    def __str__(self) -> str:
        since = f", started {self.started}" if self.started else ""
        return f"process {self.pid or '?'} on {self.host or '?'}{since}"


@dataclass(frozen=True)
class Here:
    """What tells this machine, or this container, from others."""

    host: str
    boot: str
    pid_space: str


def here() -> Here:
    """Where this process runs."""
    try:
        boot = _BOOT.read_text(encoding="utf-8").strip()
    except OSError:
        boot = ""
    return Here(socket.gethostname(), boot, pid_space())


def utc_now() -> str:
    """The time as a record has it: readable, and the same on every machine."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def this_process(token: str) -> Holder:
    """What a driver that begins writes down of itself."""
    place = here()
    pid = os.getpid()
    return Holder(str(pid), place.host, token, utc_now(), place.boot, place.pid_space, started_at(pid) or "")


def holder_in(text: str) -> Holder:
    """The driver that a record names; an empty one where it cannot be read.

    Example:
        '{"pid": "4711", "host": "node7", "token": "5f0c…"}', of an older version
    """
    try:
        record = json.loads(text)
    # An older driver's file is empty for a moment, or holds a part of the record.
    except (ValueError, RecursionError):
        return Holder()
    if not isinstance(record, dict):
        return Holder()
    values = {}
    for field in fields(Holder):
        value = record.get(field.name)
        if isinstance(value, str):
            values[field.name] = one_line(value)
    return Holder(**values)


def read_holder(folder: Path) -> Holder:
    """The driver that a run folder names; an empty one where there is none.

    Opened anew each time: that is when a network file system asks whether another machine has changed it.
    """
    try:
        with open(folder / DRIVER_LOCK, encoding="utf-8", errors="replace") as file:
            return holder_in(file.read())
    except OSError:
        return Holder()


def write_holder(file: IO[str], holder: Holder, is_local: bool) -> None:
    """Write a record over the one that the file holds.

    In one write and in place: a reader sees one record or the other, and the file stays the one that is
    locked.

    Args:
        file: open for reading and writing.
        holder: who has it.
        is_local: whether nobody but this kernel is asked for what was written.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = file.fileno()
    content = json_text(asdict(holder)).encode()
    # Spaces over what is left of a longer one, for JSON ends where they begin.
    content = content.ljust(os.fstat(descriptor).st_size)
    if os.pwrite(descriptor, content, 0) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if is_local:
        return
    try:
        os.fsync(descriptor)  # else it would come to the server when the file is closed: at the run's end
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def is_here(holder: Holder) -> bool:
    """Whether a driver's process can be seen from here: same name, same kernel, same space of numbers."""
    place = here()
    if holder.host != place.host:
        return False
    if not holder.started:
        return True  # an older version, which wrote no more than the name
    return (holder.boot, holder.pid_space) == (place.boot, place.pid_space)


def is_alive(holder: Holder, folder: Path) -> bool | None:
    """Whether a driver is at work; None where that cannot be seen from here.

    Args:
        holder: who has the run folder.
        folder: the run.
    """
    if not holder.pid.isdecimal() or holder.ended:
        return False
    if not is_here(holder):
        return None
    if holder.born:
        # Not whether it has the file open: the same folder may be mounted here twice.
        return started_at(int(holder.pid)) == holder.born
    return holds(int(holder.pid), folder / DRIVER_LOCK)


def mark_ended(file: IO[str], holder: Holder, is_local: bool) -> None:
    """Say that a driver leaves in order. Where that cannot be written, its record stays as it is."""
    values = asdict(holder) | {"ended": utc_now()}
    with contextlib.suppress(OSError):
        write_holder(file, Holder(**values), is_local)
