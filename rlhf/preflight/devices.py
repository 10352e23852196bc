"""The machine that a plan is made for, named (`8xH100`) or the one here, with what its data sheet says."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError
from rlhf.launch.machine import gpus, memory, multiplies_in_bf16, num_cores
from rlhf.launch.nvidia import listed_gpus


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says of one GPU.

    `flops` are dense FLOP/s in bf16 with sums in fp32 (data sheets with a star print twice that, for sparse
    matrices); `fp32_flops` those without tensor cores, which is what fp32 models use; `memory` is in bytes,
    `bandwidth` in bytes per second. `named` is how nvidia-smi names it.
    """

    flops: float
    fp32_flops: float
    memory: float
    bandwidth: float
    named: str
    source: str


GPUS = {
    "A100-40": Gpu(312e12, 19.5e12, 40e9, 1.555e12, r"A100.*40GB", "NVIDIA A100 data sheet, SXM 40 GB"),
    "A100-80": Gpu(312e12, 19.5e12, 80e9, 2.039e12, r"A100.*80GB", "NVIDIA A100 data sheet, SXM 80 GB"),
    "H100": Gpu(989.4e12, 67e12, 80e9, 3.35e12, r"H100(?!.*(PCIe|NVL))", "NVIDIA H100 data sheet, SXM"),
    "H200": Gpu(989.4e12, 67e12, 141e9, 4.8e12, r"H200(?!.*NVL)", "NVIDIA H200 data sheet, SXM"),
    "L40S": Gpu(362.05e12, 91.6e12, 48e9, 0.864e12, r"L40S", "NVIDIA L40S data sheet"),
    "RTX4090": Gpu(
        165.2e12,
        82.6e12,
        24e9,
        1.008e12,
        r"RTX 4090(?! (Laptop|D))",
        "NVIDIA Ada GPU architecture, appendix A",
    ),
}
"""Peaks, which nothing reaches: `rlhf.preflight.costs` says what share of them is planned with."""
_ALIASES = {"A100": "A100-80"}
_CPU = "cpu"
_CORE_FLOPS = 80e9
"""Of one core in fp32, an assumption: 2.5 GHz × two units × 8 numbers × multiply and add, as x86 with AVX2
has."""
_BF16_SPEEDUP = 4
"""Over fp32, of a CPU that has instructions for it. Measured: 4.2 to 5.1 with AVX512-BF16 (EPYC), at the
shapes of a model of 135 M parameters and of one of 8B."""
_CORE_BANDWIDTH = 10e9
"""Bytes per second and core, an assumption: a server's memory channels shared out over its cores."""


@dataclass(frozen=True)
class Machine:
    """What a run has: GPUs of one kind, or a CPU as one device with all its cores.

    Attributes:
        name: as a person reads it, such as "8 × H100".
        num_devices: GPUs; 1 for a CPU.
        is_cpu: whether it has no GPU.
        flops: peak FLOP/s of one device in bf16.
        fp32_flops: in fp32.
        memory: bytes of one device, infinite where unknown.
        bandwidth: bytes per second between one device and its memory.
        source: of these figures.
    """

    name: str
    num_devices: int
    is_cpu: bool
    flops: float
    fp32_flops: float
    memory: float
    bandwidth: float
    source: str

    def __str__(self) -> str:
        """Its name and its peaks, with their source."""
        if self.is_cpu:
            return f"{self.name} ({self.source})"
        room = f"{self.memory / 1e9:.0f} GB, " if math.isfinite(self.memory) else ""
        return (
            f"{self.name} (each {self.flops / 1e12:.0f} TFLOP/s in bf16, {room}"
            f"{self.bandwidth / 1e12:.3g} TB/s: {self.source})"
        )


