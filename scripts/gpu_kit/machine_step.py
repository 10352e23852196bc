"""What the other steps stand on: versions, GPU, driver, what is missing, the rate of matrix products."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import time

from gpu_kit.figures import Kit

PACKAGES: tuple[str, ...] = ()

_LOOKED_FOR = (
    "torch",
    "transformers",
    "accelerate",
    "pyarrow",
    "datasets",
    "hydra-core",
    "deepspeed",
    "trl",
    "peft",
    "vllm",
    "pytest",
    "triton",
    "flash-attn",
)
_PROGRAMS = ("nvidia-smi", "nvcc", "ninja", "gcc", "g++")


def measure(kit: Kit) -> None:
    """First what needs no torch, since torch may be what is wrong."""
    kit.add("Python", platform.python_version())
    absent = []
    for package in _LOOKED_FOR:
        version = _version(package)
        if version is None:
            absent.append(package)
        else:
            kit.add(package, version)
    kit.add("packages missing", ", ".join(absent) or "none")
    programs = [name for name in _PROGRAMS if shutil.which(name) is None]
    kit.add("programs missing", ", ".join(programs) or "none")
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    free = shutil.disk_usage(kit.work).free / 1e9
    kit.add("machine", f"{cores} cores", detail=f"{memory:.0f} GB of memory, {free:.0f} GB of disk free")
    _driver(kit)
    _torch(kit)


def _version(package: str) -> str | None:
    # vLLM's build for machines without a GPU is a package of another name.
    for name in (package, f"{package}-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def _driver(kit: Kit) -> None:
    if shutil.which("nvidia-smi") is None:
        kit.add("driver", None, detail="there is no nvidia-smi")
        return
    fields = "name,memory.total,driver_version,clocks.max.sm,power.limit,pcie.link.gen.max"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    for line in (done.stdout or done.stderr).strip().splitlines():
        kit.add("driver", line.strip())
    # As preflight reads it.
    from rlhf.launch.nvidia import driver_cuda

    found = driver_cuda()
    kit.add("CUDA of the driver", None if found is None else str(found))


def _torch(kit: Kit) -> None:
    import torch

    kit.add("CUDA of torch", torch.version.cuda or "none: a build for CPUs")
    varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    kit.add("torch.nn.attention.varlen", "there" if varlen else "not there")
    if not torch.cuda.is_available():
        kit.needs_gpu("GPU", "matrix products in bf16")
        matrix_rate(kit, 256)
        return
    properties = torch.cuda.get_device_properties(0)
    detail = f"{properties.total_memory / 1e9:.1f} GB, {properties.multi_processor_count} multiprocessors"
    kit.add("GPU", properties.name, detail=f"{detail}, sm_{properties.major}{properties.minor}")
    matrix_rate(kit, 8192)


def matrix_rate(kit: Kit, size: int) -> float:
    """FLOP/s of a square matrix product on random data: what any model can hope for here."""
    import torch

    from gpu_kit.models import device_name, model_dtype

    left = torch.randn(size, size, device=device_name()).to(model_dtype())
    right = torch.randn(size, size, device=device_name()).to(model_dtype())
    for _ in range(3):
        left @ right
    finish()
    began = time.perf_counter()
    for _ in range(10):
        left @ right
    finish()
    rate = 10 * 2 * size**3 / (time.perf_counter() - began)
    kit.add("matrix product", rate / 1e12, "TFLOP/s", detail=f"{size} × {size} × {size}, {left.dtype}")
    return rate


def finish() -> None:
    """Wait for the GPU, which works on while Python goes ahead."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
