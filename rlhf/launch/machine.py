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

_PATIENT_AND_QUIET = {
    # Nothing is told to anybody about a run.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # the usual check uses the GPU, and no fork may follow that
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
    warnings = "ignore:resource_tracker:UserWarning"
    if os.environ.get("PYTHONWARNINGS"):
        warnings = f"{os.environ['PYTHONWARNINGS']},{warnings}"
    environment = {**_PATIENT_AND_QUIET, "PYTHONWARNINGS": warnings}
    if on_cpu:
        environment.update(_ON_A_CPU)
    # Libraries open files that hold UTF-8 without saying so. In the locale C Python escapes the names of
    # files, which is undone in UTF-8; in others they would be read as other names.
    if sys.getfilesystemencoding() in ("utf-8", "ascii"):
        environment["PYTHONUTF8"] = "1"
    return environment


def visible_gpus() -> list[str]:
    """Names of the GPUs that may be used, as CUDA_VISIBLE_DEVICES spells them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        # The driver's device files: asking CUDA would take torch, and seconds.
        devices = list(Path("/dev").glob("nvidia[0-9]*"))
        return [str(index) for index in range(len(devices))]
    names = chosen.split(",")
    return [name for name in names if name.strip() not in ("", "-1")]


def gpus(compute: ComputeConfig) -> list[str]:
    """The GPUs a run uses; none means the CPU.

    Raises:
        ConfigError: GPUs are asked for that are not there.
    """
    if compute.device is Device.cpu:
        return []
    visible = visible_gpus()
    wanted = compute.num_gpus
    if compute.device is Device.cuda and not visible:
        raise ConfigError(
            "compute.device=cuda, but no GPU is visible. Use compute.device=cpu, or check the driver."
        )
    if wanted is not None and wanted > len(visible):
        raise ConfigError(
            f"compute.num_gpus={wanted}, but {len(visible)} are visible. Lower it, leave it null, or set "
            "CUDA_VISIBLE_DEVICES."
        )
    return visible[:wanted]


def num_cores() -> int:
    """CPU cores this process may use."""
    if sys.platform == "linux":
        # Fewer than the machine has in a container or under taskset.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(devices: list[str]) -> float | None:
    """Bytes of the smallest GPU, or without GPUs of RAM that this process may use; None if nothing tells."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        if devices:
            return _memory_of_smallest_gpu()
        return _usable_ram()
    return None


def _memory_of_smallest_gpu() -> float:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    mebibytes = [float(line) for line in answer.stdout.split()]
    return min(mebibytes) * 2**20


def _usable_ram() -> float:
    installed = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if not limit.is_file():
        return installed
    # Of a container: a number of bytes, or the word max where there is no limit.
    text = limit.read_text(encoding="utf-8").replace("max", "inf")
    return min(installed, float(text))


def environments(
    kind: Kind,
    compute: ComputeConfig,
    tensor_parallel: int,
    num_shards: int,
) -> list[dict[str, str]]:
    """One environment per worker: its GPUs, its threads, its place in the process group.

    Raises:
        ConfigError: the machine cannot be shared out as asked.

    Example:
        {"OMP_NUM_THREADS": "8", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "CUDA_VISIBLE_DEVICES": "0,1"}
    """
    devices = gpus(compute)
    num_workers = _num_workers(kind, compute, devices, tensor_parallel, num_shards)
    threads = compute.num_threads or max(1, num_cores() // num_workers)
    base = {"OMP_NUM_THREADS": str(threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if not devices:
        base.update(_ON_A_CPU)
        base["VLLM_CPU_KVCACHE_SPACE"] = str(compute.kv_cache_gib)
        base["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if kind is Kind.training:
        return _process_group(base, num_workers, devices)
    if not devices or kind is not Kind.inference:
        return [base] * num_workers
    result = []
    for worker in range(num_workers):
        start = worker * tensor_parallel
        share = devices[start : start + tensor_parallel]
        result.append({**base, "CUDA_VISIBLE_DEVICES": ",".join(share)})
    return result


def _process_group(base: dict[str, str], world_size: int, devices: list[str]) -> list[dict[str, str]]:
    """One environment per rank, as torchrun would set it."""
    group = {
        **base,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(world_size),
    }
    if devices:
        # All of them for every rank, which takes the one of its LOCAL_RANK.
        group["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def _num_workers(
    kind: Kind,
    compute: ComputeConfig,
    devices: list[str],
    tensor_parallel: int,
    num_shards: int,
) -> int:
    if kind is Kind.single:
        return 1
    if kind is Kind.training:
        return int(compute.num_training_ranks or len(devices) or 1)
    if devices and len(devices) < tensor_parallel:
        raise ConfigError(
            f"tensor_parallel_size={tensor_parallel}, but the run has {len(devices)} GPUs. Lower it, or "
            "raise compute.num_gpus."
        )
    wanted = compute.num_inference_workers
    if not wanted:
        wanted = len(devices) // tensor_parallel if devices else 1
    # A worker without a shard would load the model for nothing.
    return max(1, min(int(wanted), num_shards))


def _free_port() -> int:
    with socket.socket() as probe:
        # Port 0: the kernel chooses one that nobody has.
        probe.bind(("127.0.0.1", 0))
        _, port = probe.getsockname()
        return int(port)
