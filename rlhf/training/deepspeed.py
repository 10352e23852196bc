"""DeepSpeed: the process group and the config dict."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from rlhf.config.choices import Device
from rlhf.config.schema import ComputeConfig

_MAX_BUCKET = 500_000_000
"""DeepSpeed's own default number of elements in a communication bucket."""
_MIN_BUCKET = 1024
"""Of models of a few weights, which tests train."""


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
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


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

    Sizes that belong to the Trainer are "auto". Buckets are no larger than the model: DeepSpeed
    allocates them whole.
    """
    stage = compute.zero_stage
    bucket = max(_MIN_BUCKET, min(num_parameters, _MAX_BUCKET))
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": on_gpu(compute),
        "contiguous_gradients": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if stage == 3:
        # DeepSpeed's defaults; weights smaller than the threshold stay whole on every rank.
        zero["stage3_prefetch_bucket_size"] = min(bucket, 50_000_000)
        zero["stage3_param_persistence_threshold"] = 100_000
    if compute.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu(compute)}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": zero,
        # torch's AdamW also with the optimizer in CPU memory: DeepSpeed's own needs a compiler.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
