"""The project's own commands, as a person types them, and what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_kit.figures import Kit
from gpu_kit.models import Shape, make_model, require_disk, small, write_prompts
from gpu_kit.step import die_with_parent

PACKAGES = ("torch", "transformers", "pyarrow", "hydra", "deepspeed", "trl", "datasets", "accelerate", "peft")
"""Without which no run begins; vLLM is not one of them."""

_POLL_SECONDS = 0.2

NUM_PROMPTS = 32
NUM_HELD_OUT = 8


def settings_of_iteration(kit: Kit, run_folder: Path, policy: Shape, engine: str) -> list[str]:
    """What the command of one iteration is told; it makes models and prompts where they are not there yet.

    Args:
        kit: of the step.
        run_folder: where the run lies.
        policy: the shape of π0.
        engine: that samples, `vllm` or `transformers`.
    """
    # The policy in bf16, trained in fp32, exported in bf16.
    require_disk(kit.work, 10 * policy.num_parameters)
    folder = kit.work / "models"
    policy_folder = make_model(kit, f"policy_{policy.layers}_{policy.hidden}", policy)
    judge_folder = make_model(kit, "judge", small(kit), classifier=True)
    write_prompts(folder / "prompts.jsonl", NUM_PROMPTS + NUM_HELD_OUT)
    new_tokens = 8 if kit.is_toy else 64
    settings = [
        f"run_dir={run_folder}",
        f"model.path={policy_folder}",
        f"reward_model.path={judge_folder}",
        f"prompts.path={folder / 'prompts.jsonl'}",
        f"prompts.num_per_iteration={NUM_PROMPTS}",
        f"prompts.num_held_out={NUM_HELD_OUT}",
        "num_iterations=1",
        f"generate.engine={engine}",
        "generate.n=4",
        f"generate.max_new_tokens={new_tokens}",
        "pair.truncated=allow",
        "evaluate.n=2",
        "dpo.batch_size=8",
        # A first loss that is off is a figure here, and no stop.
        "gates.first_loss=warn",
    ]
    if engine == "vllm":
        # CUDA graphs would take longer to record than so few prompts to sample.
        settings.append("generate.vllm_args={enforce_eager: true}")
    return settings


def start(settings: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`python -m rlhf.iterate` with these settings; what it prints goes into a file."""
    command = [sys.executable, "-m", "rlhf.iterate", *settings]
    print("$ python -m rlhf.iterate", *settings, flush=True)
    with log.open("wb") as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            # Else it would go on alone when this step is ended.
            preexec_fn=die_with_parent,
        )


def run(settings: list[str], log: Path, watch: Callable[[], None] = lambda: None) -> float:
    """Run it to its end; what it prints is printed as it comes: a step out of time shows where it was.

    Args:
        settings: of the command.
        log: file that it prints into.
        watch: called several times a second while it runs, and once it has ended.

    Returns:
        Wall seconds.

    Raises:
        RuntimeError: it failed.
    """
    began = time.monotonic()
    process = start(settings, log)
    with log.open(encoding="utf-8", errors="replace") as printed:
        while True:
            code = process.poll()
            print(printed.read(), end="", flush=True)
            watch()
            if code is not None:
                break
            time.sleep(_POLL_SECONDS)
    if code != 0:
        raise RuntimeError(f"python -m rlhf.iterate ended with exit code {code}: {last_words(log)}")
    return time.monotonic() - began


def last_words(log: Path) -> str:
    """The error that a command ended with, or else the end of what it printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line]
    for line in reversed(lines):
        if line.startswith(("error", "✗")):
            return line[:300]
    return lines[-1][:300] if lines else "it printed nothing"


def manifests(run_folder: Path) -> dict[str, dict[str, Any]]:
    """`artifact.json` of every finished stage, by its place in the run."""
    found = {}
    for path in sorted(run_folder.rglob("artifact.json")):
        with contextlib.suppress(ValueError):
            found[str(path.parent.relative_to(run_folder))] = json.loads(path.read_text(encoding="utf-8"))
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the driver; its workers end themselves."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
