"""GPUs found and counted, and what may start on them; there are none here, so the driver is a fake."""

import os

import pytest

from rlhf.command.line import fit_to_machine
from rlhf.config.schema import ComputeConfig, Config
from rlhf.errors import ConfigError
from rlhf.launch import machine, nvidia
from rlhf.launch.machine import (
    environments,
    lower_to_gpus,
    memory,
    num_workers,
    starting_environment,
    visible_gpus,
)
from rlhf.run.job import Kind
from tests.stage_runner import config_of

LISTING = "GPU 0: NVIDIA RTX A6000 (UUID: GPU-0)\n  MIG 1g.10gb Device 0: (UUID: MIG-0)\nGPU 1: Some GPU (rev 2) (UUID: GPU-1)"
OLD = "| NVIDIA-SMI 570.86.15    Driver Version: 570.86.15    CUDA Version: 12.8     |"
NEW = "| NVIDIA-SMI 595.45  KMD Version: 595.45  CUDA UMD Version: 13.2 |"


def install(folder, listing=LISTING, header=OLD, code=0):
    """An nvidia-smi that says this."""
    folder.mkdir(exist_ok=True)
    tool = folder / "nvidia-smi"
    tool.write_text(
        f"#!/bin/sh\ncase $1 in\n-L) echo '{listing}';;\n--query*) echo 49140; echo 24564;;\n*) echo '{header}';;\n"
        f"esac\nexit {code}\n"
    )
    tool.chmod(0o755)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without device files and without nvidia-smi."""
    monkeypatch.setattr(machine, "_DEVICE_FILES", tmp_path / "dev")
    monkeypatch.setattr(nvidia, "_ON_WSL", str(tmp_path / "wsl"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_device_files_are_counted_without_asking_the_driver(bare):
    assert visible_gpus() == []
    (bare / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (bare / "dev" / name).touch()
    install(bare / "bin", listing="GPU 0: another (UUID: GPU-0)")
    assert visible_gpus() == ["0", "1", "2"]


@pytest.mark.parametrize("folder", ["bin", "wsl"])
def test_wsl_has_no_device_files_and_its_gpus_are_seen(bare, folder):
    install(bare / folder)
    assert visible_gpus() == ["0", "1"]
    assert nvidia.listed_gpus() == ["GPU 0: NVIDIA RTX A6000", "GPU 1: Some GPU (rev 2)"]
    assert memory(["0", "1"]) == 24564 * 2**20
    assert "TORCH_COMPILE_DISABLE" not in starting_environment("auto")


def test_a_driver_that_fails_lists_nothing(bare):
    install(bare / "bin", code=9)
    assert visible_gpus() == [] and nvidia.driver_cuda() is None and memory(["0"]) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (OLD, "12.8"),
        (NEW, "13.2"),
        ("CUDA Version        : 13.0", "13.0"),
        ("CUDA Version: N/A |", None),
        ("", None),
    ],
)
def test_the_drivers_cuda_version(bare, header, expected):
    install(bare / "bin", header=header)
    assert nvidia.driver_cuda() == expected


@pytest.mark.parametrize(
    ("driver", "needed", "too_old"),
    [
        ("12.8", "13.0", True),
        ("13.0", "13.0", False),
        ("13.0", "13.2", False),
        ("9.2", "12.6", True),
        ("13.1", "12.8", False),
    ],
)
def test_a_driver_runs_every_minor_version_of_its_own(driver, needed, too_old):
    assert nvidia.is_too_old(driver, needed) is too_old


@pytest.mark.parametrize(
    ("name", "default"), [("VLLM_USE_FLASHINFER_SAMPLER", "0"), ("HUMMING_DISABLE_PARALLEL_BUILD", "1")]
)
def test_nothing_is_compiled_needlessly_unless_a_person_says_so(monkeypatch, name, default):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv(name, raising=False)
    assert starting_environment("auto")[name] == default
    monkeypatch.setenv(name, "7")
    assert starting_environment("auto")[name] == "7"
    for kind in Kind:
        for environment in environments(kind, ComputeConfig(), 1, 1):
            assert name not in environment  # a worker's own would go over what a person has set
    assert starting_environment("cpu")[name] == "7"


def compute(**changes):
    return config_of(ComputeConfig, None, **changes)


TWO = {"num_training_ranks": 2, "num_inference_workers": 2}


@pytest.mark.parametrize(
    ("visible", "prefers", "tensor_parallel", "said", "expected"),
    [
        ("0", TWO, 1, [], (None, 1, 1)),
        ("0,1", TWO, 1, [], (None, 2, 2)),
        ("0,1,2", TWO, 1, [], (None, 2, 2)),
        ("", TWO, 1, [], (None, 2, 2)),  # a CPU has room for any
        ("0", {**TWO, "device": "cpu"}, 1, [], (None, 2, 2)),
        ("0,1", {**TWO, "num_gpus": 1}, 1, [], (1, 1, 1)),
        ("0", {**TWO, "num_gpus": 4}, 1, [], (1, 1, 1)),
        ("", {"num_gpus": 4}, 1, [], (0, None, None)),
        ("0", {}, 1, [], (None, None, None)),
        ("0,1,2,3", {"num_inference_workers": 4}, 2, [], (None, None, 2)),
        ("0", {"num_inference_workers": 4}, 2, [], (None, None, 1)),
        ("0", TWO, 1, ["compute.num_training_ranks"], (None, 2, 1)),
        ("0", TWO, 1, ["compute.num_inference_workers", "seed"], (None, 1, 2)),
        ("0", {**TWO, "num_gpus": 2}, 1, ["compute.num_gpus"], (2, 1, 1)),
        ("0", TWO, 1, ["compute"], (None, 2, 2)),
    ],
)
def test_what_configs_prefer_is_lowered_to_the_gpus(
    monkeypatch, visible, prefers, tensor_parallel, said, expected
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    section = compute(**prefers)
    before = (section.num_gpus, section.num_training_ranks, section.num_inference_workers)
    notes = lower_to_gpus(section, tensor_parallel, said)
    after = (section.num_gpus, section.num_training_ranks, section.num_inference_workers)
    assert after == expected
    assert len(notes) == sum(old != new for old, new in zip(before, after, strict=True))


def test_it_is_said_what_was_lowered_and_not_on_stdout(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    cfg = Config(compute=compute(num_training_ranks=8, num_inference_workers=8))
    cfg.score.tensor_parallel_size = 2
    fit_to_machine(cfg, ["++compute.num_inference_workers=8", "seed=3"])
    assert capsys.readouterr() == (
        "",
        "compute.num_training_ranks=2, not 8 as the config files prefer: each rank has a GPU of its own, and the run "
        "has 2.\n",
    )
    assert cfg.compute.num_inference_workers == 8


@pytest.mark.parametrize(
    ("kind", "changes", "tensor_parallel", "parts"),
    [
        (Kind.training, {"num_training_ranks": 3}, 1, ["num_training_ranks=3", "the run has 2", "at most 2"]),
        (
            Kind.inference,
            {"num_inference_workers": 3},
            1,
            ["num_inference_workers=3", "the run has 2", "at most 2"],
        ),
        (
            Kind.inference,
            {"num_inference_workers": 2},
            2,
            ["tensor_parallel_size=2", "the run has 2", "at most 1"],
        ),
        (Kind.inference, {}, 3, ["tensor_parallel_size=3", "the run has 2", "Lower it"]),
        (
            Kind.training,
            {"num_training_ranks": 2, "num_gpus": 1},
            1,
            ["the run has 1", "raise compute.num_gpus=1"],
        ),
    ],
)
def test_no_worker_and_no_rank_starts_without_a_gpu(monkeypatch, kind, changes, tensor_parallel, parts):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with pytest.raises(ConfigError) as refused:
        environments(kind, compute(**changes), tensor_parallel, 100)
    for part in [*parts, "compute.device=cpu"]:
        assert part in str(refused.value)
    # On a CPU any number will do.
    assert environments(kind, compute(**changes | {"device": "cpu", "num_gpus": None}), tensor_parallel, 100)


def test_as_many_as_there_is_room_for_start(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7,9")
    devices = visible_gpus()
    assert num_workers(Kind.training, compute(num_training_ranks=4), devices, 1, 0) == 4
    assert num_workers(Kind.inference, compute(num_inference_workers=2), devices, 2, 9) == 2
    shares = [env["CUDA_VISIBLE_DEVICES"] for env in environments(Kind.inference, compute(), 2, 9)]
    assert shares == ["3,5", "7,9"] and os.environ["CUDA_VISIBLE_DEVICES"] == "3,5,7,9"
