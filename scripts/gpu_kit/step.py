"""One step in a process of its own: `python -m gpu_kit.step NAME SIZE WORK FILE SECONDS`."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import signal
import sys
from pathlib import Path

from gpu_kit.figures import Kit, SkipStepError, append_line

SKIPPED = 3
"""Exit code of a step that cannot be done here."""


def die_with_parent() -> None:
    """End this process when the one that started it ends, however that happens (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those that are not installed."""
    absent = []
    for name in packages:
        try:
            found = importlib.util.find_spec(name)
        except ImportError:
            found = None
        if found is None:
            absent.append(name)
    return absent


def main(words: list[str]) -> int:
    """Measure; the exit code says whether it was done, and the file has the figures."""
    name, size, work, file, seconds = words
    die_with_parent()
    kit = Kit(size, Path(work), Path(file), float(seconds))
    module = importlib.import_module(f"gpu_kit.{name}_step")
    absent = missing(module.PACKAGES)
    reason = ""
    if absent:
        reason = f"not installed: {', '.join(absent)}"
    else:
        try:
            module.measure(kit)
        except SkipStepError as why:
            reason = str(why)
    if reason:
        append_line(kit.file, {"skipped": reason})
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
