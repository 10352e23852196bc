"""vLLM's real server in a process of its own (`tests.vllm_server`), for tests and scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from rlhf.launch.ports import free_port

ROOT = Path(__file__).resolve().parents[1]


class Server:
    """vLLM's server in a process of its own, which can be killed and started again."""

    def __init__(self, path: str, log: Path, max_tokens: int, runner: str = "pooling") -> None:
        port = free_port()
        self.path, self.url = path, f"http://127.0.0.1:{port}"
        arguments = ["--model", path, "--host", "127.0.0.1", "--port", str(port), "--runner", runner]
        if runner == "pooling":
            arguments += ["--hf-overrides", '{"head_dtype": "float32"}']
        arguments += ["--max-model-len", str(max_tokens)]
        arguments += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64", "--disable-log-stats"]
        environment = dict(os.environ, VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.vllm_server", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=ROOT,
                env=environment,
            )

    def tell(self, word: str) -> None:
        """`start` or `kill`; the start takes seconds, and a remote judge waits for it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == word

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            return httpx.get(self.url + "/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """End it for good."""
        self.process.communicate(
            timeout=60
        )  # closes both pipes: one left open is another test's ResourceWarning
