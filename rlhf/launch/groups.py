"""Process groups: a worker leads one, and what it starts belongs to it."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path


def wait_for_groups(groups: Collection[int], seconds: float) -> bool:
    """Wait until nothing of these process groups runs any more; False where something still does after
    `seconds`.
    """
    deadline = time.monotonic() + seconds
    while _living(groups):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _living(groups: Collection[int]) -> list[int]:
    """Ids of the processes of some groups, without dead ones that nobody has collected: they hold nothing."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # gone meanwhile
        # "123 (its name) S 1 122 …": state, parent and group. The name may hold parentheses itself.
        _, _, fields = stat.rpartition(")")
        state, _, group = fields.split()[:3]
        if state not in ("Z", "X") and int(group) in groups:
            pids.append(int(folder.name))
    return pids