def planned_machine(hardware: str | None, compute: ComputeConfig) -> Machine:
    """The machine to plan for: the one that is named, else the one here.

    Raises:
        ConfigError: there is no such hardware in the table, or this machine's GPUs are not in it.
    """
    if hardware is None:
        return machine_here(compute)
    machine = named_machine(hardware)
    if machine.is_cpu or compute.num_gpus is None or compute.num_gpus >= machine.num_devices:
        return machine
    # Fewer are asked for: a run would leave the others idle.
    used = max(1, compute.num_gpus)
    return replace(machine, name=f"{used} of {machine.name}", num_devices=used)


def named_machine(hardware: str) -> Machine:
    """What `8xH100`, `H100` (one), `cpu` (the cores here) or `16xcpu` (cores) means.

    Raises:
        ConfigError: it is none of these, with those that there are.
    """
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×]\s*)?(\S.*?)\s*", hardware, re.IGNORECASE)
    count = int(match[1]) if match and match[1] else None
    name = _known_name(match[2]) if match else None
    if name is None:
        raise ConfigError(
            f"hardware={hardware}: no such hardware. Give a number and a name, such as 8xH100; there are "
            f"{', '.join(GPUS)}, and {_CPU} (16x{_CPU} is 16 cores). Leave it out to plan for this machine."
        )
    if count == 0:
        raise ConfigError(f"hardware={hardware}: at least one is needed, such as 1x{name}.")
    if name == _CPU:
        return _cpu(count or num_cores(), _ram() if count is None else math.inf)
    return _with_gpus(name, count or 1)


def machine_here(compute: ComputeConfig) -> Machine:
    """This machine, as a run with these settings uses it.

    Raises:
        ConfigError: it has GPUs of which no data sheet is in the table.
    """
    devices = gpus(compute)
    if not devices:
        return _cpu(num_cores(), _ram())
    listed = listed_gpus()
    for name, gpu in GPUS.items():
        if listed and re.search(gpu.named, listed[0]):
            machine = _with_gpus(name, len(devices))
            return replace(machine, memory=memory(devices) or machine.memory)
    shown = listed[0] if listed else "GPUs of which nvidia-smi says nothing"
    raise ConfigError(
        f"This machine has {shown}, of which no figures are known here. Name the most similar of "
        f"{', '.join(GPUS)}, such as hardware={len(devices)}xH100."
    )


def _known_name(text: str) -> str | None:
    """The key of the table that a name means: `rtx-4090` and `RTX 4090` are `RTX4090`."""

    def plain(name: str) -> str:
        return re.sub(r"[\s_-]|gb$", "", name.lower())

    for name in (*GPUS, *_ALIASES, _CPU):
        if plain(name) == plain(text):
            return _ALIASES.get(name, name)
    return None


def _with_gpus(name: str, count: int) -> Machine:
    gpu = GPUS[name]
    return Machine(
        name=f"{count} × {name}",
        num_devices=count,
        is_cpu=False,
        flops=gpu.flops,
        fp32_flops=gpu.fp32_flops,
        memory=gpu.memory,
        bandwidth=gpu.bandwidth,
        source=gpu.source,
    )


def _cpu(cores: int, ram: float) -> Machine:
    # Of a CPU that is only named nothing else is known: it is planned for as one like this.
    in_bf16 = _BF16_SPEEDUP * _CORE_FLOPS if multiplies_in_bf16() else _CORE_FLOPS
    return Machine(
        name=f"{cores} CPU cores" if cores > 1 else "1 CPU core",
        num_devices=1,
        is_cpu=True,
        flops=cores * in_bf16,
        fp32_flops=cores * _CORE_FLOPS,
        memory=ram,
        bandwidth=cores * _CORE_BANDWIDTH,
        source=(
            f"assumed: {_CORE_FLOPS / 1e9:.0f} GFLOP/s, in bf16 {in_bf16 / 1e9:.0f}, and "
            f"{_CORE_BANDWIDTH / 1e9:.0f} GB/s a core"
        ),
    )


def _ram() -> float:
    """Bytes; infinite where nothing tells."""
    return memory([]) or math.inf
