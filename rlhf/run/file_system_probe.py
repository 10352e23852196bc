"""What a run asks of a file system that is not this machine's own, tried out in the run folder.

docs/file_systems.md says what is asked and why. Nothing that is tried stays behind.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from rlhf.data.shards import NO_FSYNC_OF_FOLDERS
from rlhf.errors import ConfigError, one_line
from rlhf.run.file_system import FileSystem, file_system_of

PROBE = ".file_system_probe"
"""A folder in the run folder, for as long as it is looked at."""
_MARK = ".mark-"
_REPLACEMENTS = 25
_SIZE = 1 << 16
"""Bytes of a file that is replaced while it is read: more than a page, and than one packet of a server."""
_CLOCK_SECONDS = 60.0
"""Between this clock and the one that dates files, from which it is said."""
_LOOK_SECONDS = 0.05


class _Lacks(Exception):
    """The file system did something else than was asked."""


_Check = Callable[[Path], str]
"""Tries one thing in an empty folder; returns what is to be noted, or nothing.

Raises `_Lacks` or OSError where a run cannot do without.
"""


def require_file_system(folder: Path, elsewhere: str = "run_dir=<a new folder>") -> list[str]:
    """Try out what a run needs of the file system of its folder.

    Args:
        folder: the run, held by this driver.
        elsewhere: the setting that leads to another place.

    Returns:
        What it lacks and a run can do without, one line each.

    Raises:
        ConfigError: it lacks something else; everything it lacks is named.
    """
    system = file_system_of(folder)
    place = folder / PROBE
    _clear(folder)  # of a driver that was killed meanwhile
    failures = []
    notes = []
    try:
        for what, check in _CHECKS.items():
            corner = place / check.__name__.strip("_")
            try:
                corner.mkdir(parents=True)
                note = check(corner)
                if note:
                    notes.append(f"{what}: {note}")
            except _Lacks as lack:
                failures.append(f"{what}: {lack}")
            except OSError as error:
                failures.append(f"{what}: {error.strerror}")
    finally:
        _clear(folder)
    if failures:
        raise _refusal(folder, system, failures, elsewhere)
    return notes


@contextlib.contextmanager
def tried_out(
    folder: Path, say: Callable[[str], None], elsewhere: str, is_ours: Callable[[], bool]
) -> Iterator[None]:
    """Try a run's file system out, tell what it lacks, and take the marks of nodes away in the end.

    Args:
        folder: as for `require_file_system`, as `elsewhere` and what is raised.
        say: tells a person.
        elsewhere: the setting that leads to another place.
        is_ours: whether the folder is still this driver's.
    """
    for note in require_file_system(folder, elsewhere):
        say(f"  ! {folder} ({one_line(file_system_of(folder).kind)}): {note}")
    try:
        yield
    finally:
        if is_ours():
            _clear(folder)  # of nodes that were still on their way


def _clear(folder: Path) -> None:
    shutil.rmtree(folder / PROBE, ignore_errors=True)
    for mark in folder.glob(f"{_MARK}*"):
        with contextlib.suppress(OSError):
            mark.unlink()


def _refusal(folder: Path, system: FileSystem, failures: list[str], elsewhere: str) -> ConfigError:
    where = f", mounted at {one_line(system.mount_point)}" if system.mount_point else ""
    lines = [
        f"{folder}: this file system (type {one_line(system.kind)}{where}) cannot do what a run asks of it; "
        "nothing was run:",
        *(f"  {failure}" for failure in failures),
        "Ways out:",
        f"  work on another file system, such as a disk of this machine, with {elsewhere};",
        "  mount this one with options that let it (docs/file_systems.md says what is asked, and why).",
    ]
    return ConfigError("\n".join(lines))


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _exclusive(corner: Path) -> str:
    descriptor = os.open(corner / "once", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(descriptor)
    try:
        descriptor = os.open(corner / "once", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return ""
    os.close(descriptor)
    raise _Lacks("a file that was there was made a second time")


def _replace(corner: Path) -> str:
    path = corner / "file"
    contents = [b"a" * _SIZE, b"b" * _SIZE]
    _write(path, contents[0])
    is_over = threading.Event()
    wrong: list[str] = []

    def watch() -> None:
        while not is_over.is_set() and not wrong:
            try:
                seen = path.read_bytes()
            except OSError as error:
                wrong.append(f"while it was replaced, a reader was told: {error.strerror}")
                return
            if seen not in contents:
                wrong.append(f"a reader saw {len(seen)} bytes that are neither the old file nor the new one")

    # In this process: what other nodes see is for marks to tell.
    reader = threading.Thread(target=watch, name="probe", daemon=True)
    reader.start()
    try:
        for number in range(1, _REPLACEMENTS + 1):
            new = corner / "new"
            _write(new, contents[number % 2])
            os.replace(new, path)
            if path.read_bytes() != contents[number % 2]:
                raise _Lacks("after it was replaced, the old file was read")
    finally:
        is_over.set()
        reader.join()
    if wrong:
        raise _Lacks(wrong[0])
    return ""


def _rename_folder(corner: Path) -> str:
    old, new = corner / "old", corner / "new"
    (old / "below").mkdir(parents=True)
    _write(old / "below" / "file", b"content")
    os.rename(old, new)
    if old.exists() or (new / "below" / "file").read_bytes() != b"content":
        raise _Lacks("a folder that was renamed is not what it was")
    return ""


def _fsync_file(corner: Path) -> str:
    with open(corner / "file", "wb") as file:
        file.write(b"content")
        file.flush()
        os.fsync(file.fileno())
    return ""


def _fsync_folder(corner: Path) -> str:
    descriptor = os.open(corner, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in NO_FSYNC_OF_FOLDERS:
            return f"{error.strerror}; whether a new name outlives a power cut is left to the server"
        raise
    finally:
        os.close(descriptor)
    return ""


def _append(corner: Path) -> str:
    for _ in range(2):
        with open(corner / "log", "ab") as file:
            file.write(b"line\n")
    if (corner / "log").read_bytes() != b"line\nline\n":
        raise _Lacks("what was appended is not there")
    return ""


def _map(corner: Path) -> str:
    _write(corner / "weights", b"content")
    with (
        open(corner / "weights", "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        if mapped[:] != b"content":
            raise _Lacks("a file that was mapped has other bytes than were written")
    return ""


def _permissions(corner: Path) -> str:
    _write(corner / "file", b"")
    os.chmod(corner / "file", 0o644)
    return ""


def _links(corner: Path) -> str:
    _write(corner / "file", b"")
    try:
        os.link(corner / "file", corner / "second")
    except OSError as error:
        return f"{error.strerror}; what other runs have finished (reuse) is copied"
    return ""


def _case(corner: Path) -> str:
    _write(corner / "name", b"")
    if (corner / "NAME").exists():
        # Names of ours are in lower case, so no two collide; those of judges and data a person gives.
        return "A and a are one name here; judges and data sets must differ by more"
    return ""


def _time(corner: Path) -> str:
    before = time.time()
    _write(corner / "file", b"")
    apart = (corner / "file").stat().st_mtime - before
    if abs(apart) < _CLOCK_SECONDS:
        return ""
    return f"files are dated {abs(apart):.0f} s {'after' if apart > 0 else 'before'} this machine's clock"


_CHECKS: dict[str, _Check] = {
    "a file is made only where there is none (O_EXCL)": _exclusive,
    "a file is replaced in one step": _replace,
    "a folder is renamed": _rename_folder,
    "a file is on the disk when it was synced": _fsync_file,
    "a folder is synced": _fsync_folder,
    "a file is appended to": _append,
    "a file is mapped into memory": _map,
    "permissions are set": _permissions,
    "hard links": _links,
    "upper and lower case": _case,
    "times of files": _time,
}


def leave_mark(folder: Path, text: str, name: str | None = None) -> Path:
    """Write a file for another node to read (`read_mark`); whoever has it read removes it.

    Args:
        folder: the run.
        text: what the other node is to find.
        name: of a mark that was left before, which gets another text: a node that has read it must see the
            new one. None is a new mark.

    Returns:
        the file, written and closed.
    """
    path = folder / f"{_MARK}{name or uuid.uuid4().hex}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def read_mark(path: Path, text: str, seconds: float) -> float:
    """Wait until what another node has written, and closed, is read here.

    Args:
        path: as `leave_mark` returned it there.
        text: what it wrote.
        seconds: how long to try.

    Returns:
        the seconds that it took.

    Raises:
        ConfigError: this node does not see the file, or not what was written.
    """
    started = time.monotonic()
    while True:
        found = "no such file"
        try:
            content = path.read_text(encoding="utf-8", errors="replace")
            if content == text:
                return time.monotonic() - started
            found = "an older or a half-written one"
        except OSError as error:
            if error.errno != errno.ENOENT:
                found = error.strerror or type(error).__name__
        waited = time.monotonic() - started
        if waited >= seconds:
            raise _not_shared(path, found, waited)
        time.sleep(_LOOK_SECONDS)


def _not_shared(path: Path, found: str, waited: float) -> ConfigError:
    place = os.uname().nodename
    kind = "not there"
    if path.parent.is_dir():
        kind = f"type {one_line(file_system_of(path.parent).kind)}"
    return ConfigError(
        f"{path.parent} on {one_line(place)} ({kind}): after {waited:.1f} s this node does not see what "
        f"another one has written there and closed ({path.name}: {found}). Either it is another folder of "
        "the same path, or its file system shows new files too late.\n"
        "Ways out:\n"
        "  mount the same shared file system at this path on every node;\n"
        "  where it is the same: let its clients look sooner (NFS: actimeo=1, lookupcache=positive);\n"
        "  choose a run_dir that all nodes share, or one node (docs/file_systems.md)."
    )
