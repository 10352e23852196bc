"""What nvidia-smi says of this machine. Standard library only: the set-up asks before there are packages."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

_ON_WSL = "/usr/lib/wsl/lib"
"""Where WSL 2 keeps nvidia-smi; not every shell has it on its PATH."""
_SECONDS = 30.0
"""A driver that wakes its GPUs for each question takes a few."""


def nvidia_smi() -> str | None:
    """Path of nvidia-smi, or None where there is none."""
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=_ON_WSL)


def listed_gpus() -> list[str]:
    """The GPUs that the driver lists; empty without a driver, or where it does not answer.

    Example:
        ["GPU 0: NVIDIA H100 80GB HBM3", "GPU 1: NVIDIA H100 80GB HBM3"]
    """
    gpus = []
    for line in ask("-L").splitlines():
        # The lines of a GPU's parts (MIG) are indented.
        if line.startswith("GPU "):
            name, _, _ = line.partition(" (UUID")
            gpus.append(name)
    return gpus


def driver_cuda() -> str | None:
    """The newest CUDA version that the driver runs, such as `12.8`; None where nothing tells."""
    # Newer drivers write "CUDA UMD Version".
    found = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+\.\d+)", ask())
    return found[1] if found else None


def oldest_driver(needed: str) -> str:
    """The least that `driver_cuda` may be for packages made for a CUDA version.

    A driver runs what was made for any minor version of its own major version, and for earlier ones.

    Example:
        oldest_driver("13.2") is "13.0"
    """
    major, _, _ = needed.partition(".")
    return f"{major}.0"


def is_too_old(driver: str, needed: str) -> bool:
    """Whether a driver does not run packages made for a CUDA version."""
    return int(driver.split(".")[0]) < int(needed.split(".")[0])


def ask(*arguments: str) -> str:
    """What nvidia-smi prints; nothing where there is none, it fails, or it does not answer in time."""
    program = nvidia_smi()
    if program is None:
        return ""
    return _answer(program, arguments)


@cache  # A run asks at each stage, and the answer does not change under a driver that works.
def _answer(program: str, arguments: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
