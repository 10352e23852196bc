"""vLLM's own server, imported once and forked for every start, so that a test can kill it and start it again
soon.

`python -m tests.vllm_server <arguments of vLLM's server>` reads `start` and `kill` from standard input, line
by line, and ends the server when its input ends. Each start and kill is answered with the same word.
"""

import multiprocessing
import os
import signal
import sys

import vllm.entrypoints.openai.api_server
import vllm.model_executor.models.llama
import vllm.v1.executor.multiproc_executor
import vllm.v1.worker.cpu_worker
from vllm.entrypoints.launchers.api_server.entry import main

__all__ = ["vllm"]


def serve() -> int:
    """Start the server in a process group of its own."""
    number = os.fork()
    if number:
        return number
    os.setsid()
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # its engine would import everything twice more
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    main()
    os._exit(0)


def kill(number: int) -> None:
    """SIGKILL the server with its engine, and wait until it is gone."""
    os.killpg(number, signal.SIGKILL)
    os.waitpid(number, 0)


if __name__ == "__main__":
    server = None
    for line in sys.stdin:
        if line.strip() == "start":
            server = serve()
        elif server is not None:
            kill(server)
            server = None
        print(line.strip(), flush=True)
    if server is not None:
        kill(server)
    os._exit(0)
