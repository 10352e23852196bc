"""How cores, GPUs and memory are counted and shared out, each at its boundary."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhf.config.choices import Device
from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError
from rlhf.launch import machine
from rlhf.launch.machine import environments, gpus, memory, starting_environment, visible_gpus
from rlhf.run.job import Kind


@pytest.fixture
def visible(monkeypatch):
    """Sets which GPUs are visible, and four cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.setattr(machine.sys, "platform", "linux")

    def of(names):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)

    of("")
    return of


@pytest.mark.parametrize(
    ("names", "found"), [("", []), ("-1", []), (" ", []), ("0", ["0"]), ("3,1", ["3", "1"]), ("0,-1", ["0"])]
)
def test_visible_gpus(visible, names, found):
    visible(names)
    assert visible_gpus() == found


@pytest.mark.parametrize(
    ("num_gpus", "found"), [(None, ["0", "1"]), (2, ["0", "1"]), (1, ["0"]), (0, []), (3, "refused")]
)
def test_as_many_gpus_as_asked_for(visible, num_gpus, found):
    visible("0,1")
    compute = ComputeConfig(num_gpus=num_gpus)
    if found == "refused":
        with pytest.raises(ConfigError, match=r"compute\.num_gpus=3, but 2 are visible"):
            gpus(compute)
    else:
        assert gpus(compute) == found
    assert gpus(ComputeConfig(num_gpus=num_gpus, device=Device.cpu)) == []


@pytest.mark.parametrize(
    ("names", "kind", "tensor_parallel", "shards", "settings", "workers"),
    [
        ("", Kind.single, 1, 9, {}, 1),
        ("", Kind.inference, 1, 9, {}, 1),
        ("", Kind.inference, 1, 0, {}, 1),
        ("", Kind.inference, 1, 9, {"num_inference_workers": 3}, 3),
        ("", Kind.inference, 1, 2, {"num_inference_workers": 3}, 2),
        ("", Kind.training, 1, 0, {}, 1),
        ("", Kind.training, 1, 0, {"num_training_ranks": 3}, 3),
        ("0,1,2,3", Kind.single, 1, 9, {}, 1),
        ("0,1,2,3", Kind.training, 1, 0, {}, 4),
        ("0,1,2,3", Kind.training, 1, 0, {"num_training_ranks": 2}, 2),
        ("0,1,2,3", Kind.inference, 1, 9, {}, 4),
        ("0,1,2,3", Kind.inference, 2, 9, {}, 2),
        ("0,1,2,3", Kind.inference, 3, 9, {}, 1),
        ("0,1,2,3", Kind.inference, 4, 9, {}, 1),
        ("0,1,2,3", Kind.inference, 1, 3, {}, 3),
        ("0,1,2,3", Kind.inference, 1, 9, {"num_inference_workers": 2}, 2),
    ],
)
def test_how_many_workers(visible, names, kind, tensor_parallel, shards, settings, workers):
    visible(names)
    assert len(environments(kind, ComputeConfig(**settings), tensor_parallel, shards)) == workers


def test_an_engine_needs_as_many_gpus_as_it_is_cut_into(visible):
    visible("0,1")
    with pytest.raises(ConfigError, match="tensor_parallel_size=3, but the run has 2 GPUs"):
        environments(Kind.inference, ComputeConfig(), 3, 9)


@pytest.mark.parametrize(
    ("workers", "settings", "threads"),
    [(1, {}, "4"), (2, {}, "2"), (3, {}, "1"), (4, {}, "1"), (9, {}, "1"), (2, {"num_threads": 7}, "7")],
)
def test_cores_are_shared_out(visible, workers, settings, threads):
    compute = ComputeConfig(num_inference_workers=workers, **settings)
    shares = environments(Kind.inference, compute, 1, 99)
    assert [share["OMP_NUM_THREADS"] for share in shares] == [threads] * workers


def test_without_a_gpu_nothing_looks_for_one(visible):
    (share,) = environments(Kind.inference, ComputeConfig(kv_cache_gib=3), 1, 1)
    assert share["CUDA_VISIBLE_DEVICES"] == "" and share["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert share["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    visible("5,6")
    shares = environments(Kind.inference, ComputeConfig(), 1, 2)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["5", "6"]
    assert "VLLM_CPU_KVCACHE_SPACE" not in shares[0]


def test_ranks_have_numbers_and_one_port(visible):
    visible("5,6")
    first, second = environments(Kind.training, ComputeConfig(), 1, 0)
    assert (first["RANK"], second["RANK"], second["LOCAL_RANK"]) == ("0", "1", "1")
    assert first["WORLD_SIZE"] == "2" and first["MASTER_PORT"] == second["MASTER_PORT"] != "0"
    assert first["CUDA_VISIBLE_DEVICES"] == second["CUDA_VISIBLE_DEVICES"] == "5,6"
    visible("")
    (alone,) = environments(Kind.training, ComputeConfig(), 1, 0)
    assert alone["CUDA_VISIBLE_DEVICES"] == "" and 0 < int(alone["MASTER_PORT"]) < 2**16


@pytest.mark.parametrize(
    ("names", "device", "on_cpu"),
    [("", "auto", True), ("0", "auto", False), ("0", "cpu", True), ("0", "cuda", False)],
)
def test_nothing_is_compiled_on_a_cpu(visible, monkeypatch, names, device, on_cpu):
    visible(names)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    environment = starting_environment(device)
    assert ("TORCH_COMPILE_DISABLE" in environment) == on_cpu
    assert environment["PYTHONWARNINGS"] == "error,ignore:resource_tracker:UserWarning"
    monkeypatch.delenv("PYTHONWARNINGS")
    assert starting_environment(device)["PYTHONWARNINGS"] == "ignore:resource_tracker:UserWarning"
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize(
    ("answer", "found"),
    [("echo 81559; echo 40960", 40960 * 2**20), ("echo N/A", None), ("exit 3", None), ("true", None)],
)
def test_memory_of_the_smallest_gpu(tmp_path, monkeypatch, answer, found):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert memory(["0"]) == found
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory(["0"]) is None


@pytest.mark.parametrize(
    ("limit", "found"), [(None, 2000), ("max\n", 2000), ("1999\n", 1999), ("2001\n", 2000)]
)
def test_memory_of_the_machine_or_its_container(tmp_path, monkeypatch, limit, found):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 20, "SC_PHYS_PAGES": 100}.__getitem__)
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    monkeypatch.setattr(machine, "Path", lambda name: file if "cgroup" in name else Path(name))
    assert memory([]) == found
