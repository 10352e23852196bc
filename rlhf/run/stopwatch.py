"""How long a stage has been worked on, over all its attempts, however each of them ended."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FILE = ".seconds"
"""In the folder of unfinished work; hidden, so no part of the artifact."""
_EVERY_SECONDS = 1.0
"""At most so much of an attempt that is killed is not counted."""


@contextmanager
def stopwatch(partial: Path) -> Iterator[Callable[[], float]]:
    """Count the seconds of one attempt on top of those before it; yields what tells the sum so far.

    The sum is written down every second, not at the end: SIGKILL leaves no time for that. It is a figure for
    people, so that what a power cut or damage makes of it counts as nothing.
    """
    before = _read(partial / _FILE)
    started = time.monotonic()

    def total() -> float:
        return before + time.monotonic() - started

    descriptor = os.open(partial / _FILE, os.O_WRONLY | os.O_CREAT, 0o666)
    is_over = threading.Event()

    def keep() -> None:
        while not is_over.wait(_EVERY_SECONDS):
            _write(descriptor, total())

    keeper = threading.Thread(target=keep, name="stopwatch", daemon=True)
    keeper.start()
    try:
        yield total
    finally:
        is_over.set()
        keeper.join()
        _write(descriptor, total())
        os.close(descriptor)


def seconds_so_far(partial: Path) -> float:
    """What has been counted in a folder of unfinished work; 0 where nothing has."""
    return _read(partial / _FILE)


def duration(seconds: float) -> str:
    """In the unit that reads best: `4.2 s`, `3.5 min`, `35 min`, `2.4 h`, `12 days`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 100 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.0f} days"


def _write(descriptor: int, seconds: float) -> None:
    # Always as long as before, and in one call: half of it is never seen.
    with contextlib.suppress(OSError):  # a full disk stops the work itself, with a better message
        os.pwrite(descriptor, f"{seconds:20.3f}\n".encode(), 0)


def _read(path: Path) -> float:
    try:
        seconds = float(path.read_bytes())
    except (OSError, ValueError):
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
