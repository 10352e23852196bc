"""Fencing: one driver on a run folder, and no new work while a process of an old attempt lives.

Two lock files. The driver holds `.driver.lock` exclusively; every worker holds `.workers.lock` shared. A driver first
takes its own lock, writes its token, then takes the workers' lock exclusively for a moment, which waits for every
worker of an earlier driver to be gone. A worker takes the shared lock, then checks that the token is still its
driver's: if it started too late, it leaves. Kernel locks vanish with their processes, so nothing is stale after a
crash.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rlhf.errors import ConfigError, RunInUse, WorkerFailed

DRIVER_LOCK = ".driver.lock"
WORKERS_LOCK = ".workers.lock"


def _holder(file: IO[str]) -> dict[str, str]:
    file.seek(0)
    try:
        return dict(json.loads(file.read()))
    except ValueError:
        return {}


@contextmanager
def hold_run(folder: Path, say: Callable[[str], None], elsewhere: str = "run_dir=<a new folder>") -> Iterator[str]:
    """Hold a run folder for as long as the context lasts; yields the token that workers must know.

    Raises:
        ConfigError: the folder cannot be made, or nothing can be written in it.
        RunInUse: another driver holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / DRIVER_LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        what = f"{folder}: no folder that can be written ({error.strerror})"
        raise ConfigError(
            f"{what}. Mind what is in its place and its rights, or work elsewhere: {elsewhere}."
        ) from None
    with lock as driver:
        try:
            fcntl.flock(driver, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(driver)
            raise RunInUse(
                f"{folder} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}. Wait for it, "
                f"stop it (Ctrl-C or SIGTERM: it can be resumed), or work elsewhere with {elsewhere}."
            ) from None
        token = uuid.uuid4().hex
        driver.truncate(0)
        driver.write(json.dumps({"pid": str(os.getpid()), "host": socket.gethostname(), "token": token}))
        driver.flush()
        with open(folder / WORKERS_LOCK, "a", encoding="utf-8") as workers:
            try:
                fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for the processes of the run's last attempt to leave …")
                fcntl.flock(workers, fcntl.LOCK_EX)
        yield token


def join_run(folder: Path, token: str) -> IO[str]:
    """Take a worker's share of the run folder; the file must stay open for as long as the worker lives.

    Raises:
        WorkerFailed: another driver has taken over meanwhile.
    """
    workers = open(folder / WORKERS_LOCK, "a", encoding="utf-8")  # noqa: SIM115 - held until the process ends
    fcntl.flock(workers, fcntl.LOCK_SH)
    with open(folder / DRIVER_LOCK, encoding="utf-8") as driver:
        if _holder(driver).get("token") != token:
            workers.close()
            raise WorkerFailed("another driver has taken over the run folder; this worker came too late")
    return workers
