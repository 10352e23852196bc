"""A run folder that is to leave no trace: its name is taken away under the lock, the rest goes after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from rlhf.run.holder import DRIVER_LOCK, WORKERS_LOCK

_BOOKKEEPING = {DRIVER_LOCK, WORKERS_LOCK, ".digests.json", "config.yaml"}
# A network file system hears of a closed file a moment later.
_RELEASE_SECONDS = 0.5
_LOOK_SECONDS = 0.1


def holds_work(folder: Path) -> bool:
    """Whether anything lies in a run folder but what every driver writes down before its first stage."""
    for parent, _, names in os.walk(folder):
        if Path(parent).relative_to(folder).parts[:1] == ("logs",):
            continue
        if not set(names) <= _BOOKKEEPING:
            return True
    return False


def remove_made(folder: Path, made: list[Path]) -> None:
    """Take away what a driver has made of a run folder."""
    if not folder.exists():
        pass  # a file tool has removed it already
    elif folder not in made:
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    else:
        set_aside(folder)


def set_aside(folder: Path) -> None:
    """Take a run folder's name away, so that no process that is about to end writes its log in it again.

    Once its lock is given back, `remove_aside` removes it.
    """
    gone = _gone(folder)
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)


def remove_aside(folder: Path) -> bool:
    """Remove what was set aside of a run folder, if anything; returns whether nothing is left.

    A network file system keeps a file that was open, the lock's, for a moment after it is closed.
    """
    gone = _gone(folder)
    started = time.monotonic()
    while gone.exists() and time.monotonic() - started < _RELEASE_SECONDS:
        shutil.rmtree(gone, ignore_errors=True)
        if gone.exists():
            time.sleep(_LOOK_SECONDS)
    return not gone.exists()


def remove_rest(folder: Path, made: list[Path]) -> None:
    """Remove what was set aside, and the folders above it as far as they are empty."""
    remove_aside(folder)
    for parent in reversed(made[:-1]):
        with contextlib.suppress(OSError):  # something else is in it by now
            parent.rmdir()


def _gone(folder: Path) -> Path:
    return folder.with_name(f".{folder.name.removeprefix('.')}.gone")
