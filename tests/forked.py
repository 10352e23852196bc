"""Commands of the package in processes that are forked from one with all imports done.

Half of a tiny run's time is the import of torch and the engines, once in each run's server. Here the driver is
forked, and so are its servers; all else is as when a person types the command. What is about the start of a
run, or about what is left of one that was killed, is typed (`tests.commands`).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from contextlib import chdir, suppress
from multiprocessing import util
from multiprocessing.process import BaseProcess
from pathlib import Path

from rlhf.launch.server import Server

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 400
"""So long a command may take."""
IMPORTED = Server(["tests.imported"])
_spawn = util.spawnv_passfds


def start(process: BaseProcess) -> None:
    """Start a process of the context "forkserver" as a fork that has all imports done."""
    with chdir(ROOT):  # whatever folder a test is in: `tests` is found from here
        IMPORTED.warm_up(os.devnull)
    # For the server alone: others that this process starts are to print where they are told.
    os.environ.pop("RLHF_PRELOAD_LOG")
    IMPORTED.start(process)


def forked(cwd: Path, environment: dict[str, str], module: str, *words: str) -> tuple[int, str]:
    """Exit code and output of `python -m module words`."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        told = (str(cwd), environment, output.name, module, words)
        process = multiprocessing.get_context("forkserver").Process(target=_command, args=told)
        start(process)
        process.join(SECONDS)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        said = output.read()
    assert code is not None, f"{module} did not end within {SECONDS} s:\n{said}"
    return code, said


def _command(cwd: str, environment: dict[str, str], output: str, module: str, words: tuple[str, ...]) -> None:
    """Of the forked process: become the command."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    # As Python begins: the folder, and then what the environment names.
    paths = [cwd, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:0] = [path for path in paths if path]
    sys.argv = [module, *words]
    util.spawnv_passfds = _fork_server
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _fork_server(path: str, arguments: list[str], descriptors: tuple[int, ...]) -> int:
    """In place of a new interpreter that would import all of it again: a fork of this one."""
    code = arguments[-1]
    if not code.startswith("from multiprocessing.forkserver import main"):
        return _spawn(path, arguments, descriptors)
    pid = os.fork()
    if pid != 0:
        return pid
    try:
        # What a new interpreter would not have. Above all the end of a pipe by which a server hears that its
        # driver has ended.
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in descriptors:
                with suppress(OSError):  # the one by which the folder was listed
                    os.close(int(name))
        exec(code, {})
    finally:
        os._exit(1)
