"""How many tokens go through the model at a time: a person's number, or what memory allows.

Where nobody says it, the budget is estimated from the model's shape and the memory that is free. When memory
runs out all the same, the attempt at the stage ends with half of the budget written down, and the driver
starts the next one (`rlhf.run.attempts`). Within a step nothing could be mended: a rank that fails alone
leaves the others waiting for it, and DeepSpeed with half of a step's gradients sent. Ended and started again,
from its newest checkpoint or its finished shards, every rank repeats the same steps with the same pairs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlhf.config.stage_configs import DpoStage
from rlhf.data.json_text import json_text
from rlhf.data.shards import write_atomic
from rlhf.errors import ConfigError, SmallerBatches
from rlhf.models.shape import Shape, read_shape
from rlhf.models.weight_files import num_parameters
from rlhf.run.job import Job, Worker
from rlhf.training.deepspeed import on_gpu
from rlhf.training.memory_forecast import HowTrained, Memory, default_tokens, fitting
from rlhf.training.ranks import min_over_ranks, on_rank_zero
from rlhf.training.weights import resolve_dtype

FOUND = ".batch_tokens.json"
"""In the folder of unfinished work: the budget that is left after memory has run out."""
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
"""What torch's errors of other classes say, of CPUs and of CUDA's libraries."""


@dataclass(frozen=True)
class TokenBudget:
    """The budget of one attempt at a stage.

    `said` is the number in the config, None where it is to be found. Below `smallest` tokens nothing is
    gained: what goes through the model by itself is as long. `ran_out` says that an attempt before this one,
    or an iteration, ran out of memory with twice as many.
    """

    section: str
    folder: Path
    device: str
    batch_tokens: int
    smallest: int
    said: int | None = None
    ran_out: bool = False

    @contextlib.contextmanager
    def watched(self, where: str) -> Iterator[None]:
        """Around work that takes memory for the tokens of a batch.

        Args:
            where: for messages, such as "in step 3 on rank 0".

        Raises:
            SmallerBatches: memory ran out, and the next attempt will take half of the tokens.
            ConfigError: it ran out, and there is nothing to halve: the number is a person's, or too small.
        """
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._back_off(where, error)

    def record(self) -> dict[str, Any]:
        """What is remembered in the artifact.

        Example:
            {"batch_tokens": 8192, "device": "cpu, 24 GB", "ran_out": true}
        """
        return {"batch_tokens": self.batch_tokens, "device": self.device, "ran_out": self.ran_out}

    def _back_off(self, where: str, error: Exception) -> None:
        key = f"{self.section}.batch_tokens"
        what = f"memory ran out {where} ({self.device})"
        first_line, _, _ = str(error).strip().partition("\n")
        if self.said is not None:
            raise ConfigError(
                f"{key}={self.said}: {what}. Lower it, or set it to null, so that a number is found that "
                f"fits. {_ways_out(self.section)} torch says: {first_line}"
            ) from error
        if self.batch_tokens <= self.smallest:
            raise ConfigError(
                f"{what}, with batches of {self.batch_tokens} tokens, which cannot be smaller: so long is "
                f"what goes through the model at once. {_ways_out(self.section)} torch says: {first_line}"
            ) from error
        tokens = max(self.batch_tokens // 2, self.smallest)
        # Also where other ranks run out at the same time: they write the same.
        text = json_text({"batch_tokens": tokens, "device": self.device, "ran_out": True})
        write_atomic(self.folder / FOUND, text.encode())
        raise SmallerBatches(
            f"{what} with {key}={self.batch_tokens}: going on with {tokens}, from the newest checkpoint or "
            "shard"
        ) from error


def find_budget(
    job: Job[Any],
    worker: Worker,
    forecast: Callable[[int], Memory] | None,
    smallest: int,
) -> TokenBudget:
    """The budget of this attempt. Before the model is loaded; every rank calls it, and all get the same.

    Args:
        job: of `dpo` or `reference`; its config says `batch_tokens`, its compute what was found before.
        worker: how many processes share the machine.
        forecast: what so many tokens take; None where nothing is known of the model's shape.
        smallest: tokens below which nothing is gained.
    """
    is_on_gpu = on_gpu(job.compute)
    device = device_text(is_on_gpu)
    said = job.config.batch_tokens
    if said is not None:
        return TokenBudget(job.stage, job.out_path, device, said, smallest, said)
    tokens = default_tokens(is_on_gpu)
    ran_out = False
    for record in (on_rank_zero(lambda: _found(job.out_path)), job.compute.found_budget):
        # Of another machine it says nothing about this one.
        if record is not None and record["ran_out"] and record["device"] == device:
            tokens = min(tokens, record["batch_tokens"])
            ran_out = True
    if forecast is not None:
        tokens = fitting(tokens, smallest, forecast, free_memory(is_on_gpu, _num_processes_here(worker)))
    # Of a rank whose device has less room than the others'.
    tokens = int(min_over_ranks(tokens))
    return TokenBudget(job.stage, job.out_path, device, tokens, smallest, ran_out=ran_out)


def forecast_of(
    formula: Callable[[Shape, HowTrained], Memory],
    job: Job[Any],
    worker: Worker,
    folder: Path,
    longest: int,
) -> Callable[[int], Memory] | None:
    """What a process holds with so many tokens at a time; None where config.json does not tell the shape.

    Args:
        formula: of `rlhf.training.memory_forecast`.
        job: of the stage.
        worker: of how many processes.
        folder: of the model.
        longest: tokens of the longest that goes through the model by itself.
    """
    shape = read_shape(folder, num_parameters(folder))
    if shape is None:
        return None
    how = HowTrained(
        bytes_per_weight=resolve_dtype(job.config.dtype, folder).itemsize,
        batch_tokens=0,
        longest_pair=longest,
        ranks=worker.world_size,
        zero_stage=job.compute.zero_stage,
        offload_optimizer=job.compute.offload_optimizer,
        on_gpu=on_gpu(job.compute),
    )
    if isinstance(job.config, DpoStage):
        how = replace(
            how,
            gradient_checkpointing=job.config.gradient_checkpointing,
            lora_rank=job.config.lora.rank,
        )
    return lambda tokens: formula(shape, replace(how, batch_tokens=tokens))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def _num_processes_here(worker: Worker) -> int:
    """How many processes of the stage share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", worker.world_size))


