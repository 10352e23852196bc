"""DeepSpeed: the process group and the config dict."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from rlhf.config.choices import Device
from rlhf.config.schema import ComputeConfig

_MAX_BUCKET = 500_000_000
"""DeepSpeed's own default number of elements in a communication bucket."""
_CPU_BUCKET = 2**20
"""On a CPU, where messages cost little: a bucket is allocated anew in each backward pass, and gradients that
are larger go round it, uncopied."""
_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
_MIN_BUCKET = 1024
"""Of models of a few weights, which tests train."""
_FOR_EVER = 365 * 24 * 3600.0
"""Seconds, longer than any training takes: a timeout has to be a number."""


def on_gpu(compute: ComputeConfig) -> bool:
    """Whether training runs on GPUs."""
    if compute.device is Device.cpu:
        return False
    return torch.cuda.is_available()


def init_process_group(compute: ComputeConfig) -> None:
    """Join the ranks of this training; a second call does nothing.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT come from the launcher. It has to
    happen before a model is loaded under ZeRO-3: DeepSpeed takes the number of ranks from here.
    """
    # Not at the top: inference workers import this module too, and DeepSpeed takes seconds.
    import deepspeed
    import torch.distributed as dist

    # Without this DeepSpeed compiles a helper on CPUs: it needs g++, and a kill while it compiles
    # leaves a lock file on which every later start waits for ever. gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # accelerate would take all cores for each rank, whatever the launcher gave it.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if on_gpu(compute):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        backend = "nccl" if on_gpu(compute) else "gloo"
        timeout = group_timeout(compute)
        # DeepSpeed makes groups of its own later, without a timeout: they would have torch's 10 minutes.
        dist.distributed_c10d.default_pg_timeout = timeout
        dist.distributed_c10d.default_pg_nccl_timeout = timeout
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)


def group_timeout(compute: ComputeConfig) -> timedelta:
    """How long ranks wait for each other: as long as the driver waits for them, which can say who hangs.

    One of them may be alone at work for long, on the rows of a data set or the export.
    """
    seconds = compute.hang_seconds or _FOR_EVER
    return timedelta(seconds=min(seconds, _FOR_EVER))


def load_sharded(
    load: Callable[[], Any], compute: ComputeConfig, dtype: torch.dtype, num_parameters: int
) -> Any:
    """A model to compute with and not to train, whose weights are shared out over the ranks (ZeRO-3).

    Every rank calls it, and afterwards the model, equally often.

    Args:
        load: loads the model by transformers.
        compute: where it runs; its `zero_stage` is 3.
        dtype: that `load` loads in.
        num_parameters: of the model.
    """
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    init_process_group(compute)
    config = deepspeed_config(compute, dtype, num_parameters)
    # What the Trainer fills in where there is one. Nothing is accumulated, clipped or offloaded here.
    config |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
    }
    del config["train_batch_size"]
    config["zero_optimization"].pop("offload_optimizer", None)
    # While this object lives, transformers gives every rank its share as soon as a weight is read.
    is_known = HfDeepSpeedConfig(config)
    model = load().eval()
    del is_known
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine


def deepspeed_config(
    compute: ComputeConfig,
    dtype: torch.dtype,
    num_parameters: int,
) -> dict[str, Any]:
    """The DeepSpeed config of a model with so many parameters.

    Sizes that belong to the Trainer are "auto". Buckets are for a training of all weights
    (`fit_buckets`).
    """
    stage = compute.zero_stage
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": on_gpu(compute),
        "contiguous_gradients": True,
    }
    for name in _BUCKETS:
        zero[name] = _MAX_BUCKET if on_gpu(compute) else _CPU_BUCKET
    if stage == 3:
        # DeepSpeed's defaults; weights smaller than the threshold stay whole on every rank. What is
        # fetched ahead are all weights, also those that are not trained.
        zero["stage3_prefetch_bucket_size"] = min(_bucket(num_parameters), 50_000_000)
        zero["stage3_param_persistence_threshold"] = 100_000
    if compute.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu(compute)}
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": dtype == torch.bfloat16},
        # Of a step's bins: each is computed in the model's dtype, but their sum would lose in bf16
        # what is smaller than 1/256 of it, so that the step would depend on the number of bins.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        # torch's AdamW also with the optimizer in CPU memory: DeepSpeed's own needs a compiler.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    fit_buckets(config, num_parameters)
    return config


def fit_buckets(config: dict[str, Any], num_trained: int) -> None:
    """Make the buckets of a DeepSpeed config as large as what goes through them: gradients and new weights.

    Those are of trained weights alone, and DeepSpeed allocates buckets whole. To be called before a
    Trainer wraps its model.
    """
    zero = config["zero_optimization"]
    for name in _BUCKETS:
        zero[name] = _bucket(min(num_trained, zero[name]))


def _bucket(num_elements: int) -> int:
    """Elements of a bucket that no more than so many go through."""
    return max(_MIN_BUCKET, min(num_elements, _MAX_BUCKET))
