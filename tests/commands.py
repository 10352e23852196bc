"""The commands of the package as a person gives them, and what a run folder holds afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import hooks
from tests.forked import forked

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 400
"""So long a command may take."""


def environment(*paths: Path, **variables: str) -> dict[str, str]:
    """What commands are run in: modules are found here, then in `paths`, then where they were found before."""
    # Before what is there: packages may have been carried to this machine and named in it.
    found = [str(ROOT), *map(str, paths), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(found).rstrip(os.pathsep)
    return dict(os.environ, PYTHONPATH=path, HF_HUB_OFFLINE="1") | variables


def started(
    cwd: Path, module: str, *words: object, given: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """`python -m module words`, at work; its output and its errors are one text."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=given or environment(),
    )


def typed(cwd: Path, module: str, *words: object, given: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of `python -m module words`."""
    process = started(cwd, module, *words, given=given)
    said, _ = process.communicate(timeout=SECONDS)
    return process.returncode, said


def called(cwd: Path, module: str, *words: object) -> tuple[int, str]:
    """The same, in a forked process: what the imports take is spent once (`tests.forked`)."""
    return forked(cwd, environment(), module, *map(str, words))


def loop(
    run: Path,
    *overrides: str,
    module: str = "rlhf.iterate",
    wait: bool = True,
    dies_at: str | None = None,
    dies: str = "everything",
) -> Any:
    """The loop, typed beside its run folder: exit code and output, or where nobody waits the process.

    Args:
        dies_at: the boundary (`tests.faults.hooks`) at which `dies` dies.
    """
    given = environment()
    if dies_at:
        given |= hooks.on_path(run.parent / "hooks", run, run.with_suffix(".count"), dies_at, dies)
    words = [f"run_dir={run}", *overrides]
    if wait:
        return typed(run.parent, module, *words, given=given)
    return started(run.parent, module, *words, given=given)


def quick_loop(run: Path, *overrides: str) -> tuple[int, str]:
    """The loop to its end, in a forked process."""
    return called(run.parent, "rlhf.iterate", f"run_dir={run}", *overrides)


def digests(run: Path) -> dict[str, str]:
    """Of every finished stage, by its name."""
    found = {path.parent: json.loads(path.read_text())["digest"] for path in run.rglob("artifact.json")}
    return {str(path.relative_to(run)): digest for path, digest in found.items()}


def copy_of(run: Path, name: str) -> Path:
    """A run folder's copy beside it."""
    target = run.with_name(name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run, target, symlinks=True)
    return target


def wait_for(is_so: Callable[[], Any], seconds: float = 300.0, what: str = "it") -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