def free_memory(is_on_gpu: bool, num_processes: int) -> float:
    """Bytes that this process may yet take; on a CPU an equal share of what all of a stage's may."""
    if is_on_gpu:
        free, _ = torch.cuda.mem_get_info()
        return float(free)
    with contextlib.suppress(OSError, ValueError, KeyError):
        own = _status(Path("/proc/self/status"))
        shared = _status(Path("/proc/meminfo"))["MemAvailable"]
        shared = min(shared, _free_in_the_container())
        return min(shared / num_processes, _under_limits(own))
    return math.inf


def device_text(is_on_gpu: bool) -> str:
    """A device and its memory, as far as they decide how many tokens fit.

    Example:
        "cpu, 24 GB"
    """
    if is_on_gpu:
        _, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {total / 1e9:.0f} GB"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"cpu, {total / 1e9:.0f} GB"


def _status(path: Path) -> dict[str, float]:
    """Bytes by name, of a file in which Linux counts memory in kB."""
    sizes = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            sizes[name] = 1024 * float(value.removesuffix(" kB"))
    return sizes


def _free_in_the_container() -> float:
    """Below the least limit of this process's groups (cgroup v2); a container sees its own as the root."""
    root = Path("/sys/fs/cgroup")
    own = root
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::/"):
            own = root / line.removeprefix("0::/")
    left = math.inf
    for group in (own, *own.parents):
        if group.is_relative_to(root) and (group / "memory.max").is_file():
            left = min(left, _free_in_group(group))
    return left


def _free_in_group(group: Path) -> float:
    limit = float((group / "memory.max").read_text(encoding="utf-8").replace("max", "inf"))
    used = float((group / "memory.current").read_text(encoding="utf-8"))
    for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(" ")
        # Pages of files that were read, weights among them: the kernel takes them back when it needs them.
        if name == "inactive_file":
            used -= float(value)
    return limit - used


def _under_limits(own: dict[str, float]) -> float:
    """What `ulimit -v` and `ulimit -d` leave."""
    left = math.inf
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            left = min(left, soft - own[name])
    return left


def _found(folder: Path) -> dict[str, Any] | None:
    """What an earlier attempt at this stage has left."""
    with contextlib.suppress(OSError, ValueError):
        record: dict[str, Any] = json.loads((folder / FOUND).read_text(encoding="utf-8"))
        return record
    return None


def _ways_out(section: str) -> str:
    if section == "reference":
        return "Else: compute.zero_stage=3 with more training ranks (GPUs), a smaller model, or more memory."
    return (
        "Else: a smaller dpo.max_length, dpo.gradient_checkpointing=true, dpo.lora.rank=32, "
        "compute.offload_optimizer=true, compute.zero_stage=3, more training ranks (GPUs), a smaller model, "
        "or more memory."
    )
