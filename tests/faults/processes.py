"""Who is alive below a driver, read from /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def _stat(pid: int) -> list[str]:
    """State, parent and so on of a process; empty when it is gone."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Ids of all processes below one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    return _stat(pid)[:1] not in ([], ["Z"])


def group(pid: int) -> int | None:
    """The process group of a living process, None of a dead one."""
    try:
        return os.getpgid(pid) if alive(pid) else None
    except ProcessLookupError:
        return None


def workers_of(driver: int) -> list[int]:
    """Stage processes of a driver: they lead process groups of their own.

    So does the one that gets the report's plots ready, which is none.
    """
    leaders = [pid for pid in descendants(driver) if group(pid) == pid]
    return [pid for pid in leaders if not _draws_plots(pid)]


def _draws_plots(pid: int) -> bool:
    try:
        return b"plot_script" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def is_engine(pid: int) -> bool:
    """Whether a process is one that vLLM has made to run the model, as it does for tensor parallelism."""
    try:
        return b"VLLM::" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def working_in(folder: Path) -> list[int]:
    """Ids of all living processes whose working directory is a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            if entry.name.isdigit() and os.readlink(entry / "cwd") == str(folder) and alive(int(entry.name)):
                found.append(int(entry.name))
    return found
