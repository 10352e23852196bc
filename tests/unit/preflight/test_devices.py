"""Which machine a plan is for."""

import math

import pytest

from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError
from rlhf.launch import machine
from rlhf.preflight import devices
from rlhf.preflight.devices import machine_here, named_machine, planned_machine


@pytest.mark.parametrize(
    ("hardware", "name"),
    [
        ("8xH100", "8 × H100"),
        ("h100", "1 × H100"),
        (" 2 X a100 ", "2 × A100-80"),
        ("4xA100-40GB", "4 × A100-40"),
        ("4xA100 80", "4 × A100-80"),
        ("1xRTX 4090", "1 × RTX4090"),
        ("rtx-4090", "1 × RTX4090"),
        ("16xcpu", "16 CPU cores"),
        ("1xCPU", "1 CPU core"),
    ],
)
def test_hardware_is_named_in_many_ways(hardware, name):
    assert named_machine(hardware).name == name


def test_a_cpu_is_one_device_with_all_its_cores(monkeypatch):
    monkeypatch.setattr(devices, "num_cores", lambda: 4)
    monkeypatch.setattr(devices, "memory", lambda found: 8e9)
    here = named_machine("cpu")
    assert (here.num_devices, here.is_cpu, here.memory) == (1, True, 8e9)
    assert here.fp32_flops == 2 * named_machine("2xcpu").fp32_flops
    assert "assumed" in str(here) and named_machine("2xcpu").memory == math.inf


@pytest.mark.parametrize(
    ("cpuinfo", "speedup"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512vl\n", 4),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile\n", 4),
        ("Features\t: fp asimd bf16\n", 4),
        ("flags\t\t: fpu avx2 avx512f\n", 1),
        (None, 1),
    ],
)
def test_a_cpu_may_have_instructions_for_bf16(tmp_path, monkeypatch, cpuinfo, speedup):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo, encoding="utf-8")
    monkeypatch.setattr(machine, "_CPUINFO", path)
    planned = named_machine("2xcpu")
    assert planned.flops == speedup * planned.fp32_flops
    assert f"in bf16 {80 * speedup}," in str(planned)


@pytest.mark.parametrize(
    ("hardware", "said"),
    [
        ("8xFOO", "there are A100-40, A100-80, H100, H200, L40S, RTX4090, and cpu"),
        ("", "such as 8xH100"),
        ("8x", "no such hardware"),
        ("x", "no such hardware"),
        ("-1xH100", "no such hardware"),
        ("1.5xH100", "no such hardware"),
        ("0xH100", "at least one is needed, such as 1xH100"),
        ("0xcpu", "at least one is needed"),
    ],
)
def test_hardware_that_is_not_there_is_told_what_is(hardware, said):
    with pytest.raises(ConfigError, match=f"hardware={hardware}: ") as error:
        named_machine(hardware)
    assert said in str(error.value)


def test_fewer_gpus_may_be_used_than_there_are():
    used = planned_machine("8xH100", ComputeConfig(num_gpus=2))
    assert (used.name, used.num_devices) == ("2 of 8 × H100", 2)
    assert planned_machine("8xH100", ComputeConfig(num_gpus=16)).num_devices == 8


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        ("GPU 0: NVIDIA H100 80GB HBM3", "2 × H100"),
        ("GPU 0: NVIDIA A100-SXM4-80GB", "2 × A100-80"),
        ("GPU 0: NVIDIA A100-PCIE-40GB", "2 × A100-40"),
        ("GPU 0: NVIDIA GeForce RTX 4090", "2 × RTX4090"),
        ("GPU 0: NVIDIA H100 PCIe", None),
        ("GPU 0: NVIDIA GeForce RTX 4090 D", None),
        ("GPU 0: NVIDIA B200", None),
        (None, None),
    ],
)
def test_the_gpus_of_this_machine_are_looked_up(monkeypatch, listed, name):
    monkeypatch.setattr(devices, "gpus", lambda compute: ["0", "1"])
    monkeypatch.setattr(devices, "listed_gpus", lambda: [listed] if listed else [])
    monkeypatch.setattr(devices, "memory", lambda found: 7e10)
    if name is None:
        with pytest.raises(ConfigError, match="hardware=2xH100"):
            machine_here(ComputeConfig())
    else:
        found = machine_here(ComputeConfig())
        assert (found.name, found.num_devices, found.memory) == (name, 2, 7e10)
