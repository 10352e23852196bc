"""What this machine has, found without torch, and how a stage's workers share it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

from rlhf.config.choices import Device
from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError
from rlhf.run.job import Kind

_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait cost 8 times the time on a busy machine
}


_ON_A_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    "TORCH_COMPILE_DISABLE": "1",  # needs a compiler, and seconds at every start
    "GLOO_SOCKET_IFNAME": "lo",
}


def starting_environment(device: str) -> dict[str, str]:
    """What must be set before the heavy imports: no telemetry, patient threads, and on a CPU no compiling."""
    on_cpu = device == "cpu" or not visible_gpus()
    # Killed workers leave semaphores, which Python's tracker cleans up and then complains about.
    warnings = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"]))
    return _QUIET | {"PYTHONWARNINGS": warnings} | (_ON_A_CPU if on_cpu else {})


def visible_gpus() -> list[str]:
    """Names of the GPUs that may be used, as CUDA_VISIBLE_DEVICES spells them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def gpus(compute: ComputeConfig) -> list[str]:
    """The GPUs a run uses; none means the CPU.

    Raises:
        ConfigError: GPUs are asked for that are not there.
    """
    if compute.device is Device.cpu:
        return []
    found = visible_gpus()
    wanted = compute.num_gpus
    if compute.device is Device.cuda and not found:
        raise ConfigError("compute.device=cuda, but no GPU is visible. Use compute.device=cpu, or check the driver.")
    if wanted is not None and wanted > len(found):
        raise ConfigError(
            f"compute.num_gpus={wanted}, but {len(found)} are visible. Lower it, leave it null, or set "
            "CUDA_VISIBLE_DEVICES."
        )
    return found[:wanted]


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def memory(devices: list[str]) -> float | None:
    """Bytes of the smallest GPU, or without GPUs of RAM that this process may use; None where nothing tells."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        if devices:
            query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
            said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
            return min(float(line) for line in said.split()) * 2**20
        there = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        limit = Path("/sys/fs/cgroup/memory.max")  # of a container, or the word max
        return min(there, float(limit.read_text().replace("max", "inf")) if limit.is_file() else there)
    return None


def environments(kind: Kind, compute: ComputeConfig, tensor_parallel: int, num_shards: int) -> list[dict[str, str]]:
    """One environment per worker: its GPUs, its threads, its place in the process group.

    Raises:
        ConfigError: the machine cannot be shared out as asked.
    """
    devices = gpus(compute)
    num = _num_workers(kind, compute, devices, tensor_parallel, num_shards)
    threads = compute.num_threads or max(1, num_cores() // num)
    base = {"OMP_NUM_THREADS": str(threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if not devices:
        base |= _ON_A_CPU | {
            "VLLM_CPU_KVCACHE_SPACE": str(compute.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    if kind is Kind.training:
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(num)}
        if devices:
            group["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        return [base | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num)]
    if devices and kind is Kind.inference:
        shares = [devices[i * tensor_parallel : (i + 1) * tensor_parallel] for i in range(num)]
        return [base | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]
    return [base] * num


def _num_workers(kind: Kind, compute: ComputeConfig, devices: list[str], tensor_parallel: int, num_shards: int) -> int:
    if kind is Kind.single:
        return 1
    if kind is Kind.training:
        return int(compute.num_training_ranks or len(devices) or 1)
    if devices and len(devices) < tensor_parallel:
        raise ConfigError(
            f"tensor_parallel_size={tensor_parallel}, but the run has {len(devices)} GPUs. Lower it, or raise "
            "compute.num_gpus."
        )
    groups = len(devices) // tensor_parallel if devices else 1
    return max(1, min(int(compute.num_inference_workers or groups), num_shards))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
