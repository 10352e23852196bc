"""Whether GPUs, driver, packages and compiler go together: what else the first kernel finds out."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from rlhf.config.choices import Device, Launcher
from rlhf.config.schema import Config
from rlhf.errors import ConfigError
from rlhf.launch.cluster import gpus_of_nodes, too_few_gpus
from rlhf.launch.machine import gpus_of_run, num_devices, num_gpus_of_run, num_workers
from rlhf.launch.nvidia import driver_cuda, is_too_old, oldest_driver
from rlhf.models.fallback import may_be_vllm
from rlhf.preflight.findings import Finding, Level, finding, refusal
from rlhf.run.job import Kind


def cuda(cfg: Config) -> Iterator[Finding]:
    """All that is looked at where a run uses GPUs; nothing where it uses none."""
    if cfg.compute.launcher is Launcher.ray and cfg.compute.device is not Device.cpu:
        nodes = gpus_of_nodes()
        if nodes is not None:
            # Driver and compiler are the nodes' own: `rlhf.check` looks at them there.
            yield from _nodes(cfg, nodes)
            return
    try:
        devices = gpus_of_run(cfg.compute)
    except ConfigError:
        return  # said where the memory of GPUs is looked at
    if not devices:
        return
    yield from _names(devices)
    yield from _processes(cfg, len(devices), len(devices))
    yield from _driver(cfg)
    yield from _compiler(cfg)


def _nodes(cfg: Config, nodes: list[tuple[str, int]]) -> Iterator[Finding]:
    """Whether the nodes of a cluster have the GPUs that are asked for.

    Args:
        cfg: a run's config.
        nodes: name and GPUs of each that is there and has any. Others may come.
    """
    compute = cfg.compute
    wanted = compute.num_gpus or 0
    listed = ", ".join(f"{name}: {there}" for name, there in nodes) or "none"
    yield finding(True, f"GPUs of the nodes that are there: {listed}")
    most = max((there for _, there in nodes), default=0)
    if compute.device is Device.cuda and not nodes:
        yield Finding(
            Level.error,
            "compute.device=cuda, but no node of the cluster has a GPU",
            "Ray counts them when it starts (`ray status` shows it): see that nvidia-smi lists them on each "
            "node, and start Ray there again; or compute.device=cpu.",
        )
    elif wanted > most:
        yield Finding(
            Level.error,
            f"compute.num_gpus={wanted} of each node: no node has so many ({listed})",
            f"Lower it to {most}, set it to null (all that a node has), or add nodes that have them.",
        )
    else:
        for name, there in nodes:
            if there < wanted:
                way_out = f"Lower compute.num_gpus to {there}, and it works too; or null: all of each node."
                yield Finding(Level.warning, f"{name} {too_few_gpus(compute, there)}", way_out)
        if most:
            # Nodes that are still to come bring more for trainings to share.
            are_all_here = len(nodes) >= compute.num_nodes
            num_ranks = num_gpus_of_run(compute) if are_all_here else compute.num_training_ranks or 1
            yield from _processes(cfg, len(gpus_of_run(compute)), num_ranks)


def _names(devices: list[str]) -> Iterator[Finding]:
    """Whether the GPUs that CUDA_VISIBLE_DEVICES names by number are there; CUDA drops one that is not, and
    all after it.
    """
    there = num_devices()
    for name in devices:
        if there and name.isdecimal() and int(name) >= there:
            yield Finding(
                Level.error,
                f"CUDA_VISIBLE_DEVICES={','.join(devices)}: there is no GPU {name}",
                f"This machine has {there}, counted from 0. Name those, or unset the variable to use all.",
            )


def _processes(cfg: Config, num_gpus: int, num_for_ranks: int) -> Iterator[Finding]:
    """Whether each worker and each rank gets its GPUs.

    Args:
        cfg: a run's config.
        num_gpus: of one machine.
        num_for_ranks: of all machines together.
    """
    stages = {
        "training": (Kind.training, 1, num_for_ranks),
        "generate": (Kind.inference, cfg.generate.tensor_parallel_size, num_gpus),
        "score": (Kind.inference, cfg.score.tensor_parallel_size, num_gpus),
    }
    shares = []
    # One message may be about two stages.
    refused: dict[str, list[str]] = {}
    for stage, (kind, tensor_parallel, there) in stages.items():
        devices = list(map(str, range(there)))
        try:
            # As many shards as there may be workers: how many there will be is not known yet.
            size = num_workers(kind, cfg.compute, devices, tensor_parallel, num_shards=there)
        except ConfigError as error:
            refused.setdefault(str(error), []).append(stage)
            continue
        shares.append(f"{stage} {size} × {tensor_parallel}")
    for message, names in refused.items():
        yield refusal(f"{' and '.join(names)}: {message}")
    if shares:
        yield finding(True, f"processes × GPUs of each: {', '.join(shares)}")


def _driver(cfg: Config) -> Iterator[Finding]:
    """Whether the driver runs what torch was made for."""
    needed = cuda_of_torch()
    if needed is None:
        level = Level.error if cfg.compute.device is Device.cuda else Level.warning
        yield Finding(
            level,
            "GPUs are visible, but torch is a build for CPUs",
            "make setup VARIANT=cuda installs the packages for GPUs; compute.device=cpu does without them.",
        )
        return
    found = driver_cuda()
    if found is None:
        yield Finding(
            Level.warning,
            "the driver's CUDA version is unknown",
            f"nvidia-smi does not say it. The packages need CUDA {oldest_driver(needed)} or later.",
        )
        return
    way_out = (
        f"Install a driver whose nvidia-smi shows CUDA {oldest_driver(needed)} or later, or set "
        "compute.device=cpu."
    )
    text = f"the driver runs CUDA {found}, torch is made for {needed}"
    yield finding(not is_too_old(found, needed), text, way_out, Level.error)


def cuda_of_torch() -> str | None:
    """The CUDA version that the installed torch was made for, without importing it; None for a CPU build.

    Example:
        "13.0"
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    if not version_file.is_file():
        return None
    # The line reads: cuda: Optional[str] = '13.0'
    text = version_file.read_text(encoding="utf-8")
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _compiler(cfg: Config) -> Iterator[Finding]:
    """Whether Triton can compile its launchers, where vLLM may use them."""
    if not (may_be_vllm(cfg.generate.engine) or may_be_vllm(cfg.score.engine)):
        return
    why = "Triton compiles a part of vLLM's kernels on this machine, at their first use."
    # As Triton looks for it.
    program = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    is_there = program is not None and shutil.which(program) is not None
    way_out = f"{why} sudo apt install gcc (Debian, Ubuntu), sudo dnf install gcc, or name one in CC."
    yield finding(is_there, f"C compiler: {program or 'none on PATH'}", way_out)
    header = _python_header()
    is_there = header.is_file()
    version = sysconfig.get_python_version()
    way_out = (
        f"{why} sudo apt install python{version}-dev (Debian, Ubuntu), sudo dnf install "
        f"python{version}-devel, or make setup PYTHON=… with a Python that has its headers, as uv's and "
        "pyenv's have."
    )
    yield finding(is_there, f"Python's headers: {header if is_there else f'no {header}'}", way_out)


def _python_header() -> Path:
    """Where Triton's compiler looks for Python.h."""
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder that holds no headers.
    if scheme == "posix_local":
        scheme = "posix_prefix"
    return Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
