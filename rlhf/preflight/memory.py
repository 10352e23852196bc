"""Whether the stages that load models fit in memory: estimates from headers and settings, in bytes.

Caches and fragments come on top, so a need that nearly fills what there is gets a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.config.choices import Engine, Method
from rlhf.config.schema import Config
from rlhf.launch.machine import gpus_of_run, memory, num_gpus_of_run
from rlhf.models.shape import Shape, read_shape
from rlhf.models.weight_files import has_weights, saved_dtype
from rlhf.preflight.capacity import check_capacity
from rlhf.preflight.findings import Finding, Level, finding
from rlhf.run.job import Kind
from rlhf.run.stage_table import kind_of
from rlhf.training.memory_forecast import (
    FP32,
    HowTrained,
    Memory,
    default_tokens,
    dpo_memory,
    fitting,
    reference_memory,
)

_TIGHT = 0.85
"""Share of the memory above which a forecast gets a warning."""


@dataclass(frozen=True)
class _Need:
    """What one stage holds: bytes a process, how many processes, and the share of a device it may take.

    `least` are the bytes of these that no smaller batch spares.
    """

    stage: str
    num_bytes: float
    processes: int
    share: float
    way_out: str
    least: float
    what: str = "without activations"


def num_training_ranks(cfg: Config) -> int:
    """Processes that train together, as the launcher will start them."""
    if cfg.compute.num_training_ranks:
        return cfg.compute.num_training_ranks
    return num_gpus_of_run(cfg.compute) or 1


def memory_of_stages(cfg: Config, sizes: dict[str, float], folders: dict[str, Path]) -> Iterator[Finding]:
    """What each stage that loads a model holds, against the memory of one GPU (or of the machine).

    Raises:
        ConfigError: the models are far too large for this machine.
    """
    check_capacity(cfg)
    devices = gpus_of_run(cfg.compute)
    available = memory(devices)
    text = f"{len(devices)} GPUs"
    yield finding(available is not None, text, "Without nvidia-smi their memory is unknown.")
    # Memory of unknown size is no reason to stop: everything fits in it.
    available = available or math.inf
    weights = bytes_of_weights(cfg, sizes, folders)
    needs = _of_engines(cfg, weights)
    if weights.get("model.path"):
        shape = _shape(sizes["model.path"], folders["model.path"])
        bytes_each = round(weights["model.path"] / sizes["model.path"])
        needs += _of_the_policy(cfg, shape, bytes_each, available)
    for need in needs:
        limit = available
        num_bytes = need.num_bytes
        least = need.least
        if devices:
            limit *= need.share
        else:
            # Without GPUs all processes share the machine's memory.
            num_bytes *= need.processes
            least *= need.processes
        yield _finding(need, num_bytes, least, limit)


def _finding(need: _Need, num_bytes: float, least: float, limit: float) -> Finding:
    text = f"memory for {need.stage}, {need.what}"
    way_out = f"A smaller model, more memory, or {need.way_out}."
    if num_bytes > limit >= least:
        # What batches take is a forecast, which refuses nothing.
        text = f"{text}: {gigabytes(num_bytes)} of {gigabytes(limit)}"
        return Finding(Level.warning, text, f"It may run out. {way_out}")
    return fits(text, num_bytes, limit, _TIGHT, way_out)


def _of_engines(cfg: Config, weights: dict[str, float]) -> list[_Need]:
    """What sampling and scoring load.

    Args:
        cfg: a run's config.
        weights: bytes by config key, where they are known.

    Example:
        weights: {"model.path": 1.6e10, "reward_model.path": 1.5e10}
    """
    policy = weights.get("model.path", 0)
    judge = weights.get("reward_model.path", 0)
    if cfg.reward_model.url:
        judge = 0  # it takes its memory where the server runs
    workers = cfg.compute.num_inference_workers or 1
    needs = []
    if policy:
        num_bytes = policy / cfg.generate.tensor_parallel_size
        way_out = "generate.tensor_parallel_size=2 or more"
        share = cfg.generate.gpu_memory_utilization
        needs.append(_Need("generate", num_bytes, workers, share, way_out, least=num_bytes))
    if judge:
        num_bytes = judge / cfg.score.tensor_parallel_size
        way_out = "score.engine=vllm with score.tensor_parallel_size=2 or more"
        # `auto` that finds too little for vLLM goes on with transformers, which may take all.
        share = cfg.score.gpu_memory_utilization if cfg.score.engine is Engine.vllm else 1
        needs.append(_Need("score", num_bytes, workers, share, way_out, least=num_bytes))
    return needs


def _of_the_policy(cfg: Config, shape: Shape, bytes_per_weight: int, available: float) -> list[_Need]:
    """What `reference` and `dpo` hold at their peaks; `available` are the bytes of one device."""
    ranks = num_training_ranks(cfg)
    how = HowTrained(
        bytes_per_weight=bytes_per_weight,
        batch_tokens=0,
        longest_pair=longest_pair(cfg),
        ranks=ranks,
        zero_stage=cfg.compute.zero_stage,
        offload_optimizer=cfg.compute.offload_optimizer,
        gradient_checkpointing=cfg.dpo.gradient_checkpointing,
        lora_rank=cfg.dpo.lora.rank,
        on_gpu=len(gpus_of_run(cfg.compute)) > 0,
    )
    ways_out = (
        "compute.offload_optimizer=true, compute.zero_stage=3, dpo.lora.rank=32, more training ranks (GPUs), "
        "dpo.gradient_checkpointing=true, a smaller dpo.max_length or dpo.batch_tokens"
    )
    if cfg.method is Method.raft:
        trained = _of_raft(cfg, shape, how, available)
    else:
        trained = _need("dpo", dpo_memory, cfg.dpo.batch_tokens, shape, how, ranks, available, ways_out)
    # Independent workers have all weights each; ranks under ZeRO-3 have a share.
    processes = ranks
    if kind_of("reference", cfg.compute) is not Kind.training:
        processes = cfg.compute.num_inference_workers or 1
    how = replace(how, ranks=processes, longest_pair=min(cfg.dpo.max_length, how.longest_pair))
    ways_out = "compute.zero_stage=3 with more training ranks (GPUs)"
    tokens = cfg.reference.batch_tokens
    reference = _need("reference", reference_memory, tokens, shape, how, processes, available, ways_out)
    return [reference, trained]


def _of_raft(cfg: Config, shape: Shape, how: HowTrained, available: float) -> _Need:
    """What training on single responses holds: as DPO, with other batches and no adapters."""
    section = cfg.raft
    how = replace(
        how,
        longest_pair=section.max_length,
        lora_rank=0,
        gradient_checkpointing=section.gradient_checkpointing,
    )
    ways_out = (
        "compute.offload_optimizer=true, compute.zero_stage=3, more training ranks (GPUs), "
        "raft.gradient_checkpointing=true, a smaller raft.max_length or raft.micro_batch_size"
    )
    tokens = section.micro_batch_size * section.max_length
    return _need("raft", dpo_memory, tokens, shape, how, how.ranks, available, ways_out)


def _need(
    stage: str,
    formula: Callable[[Shape, HowTrained], Memory],
    said_tokens: int | None,
    shape: Shape,
    how: HowTrained,
    processes: int,
    available: float,
    way_out: str,
) -> _Need:
    """Of a stage with a budget of tokens: that of the config, or the one that it will begin with."""
    tokens = said_tokens
    if tokens is None:
        tokens = first_tokens(formula, shape, how, available if how.on_gpu else available / processes)
    memory = formula(shape, replace(how, batch_tokens=tokens))
    if not shape.layers:
        # Nothing is known of it but its size.
        num_bytes = memory.held - memory.base
        return _Need(stage, num_bytes, processes, 1, way_out, least=num_bytes)
    what = f"{max(tokens, how.longest_pair)} tokens at a time"
    return _Need(stage, memory.peak, processes, 1, way_out, least=memory.held - memory.base, what=what)


def first_tokens(
    formula: Callable[[Shape, HowTrained], Memory], shape: Shape, how: HowTrained, room: float
) -> int:
    """The budget of tokens that a stage begins with where the config names none, as its workers choose it.

    Args:
        formula: what the stage holds.
        shape: of its model.
        how: it is trained; its own `batch_tokens` are not looked at.
        room: bytes that one process has, with what it holds without a model.
    """

    def forecast(tokens: int) -> Memory:
        return formula(shape, replace(how, batch_tokens=tokens))

    most = default_tokens(how.on_gpu)
    return fitting(most, how.longest_pair, forecast, room - forecast(most).base)


def longest_pair(cfg: Config) -> int:
    """Tokens of a prompt and both responses, at most, as the settings allow."""
    length = cfg.dpo.max_length
    if cfg.pair.data is not None or cfg.replay.data is not None:
        return 2 * length
    # A prompt that leaves more room than a response takes, and two such responses.
    response = min(cfg.generate.max_new_tokens, length)
    prompt = min(cfg.generate.max_prompt_tokens, length - response)
    return prompt + 2 * response


def _shape(parameters: float, folder: Path) -> Shape:
    """Of a model folder; one without layers where nothing but its size is known."""
    shape = None
    if (folder / "config.json").is_file():
        shape = read_shape(folder, parameters)
    if shape is None:
        return Shape(parameters, 0, 0, 0, 0, 0, 0, vocabulary=1)
    return shape


def bytes_of_weights(cfg: Config, sizes: dict[str, float], folders: dict[str, Path]) -> dict[str, float]:
    """Of policy and training judge in the dtype they are loaded in, by config key, where sizes are known."""
    dtypes = {"model.path": cfg.model.dtype.value, "reward_model.path": cfg.reward_model.dtype.value}
    weights = {}
    for key, dtype in dtypes.items():
        if key not in sizes:
            continue
        if has_weights(folders[key]):
            dtype = saved_dtype(folders[key], dtype)
        # 16 bits where nothing tells, as published models have.
        bytes_each = FP32 if dtype == "float32" else 2
        weights[key] = sizes[key] * bytes_each
    return weights


def fits(what: str, needed: float, available: float, tight: float, way_out: str) -> Finding:
    """Whether `needed` bytes are at most the share `tight` of what is there; more than all is an error."""
    text = f"{what}: {gigabytes(needed)} of {gigabytes(available)}"
    level = Level.error if needed > available else Level.warning
    fine = needed <= tight * available
    return finding(fine, text, way_out, level)


def gigabytes(num_bytes: float) -> str:
    """For people.

    Example:
        `gigabytes(1.234e10)` gives "12.3 GB"
    """
    return f"{num_bytes / 1e9:.3g} GB"
