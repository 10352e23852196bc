"""Whether this machine has the room for a run, on disk and in memory, and the packages.

Everything here is an estimate from headers and settings, in bytes: activations, caches and fragments come
on top, so a need that nearly fills what there is gets a warning.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from rlhf.config.choices import Engine
from rlhf.config.schema import Config
from rlhf.data.files import resolved
from rlhf.generation.vllm_args import check_batching
from rlhf.launch.machine import gpus, memory
from rlhf.loop.prompt_sets import samples_to_train
from rlhf.models.weight_files import has_weights, saved_dtype
from rlhf.preflight.capacity import check_capacity
from rlhf.preflight.findings import Finding, Level, finding
from rlhf.run.commit import VERSIONS
from rlhf.run.job import Kind
from rlhf.run.stage_table import kind_of

_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_FP32 = 4  # bytes of a number
_ADAM = 12  # bytes a parameter: fp32 weights, and both of Adam's moments


def num_training_ranks(cfg: Config) -> int:
    """Processes that train together, as the launcher will start them."""
    if cfg.compute.num_training_ranks:
        return cfg.compute.num_training_ranks
    return len(gpus(cfg.compute)) or 1


def disk(cfg: Config, sizes: dict[str, float], folders: dict[str, Path]) -> Iterator[Finding]:
    """What is yet to be written: fp32 weights of each iteration, an export, two checkpoints, responses."""
    folder = resolved(cfg.run_dir or ".", "run_dir")
    checkpoints = _bytes_of_checkpoints(cfg, sizes, _bytes_of_weights(cfg, sizes, folders))
    needed = _bytes_to_write(cfg, sizes, folder) + checkpoints
    # A new run's folder is not there yet; the nearest one above it is on the same disk.
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    way_out = "Put run_dir on a larger disk, make room, or run fewer num_iterations."
    yield _fits("disk, to be written", needed, free, 0.8, way_out)


def _bytes_to_write(cfg: Config, sizes: dict[str, float], folder: Path) -> float:
    """Of weights and responses, which stay."""
    num_left = 0
    for t in range(1, cfg.num_iterations + 1):
        if not (folder / f"iteration_{t:03d}" / "dpo").is_dir():
            num_left += 1
    policy = sizes.get("model.path", 0)
    judge = 0.0
    if cfg.reward_model.data is not None:
        judge = sizes.get("reward_model.path", 0)
    num_policies = num_left + 1  # one of them is the export
    if cfg.sft.data is not None:
        num_policies += 1
    responses = 0
    if samples_to_train(cfg):
        responses = num_left * cfg.prompts.num_per_iteration * cfg.generate.n
    # Half of the limit: most responses end before it.
    tokens = responses * cfg.generate.max_new_tokens / 2
    weights = _FP32 * policy * num_policies + _FP32 * judge
    return weights + 8 * tokens  # 8 bytes a token are its id and its text


def _bytes_of_checkpoints(cfg: Config, sizes: dict[str, float], weights: dict[str, float]) -> float:
    """Of the two that the largest training has at most, in case the newer one is damaged or not finished."""
    trained = []
    # An adapter's checkpoint is small; SFT trains the whole model in any case.
    if cfg.sft.data is not None or cfg.dpo.lora.rank == 0:
        trained.append("model.path")
    if cfg.reward_model.data is not None:
        trained.append("reward_model.path")
    largest = 0.0
    for key in trained:
        checkpoint = _ADAM * sizes.get(key, 0)
        # Under ZeRO-3 the weights that a model computes with are not in it, but made of the fp32 ones.
        if cfg.compute.zero_stage != 3:
            checkpoint += weights.get(key, 0)
        largest = max(largest, checkpoint)
    return 2 * largest


@dataclass(frozen=True)
class _Need:
    """What one stage loads: bytes a process, how many processes, and the share of a device it may take."""

    stage: str
    num_bytes: float
    processes: int
    share: float
    way_out: str


def memory_of_stages(cfg: Config, sizes: dict[str, float], folders: dict[str, Path]) -> Iterator[Finding]:
    """Weights, gradients and Adam's state of each stage against the memory of one GPU (or of the machine).

    Raises:
        ConfigError: the models are far too large for this machine.
    """
    check_capacity(cfg)
    devices = gpus(cfg.compute)
    ranks = num_training_ranks(cfg)
    available = memory(devices)
    text = f"{len(devices)} GPUs"
    yield finding(available is not None, text, "Without nvidia-smi their memory is unknown.")
    # Memory of unknown size is no reason to stop: everything fits in it.
    available = available or math.inf
    weights = _bytes_of_weights(cfg, sizes, folders)
    for need in _needs(cfg, weights, sizes.get("model.path", 0), ranks):
        if not need.num_bytes:
            continue
        num_bytes = need.num_bytes
        limit = available
        if devices:
            limit *= need.share
        else:
            # Without GPUs all processes share the machine's memory.
            num_bytes *= need.processes
        what = f"memory for {need.stage}, without activations"
        way_out = f"A smaller model, more memory, or {need.way_out}."
        yield _fits(what, num_bytes, limit, 0.85, way_out)


def _needs(cfg: Config, weights: dict[str, float], parameters: float, ranks: int) -> list[_Need]:
    """What the stages that load models need.

    Args:
        cfg: a run's config.
        weights: bytes by config key, where they are known.
        parameters: of the policy.
        ranks: processes that train together.

    Example:
        weights: {"model.path": 1.6e10, "reward_model.path": 1.5e10}
    """
    policy = weights.get("model.path", 0)
    judge = weights.get("reward_model.path", 0)
    if cfg.reward_model.url:
        judge = 0  # it takes its memory where the server runs
    workers = cfg.compute.num_inference_workers or 1
    split = "tensor_parallel_size=2 or more"
    # Independent workers have all weights each; ranks under ZeRO-3 have a share.
    reference_processes = workers
    reference = policy
    if kind_of("reference", cfg.compute) is Kind.training:
        reference_processes = ranks
        reference = policy / ranks
    return [
        _Need(
            "generate",
            policy / cfg.generate.tensor_parallel_size,
            workers,
            cfg.generate.gpu_memory_utilization,
            f"generate.{split}",
        ),
        _Need(
            "reference",
            reference,
            reference_processes,
            1,
            "compute.zero_stage=3 with more training ranks (GPUs)",
        ),
        _Need(
            "dpo",
            _bytes_of_training(cfg, policy, parameters, ranks),
            ranks,
            1,
            "compute.offload_optimizer=true, compute.zero_stage=3, dpo.lora.rank=32, more training "
            "ranks (GPUs)",
        ),
        _Need(
            "score",
            judge / cfg.score.tensor_parallel_size,
            workers,
            # `auto` that finds too little for vLLM goes on with transformers, which may take all.
            cfg.score.gpu_memory_utilization if cfg.score.engine is Engine.vllm else 1,
            f"score.engine=vllm with score.{split}",
        ),
    ]


def _bytes_of_weights(cfg: Config, sizes: dict[str, float], folders: dict[str, Path]) -> dict[str, float]:
    """Of policy and training judge in the dtype they are loaded in, by config key, where sizes are known."""
    dtypes = {"model.path": cfg.model.dtype.value, "reward_model.path": cfg.reward_model.dtype.value}
    weights = {}
    for key, dtype in dtypes.items():
        if key not in sizes:
            continue
        if has_weights(folders[key]):
            dtype = saved_dtype(folders[key], dtype)
        # 16 bits where nothing tells, as published models have.
        bytes_each = _FP32 if dtype == "float32" else 2
        weights[key] = sizes[key] * bytes_each
    return weights


def _bytes_of_training(cfg: Config, policy: float, parameters: float, ranks: int) -> float:
    """What DPO holds on one rank; `policy` are the bytes of its weights."""
    weights = policy
    # ZeRO-3 alone shares the weights out; gradients and Adam's state are shared out in stage 2 too.
    if cfg.compute.zero_stage == 3:
        weights = policy / ranks
    if cfg.dpo.lora.rank:
        return weights
    gradients = _FP32 * parameters  # they add up in fp32, whatever the model computes in
    adam = _ADAM * parameters
    if cfg.compute.offload_optimizer:
        adam = 0
    return weights + (gradients + adam) / ranks


def _fits(what: str, needed: float, available: float, tight: float, way_out: str) -> Finding:
    """Whether `needed` bytes are at most the share `tight` of what is there; more than all is an error."""
    text = f"{what}: {_gigabytes(needed)} of {_gigabytes(available)}"
    level = Level.error if needed > available else Level.warning
    fine = needed <= tight * available
    return finding(fine, text, way_out, level)


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB"


def engine_arguments(cfg: Config) -> Iterator[Finding]:
    """Whether vLLM can do on this machine what `generate.vllm_args` asks of it; nothing where it is asked
    nothing.

    Raises:
        ConfigError: it cannot.
    """
    arguments = cfg.generate.vllm_args
    if not arguments or cfg.generate.engine is Engine.transformers:
        return
    check_batching(arguments, has_gpu=len(gpus(cfg.compute)) > 0)
    names = ", ".join(arguments)
    yield finding(True, f"generate.vllm_args: {names}")


def versions(cfg: Config) -> Iterator[Finding]:
    """Packages that the chosen engines need, against the lower bounds of pyproject.toml where it is there."""
    packages = list(VERSIONS)
    if Engine.vllm in (cfg.generate.engine, cfg.score.engine):
        packages.append("vllm")
    least = _least_versions()
    for package in packages:
        way_out = f"make setup installs {least.get(package, 'it')} or later."
        if package == "vllm":
            way_out += " Or set generate.engine and score.engine to transformers."
        version = _installed(package)
        if version is None:
            yield Finding(Level.error, f"{package} is not installed", way_out)
            continue
        is_new_enough = _numbers(version) >= _numbers(least.get(package, "0"))
        yield finding(is_new_enough, f"{package} {version}", way_out)


def _least_versions() -> dict[str, str]:
    """The lower bounds of pyproject.toml by package; an installed copy of this one has no such file."""
    if not _PYPROJECT.is_file():
        return {}
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', _PYPROJECT.read_text(encoding="utf-8")))


def _installed(package: str) -> str | None:
    # vLLM's build for machines without a GPU is a package of another name.
    for name in (package, f"{package}-cpu"):
        for distribution in distributions(name=name):
            return distribution.version
    return None


def _numbers(version: str) -> list[int]:
    """Numbers of a version, to be compared: `2.13.0+cpu` gives [2, 13, 0]."""
    public, _, _ = version.partition("+")
    numbers = re.findall(r"\d+", public)
    return [int(number) for number in numbers]
