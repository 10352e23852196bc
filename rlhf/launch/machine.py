"""What this machine has, found without torch, and how a stage's workers share it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.choices import Device, Launcher
from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError
from rlhf.launch.nvidia import ask, listed_gpus
from rlhf.launch.ports import free_port
from rlhf.run.job import Kind

_DEVICE_FILES = Path("/dev")
_CPUINFO = Path("/proc/cpuinfo")

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

_UNLESS_SET = {
    # On CUDA FlashInfer would compile sampling kernels with nvcc when vLLM starts, though our requests never
    # use them: each has a seed of its own, which only vLLM's own sampler knows.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # vLLM imports kernels of quantised models with its CUDA packages, and that import starts two compilers in
    # the background.
    "HUMMING_DISABLE_PARALLEL_BUILD": "1",
}
"""What a person may have set otherwise."""

_ON_A_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    "TORCH_COMPILE_DISABLE": "1",  # needs a compiler, and seconds at every start
    "GLOO_SOCKET_IFNAME": "lo",
}


def starting_environment(device: str) -> dict[str, str]:
    """What must be set before the heavy imports: no telemetry, patient threads, no needless compiling."""
    on_cpu = device == "cpu" or not visible_gpus()
    # Killed workers leave semaphores, which Python's tracker cleans up and then complains about.
    warnings = "ignore:resource_tracker:UserWarning"
    if os.environ.get("PYTHONWARNINGS"):
        warnings = f"{os.environ['PYTHONWARNINGS']},{warnings}"
    environment = {**_PATIENT_AND_QUIET, "PYTHONWARNINGS": warnings}
    for name, value in _UNLESS_SET.items():
        environment[name] = os.environ.get(name, value)
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
        return [str(index) for index in range(num_devices())]
    names = chosen.split(",")
    return [name for name in names if name.strip() not in ("", "-1")]


def num_devices() -> int:
    """GPUs of this machine, whatever CUDA_VISIBLE_DEVICES says."""
    # The driver's device files: asking CUDA would take torch, and seconds.
    devices = list(_DEVICE_FILES.glob("nvidia[0-9]*"))
    # WSL 2 has no such files, but a driver all the same.
    return len(devices) or len(listed_gpus())


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


def gpus_of_run(compute: ComputeConfig) -> list[str]:
    """The GPUs of one machine that a run uses: of this one, or of the largest node of its cluster; none means
    the CPU.

    Raises:
        ConfigError: GPUs are asked for that this machine does not have.
    """
    nodes = _gpus_of_nodes(compute)
    if nodes is None:
        return gpus(compute)
    most = max(nodes, default=0)
    return [str(index) for index in range(most)]


def num_gpus_of_run(compute: ComputeConfig) -> int:
    """GPUs of all machines together that a run uses; errors as of `gpus_of_run`."""
    nodes = _gpus_of_nodes(compute)
    return len(gpus(compute)) if nodes is None else sum(nodes)


def _gpus_of_nodes(compute: ComputeConfig) -> list[int] | None:
    """GPUs that a run uses of each node that has any; None where this machine is asked."""
    if compute.launcher is not Launcher.ray or compute.device is Device.cpu:
        return None
    from rlhf.launch.cluster import gpus_of_nodes

    nodes = gpus_of_nodes()
    if nodes is None:
        # Not joined (yet): this machine stands for a node, and is held to nothing.
        return [len(visible_gpus()[: compute.num_gpus])]
    wanted = compute.num_gpus
    return [wanted or there for _, there in nodes if there >= (wanted or 0)]


def lower_to_gpus(compute: ComputeConfig, tensor_parallel: int, said: Collection[str]) -> list[str]:
    """Lower the numbers of GPUs, ranks and workers to what this machine has, where configs only prefer them.

    Args:
        compute: changed in place. Without GPUs ranks and workers stay as they are: a CPU has room for any.
        tensor_parallel: GPUs of the largest engine.
        said: settings that a person gave on the command line, such as `compute.num_gpus`. They stay: what
            cannot be had of them is refused before work begins (`num_workers`, `gpus`).

    Returns:
        A line about each number that was lowered.
    """
    if compute.device is Device.cpu or compute.launcher is Launcher.ray:
        return []  # what the nodes of a cluster have is not known from here
    visible = len(visible_gpus())
    notes = []

    def lower(name: str, most: int, reason: str) -> None:
        wanted = getattr(compute, name)
        if wanted is None or wanted <= most or {"compute", f"compute.{name}"} & set(said):
            return
        setattr(compute, name, most)
        notes.append(f"compute.{name}={most}, not {wanted} as the config files prefer: {reason}.")

    lower("num_gpus", visible, "so many GPUs are visible")
    num_gpus = len(visible_gpus()[: compute.num_gpus])
    if num_gpus:
        lower("num_training_ranks", num_gpus, f"each rank has a GPU of its own, and the run has {num_gpus}")
        most = max(1, num_gpus // max(1, tensor_parallel))
        lower("num_inference_workers", most, f"each worker has GPUs of its own, and the run has {num_gpus}")
    return notes


def gpu_workers(compute: ComputeConfig, tensor_parallel: int) -> int:
    """Inference workers that the GPUs of a run can hold side by side; 1 without GPUs.

    GPUs that are asked for and not there are refused elsewhere (`gpus`): a finished run needs none.
    """
    if compute.device is Device.cpu:
        return 1
    if compute.launcher is Launcher.ray:
        from rlhf.launch.cluster import gpu_workers_of_cluster

        return gpu_workers_of_cluster(compute, tensor_parallel)
    devices = visible_gpus()[: compute.num_gpus]
    if not devices:
        return 1
    return compute.num_inference_workers or max(1, len(devices) // tensor_parallel)


def num_cores() -> int:
    """CPU cores this process may use."""
    if sys.platform == "linux":
        # Fewer than the machine has in a container or under taskset.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def multiplies_in_bf16() -> bool:
    """Whether this CPU has instructions for matrix products in bf16; False where nothing tells."""
    with contextlib.suppress(OSError):
        words = _CPUINFO.read_text(encoding="utf-8", errors="replace").split()
        # Of x86, the first two, and of ARM.
        return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)
    return False


def memory(devices: list[str]) -> float | None:
    """Bytes of the smallest GPU, or without GPUs of RAM that this process may use; None if nothing tells."""
    with contextlib.suppress(OSError, ValueError):
        if devices:
            return _memory_of_smallest_gpu()
        return _usable_ram()
    return None


def _memory_of_smallest_gpu() -> float:
    answer = ask("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    mebibytes = [float(line) for line in answer.split()]
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
    cores: int | None = None,
) -> list[dict[str, str]]:
    """One environment per worker: its GPUs, its threads, its place in the process group.

    Raises:
        ConfigError: the machine cannot be shared out as asked.

    Example:
        {"OMP_NUM_THREADS": "8", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "CUDA_VISIBLE_DEVICES": "0,1"}
    """
    devices = gpus(compute)
    size = num_workers(kind, compute, devices, tensor_parallel, num_shards)
    base = _base(compute, devices, size, cores)
    if kind is Kind.training:
        group = Group(size, "127.0.0.1", free_port())
        return _ranks(base, range(size), group, devices)
    if not devices or kind is not Kind.inference:
        return [base] * size
    result = []
    for worker in range(size):
        start = worker * tensor_parallel
        share = devices[start : start + tensor_parallel]
        result.append({**base, "CUDA_VISIBLE_DEVICES": ",".join(share)})
    return result


def _base(compute: ComputeConfig, devices: list[str], num_here: int, cores: int | None) -> dict[str, str]:
    """What all workers of a stage get on this machine."""
    threads = compute.num_threads or max(1, (cores or num_cores()) // num_here)
    base = {"OMP_NUM_THREADS": str(threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if not devices:
        base.update(_ON_A_CPU)
        base["VLLM_CPU_KVCACHE_SPACE"] = str(compute.kv_cache_gib)
        base["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return base


@dataclass(frozen=True)
class Group:
    """The ranks of one training: how many there are on all nodes, and where rank 0 listens."""

    world_size: int
    address: str
    port: int


def rank_environments(
    compute: ComputeConfig, ranks: Sequence[int], group: Group, cores: int, interface: str | None
) -> list[dict[str, str]]:
    """One environment per rank that a node of a cluster has.

    Args:
        compute: the stage's.
        ranks: those of this node.
        group: all ranks.
        cores: of this node.
        interface: the name of the network interface by which other nodes reach this one; None leaves the
            choice to gloo.

    Raises:
        ConfigError: this node has fewer GPUs.
    """
    devices = gpus(compute)
    environments = _ranks(_base(compute, devices, len(ranks), cores), ranks, group, devices)
    for environment in environments:
        environment.pop("GLOO_SOCKET_IFNAME", None)
        if interface is not None:
            environment["GLOO_SOCKET_IFNAME"] = interface
    return environments


def _ranks(
    base: dict[str, str], ranks: Sequence[int], group: Group, devices: list[str]
) -> list[dict[str, str]]:
    """One environment per rank of this machine, as torchrun would set it."""
    shared = {
        **base,
        "MASTER_ADDR": group.address,
        "MASTER_PORT": str(group.port),
        "WORLD_SIZE": str(group.world_size),
        "LOCAL_WORLD_SIZE": str(len(ranks)),
    }
    if devices:
        # All of them for every rank, which takes the one of its LOCAL_RANK.
        shared["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    environments = []
    for place, rank in enumerate(ranks):
        environments.append({**shared, "RANK": str(rank), "LOCAL_RANK": str(place)})
    return environments


def num_workers(
    kind: Kind,
    compute: ComputeConfig,
    devices: list[str],
    tensor_parallel: int,
    num_shards: int,
) -> int:
    """How many processes run a stage.

    Raises:
        ConfigError: the run's GPUs are not enough for so many.
    """
    if kind is Kind.single:
        return 1
    if kind is Kind.training:
        ranks = int(compute.num_training_ranks or len(devices) or 1)
        if devices and ranks > len(devices):
            raise ConfigError(
                f"compute.num_training_ranks={ranks}: each rank has a GPU of its own, and the run has "
                f"{len(devices)}. Set it to null (one per GPU) or at most {len(devices)}, "
                f"{_ways_out(compute)}"
            )
        return ranks
    if devices and len(devices) < tensor_parallel:
        raise ConfigError(
            f"tensor_parallel_size={tensor_parallel}, but the run has {len(devices)} GPUs. "
            f"Lower it, {_ways_out(compute)}"
        )
    room = len(devices) // tensor_parallel
    wanted = int(compute.num_inference_workers or room or 1)
    if devices and wanted > room:
        raise ConfigError(
            f"compute.num_inference_workers={wanted}: each worker has tensor_parallel_size={tensor_parallel} "
            f"GPUs of its own, and the run has {len(devices)}. Set it to null (as many as there is room for) "
            f"or at most {room}, {_ways_out(compute)}"
        )
    # A worker without a shard would load the model for nothing.
    return max(1, min(wanted, num_shards))


def _ways_out(compute: ComputeConfig) -> str:
    """What else to do where a setting asks for more GPUs than the run has."""
    more = "make more GPUs visible (CUDA_VISIBLE_DEVICES)"
    if compute.num_gpus is not None and compute.num_gpus < len(visible_gpus()):
        more = f"raise compute.num_gpus={compute.num_gpus}"
    return f"{more}, or do without GPUs: compute.device=cpu."
