"""vLLM as stage `generate` starts it: without nvcc and ninja, twice, at another path; what seeds promise."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_kit.figures import Kit
from gpu_kit.models import make_model, on_gpu, small
from gpu_kit.own_process import in_a_process

PACKAGES = ("torch", "transformers", "vllm")

_HIDDEN = ("nvcc", "ninja")
"""Programs that a machine of a user has not."""
_LARGEST_MEAN = 5e-3
"""Nats per token, in bf16: more means that one of the two engines computes something else."""
_SAMPLE = """
import sys, time
began = time.monotonic()
from rlhf.data.json_text import json_text
from rlhf.config.stage_configs import GenerateStage
from rlhf.generation.request import Request, Sampling
from rlhf.generation.vllm_sampler import VllmSampler
folder, out, number, length, hidden = sys.argv[1:]
import shutil
assert not any(shutil.which(name) for name in hidden.split(",")), "the programs are still on PATH"
config = GenerateStage(max_new_tokens=int(length), gpu_memory_utilization=0.5)
imported = time.monotonic()
sampler = VllmSampler(config, folder, 1, 64)
started = time.monotonic()
requests = [Request([5, 6, 7 + i % 50, 9 + i // 50], 1.0, 1000 + i) for i in range(int(number))]
sampling = Sampling(max_new_tokens=int(length), top_p=1.0, top_k=0, stop_token_ids=[])
said = {"imports": imported - began, "start": started - imported, "samples": []}
for order in (1, 1, -1):
    began = time.monotonic()
    found = sampler.sample(requests[::order], sampling)[::order]
    rows = [{"token_ids": each.token_ids, "logprob": each.logprob} for each in found]
    said["samples"].append(rows)
    said["seconds"] = time.monotonic() - began
said["prompts"] = [request.prompt_token_ids for request in requests]
with open(out, "w", encoding="utf-8") as stream:
    stream.write(json_text(said))
sys.stdout.flush()
import os
os._exit(0)
"""


def measure(kit: Kit) -> None:
    """Each start is a process of its own, as each stage is."""
    folder = make_model(kit, "engine", small(kit))
    number, length = (8, 8) if kit.is_toy else (64, 64)
    first = start_engine(kit, folder, number, length)
    kit.add("an engine without nvcc and ninja, first start", first["start"], "s", detail=imports(first))
    say_seeds(kit, first, number)
    beside_transformers(kit, folder, first)
    if kit.is_toy:
        kit.add("second start, same path and another", "as above", detail="left out at toy size")
        return
    again = start_engine(kit, folder, number, length)
    kit.add("second start at the same path", again["start"], "s", detail=imports(again))
    elsewhere = kit.work / "models" / "engine_elsewhere"
    shutil.copytree(folder, elsewhere, copy_function=os.link)
    other = start_engine(kit, elsewhere, number, length)
    kit.add("a start at another path", other["start"], "s", detail=imports(other))
    share = equal_share(first["samples"][0], other["samples"][0])
    kit.add("responses equal in another process", share, "of them")


def imports(said: dict[str, Any]) -> str:
    """Beside the seconds of the start."""
    return f"after {said['imports']:.1f} s of imports"


def start_engine(kit: Kit, folder: Path, number: int, length: int) -> dict[str, Any]:
    """Start the sampler in a process, sample three times, and give back what it said.

    Raises:
        RuntimeError: it failed; what it printed is printed.
    """
    out = kit.work / "engine.json"
    out.unlink(missing_ok=True)
    environment = dict(os.environ)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        environment.pop(name, None)
    environment["PATH"] = path_without(_HIDDEN, kit.work / "programs")
    # As the launcher sets it for workers.
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if not on_gpu():
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    arguments = [str(folder), str(out), str(number), str(length), ",".join(_HIDDEN)]
    done = subprocess.run([sys.executable, "-c", _SAMPLE, *arguments], env=environment, check=False)
    if done.returncode != 0 or not out.is_file():
        raise RuntimeError(f"the engine's process ended with exit code {done.returncode}, see above")
    said: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return said


def path_without(hidden: tuple[str, ...], folder: Path) -> str:
    """PATH on which some programs cannot be found, and all others can: folders that hold them are replaced by
    ones of links.
    """
    parts = []
    for number, part in enumerate(os.environ.get("PATH", "").split(os.pathsep)):
        if not any((Path(part) / name).exists() for name in hidden):
            parts.append(part)
            continue
        links = folder / str(number)
        if not links.is_dir():
            links.mkdir(parents=True)
            for program in Path(part).iterdir():
                if program.name not in hidden:
                    (links / program.name).symlink_to(program)
        parts.append(str(links))
    return os.pathsep.join(parts)


def equal_share(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Of responses that are the same token for token."""
    same = 0
    for left, right in zip(one, other, strict=True):
        same += left["token_ids"] == right["token_ids"]
    return same / len(one)


def say_seeds(kit: Kit, said: dict[str, Any], number: int) -> None:
    """Whether the same seeds give the same responses."""
    once, twice, reordered = said["samples"]
    # A bar on a CPU alone: on GPUs identity is promised by no one, and what is had is written down.
    bar = None if on_gpu() else 1.0
    kit.add("same seeds twice, equal responses", equal_share(once, twice), "of them", bar)
    kit.add("same seeds in another order, equal", equal_share(once, reordered), "of them", bar)
    tokens = sum(len(row["token_ids"]) for row in reordered)
    kit.add("sampling", tokens / said["seconds"], "tokens/s", detail=f"{number} requests at once")


def beside_transformers(kit: Kit, folder: Path, said: dict[str, Any]) -> None:
    """The log-probability of each response in both engines, per token."""
    rows = said["samples"][0]
    if on_gpu():
        sums = in_a_process(logprobs_of, folder, said["prompts"], rows, seconds=kit.seconds_left)
    else:
        sums = logprobs_of(folder, said["prompts"], rows)
    differences = []
    for row, total in zip(rows, sums, strict=True):
        differences.append((row["logprob"] - total) / max(1, len(row["token_ids"])))
    mean = statistics.fmean(differences)
    spread = statistics.pstdev(differences)
    largest = max(map(abs, differences))
    detail = f"of {len(rows)} responses: deviation {spread:.2g}, largest {largest:.2g}"
    name = "log-probability per token, off transformers"
    kit.add(name, abs(mean), "nats", _LARGEST_MEAN, lower_is_better=True, detail=detail)


def logprobs_of(folder: Path, prompts: list[list[int]], rows: list[dict[str, Any]]) -> list[float]:
    """log π(response | prompt) by transformers, as the stage `reference` computes it."""
    import torch

    from gpu_kit.models import device_name, model_dtype
    from rlhf.training.response_batches import batch_logprobs, batching_of
    from rlhf.training.weights import load_model

    model = load_model(folder, model_dtype()).to(device_name()).eval()
    batching, _ = batching_of(model, None, on_gpu())
    sums = []
    with torch.no_grad():
        for prompt, row in zip(prompts, rows, strict=True):
            batch = batching.batch([prompt], [[row["token_ids"]]]).to(torch.device(device_name()))
            sums += batch_logprobs(model, batch).tolist()
    return sums
