"""What is looked at where a run uses GPUs; driver, compiler and torch are fakes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.config.choices import Device, Engine, Launcher
from rlhf.config.schema import Config
from rlhf.errors import ConfigError
from rlhf.launch import machine
from rlhf.launch.cluster import RayCluster
from rlhf.preflight import capacity, cuda
from rlhf.preflight.findings import Level

ROOT = Path(__file__).resolve().parents[3]
OK, WARNING, ERROR = Level.ok, Level.warning, Level.error


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """A machine with two GPUs, a driver for CUDA 13.0, torch for 13.0, a compiler and Python's headers."""
    for name in ("dev", "bin"):
        (tmp_path / name).mkdir()
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / "dev" / name).touch()
    program(tmp_path / "bin" / "nvidia-smi", "echo '| Driver Version: 580.95  CUDA Version: 13.0 |'")
    program(tmp_path / "bin" / "gcc")
    (tmp_path / "Python.h").touch()
    torch_for(monkeypatch, tmp_path, "'13.0'")
    monkeypatch.setattr(machine, "_DEVICE_FILES", tmp_path / "dev")
    monkeypatch.setattr(cuda, "_python_header", lambda: tmp_path / "Python.h")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("CUDA_VISIBLE_DEVICES", "CC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def program(path, body=""):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def torch_for(monkeypatch, folder, version):
    """An installed torch whose version file says so."""
    (folder / "version.py").write_text(f"cuda: Optional[str] = {version}\nhip: Optional[str] = None\n")
    found = SimpleNamespace(origin=str(folder / "__init__.py"))
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: found)


def levels(cfg, *texts):
    """The level of the one finding with each text."""
    found = list(cuda.cuda(cfg))
    result = []
    for text in texts:
        (one,) = [each for each in found if text in each.text]
        assert one.way_out or one.level is OK
        result.append(one.level)
    return result


def test_all_is_well(two_gpus):
    found = list(cuda.cuda(Config()))
    assert {each.level for each in found} == {OK}
    texts = "\n".join(each.text for each in found)
    assert "training 2 × 1, generate 2 × 1, score 2 × 1" in texts
    assert "the driver runs CUDA 13.0, torch is made for 13.0" in texts


@pytest.mark.parametrize("device", [Device.cpu, Device.cuda, Device.auto])
def test_nothing_is_looked_at_without_gpus(two_gpus, monkeypatch, device):
    if device is not Device.cpu:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cfg = Config()
    cfg.compute.device = device
    assert list(cuda.cuda(cfg)) == []


@pytest.mark.parametrize(
    ("said", "torch", "text", "level"),
    [
        ("CUDA Version: 12.8", "'13.0'", "the driver runs CUDA 12.8, torch is made for 13.0", ERROR),
        ("CUDA Version: 13.0", "'13.2'", "the driver runs CUDA 13.0, torch is made for 13.2", OK),
        ("CUDA Version: 13.0", "'12.8'", "the driver runs CUDA 13.0, torch is made for 12.8", OK),
        ("CUDA Version: N/A", "'13.0'", "the driver's CUDA version is unknown", WARNING),
        ("CUDA Version: 13.0", "None", "torch is a build for CPUs", WARNING),
    ],
)
def test_the_driver_against_the_packages(two_gpus, monkeypatch, said, torch, text, level):
    # Under another name: what a driver says is asked once.
    program(two_gpus / "nvidia-smi", f"echo '{said}'")
    monkeypatch.setenv("PATH", f"{two_gpus}:{two_gpus / 'bin'}")
    torch_for(monkeypatch, two_gpus, torch)
    assert levels(Config(), text) == [level]


def test_gpus_that_were_asked_for_need_torch_for_gpus(two_gpus, monkeypatch):
    torch_for(monkeypatch, two_gpus, "None")
    cfg = Config()
    cfg.compute.device = Device.cuda
    assert levels(cfg, "torch is a build for CPUs") == [ERROR]


def test_this_torch_is_read_without_importing_it():
    code = "import sys; from rlhf.preflight.cuda import cuda_of_torch; print(cuda_of_torch(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split()[1] == "False", done.stderr


def test_what_triton_compiles_with(two_gpus, monkeypatch):
    (two_gpus / "bin" / "gcc").unlink()
    (two_gpus / "Python.h").unlink()
    assert levels(Config(), "C compiler: none on PATH", "Python's headers: no ") == [WARNING, WARNING]
    monkeypatch.setenv("CC", "no-such-compiler")
    assert levels(Config(), "C compiler: no-such-compiler") == [WARNING]
    program(two_gpus / "bin" / "clang")
    monkeypatch.setenv("CC", "clang")
    assert levels(Config(), "C compiler: clang") == [OK]
    cfg = Config()
    cfg.generate.engine = cfg.score.engine = Engine.transformers
    assert not [each for each in cuda.cuda(cfg) if "compiler" in each.text or "headers" in each.text]


def test_debians_scheme_has_no_headers(monkeypatch):
    usual = cuda._python_header()
    monkeypatch.setattr(cuda.sysconfig, "get_default_scheme", lambda: "posix_local")
    assert cuda._python_header() == usual and usual.name == "Python.h"


def test_what_has_no_gpu_is_refused_by_stage(two_gpus):
    cfg = Config()
    cfg.compute.num_training_ranks = cfg.compute.num_inference_workers = 3
    cfg.generate.tensor_parallel_size = 4
    found = [each for each in cuda.cuda(cfg) if each.level is ERROR]
    starts = [each.text.split("=")[0] for each in found]
    assert starts == [
        "training: compute.num_training_ranks",
        "generate: tensor_parallel_size",
        "score: compute.num_inference_workers",
    ]
    cfg.generate.tensor_parallel_size = 1
    assert "generate and score: compute.num_inference_workers=3" in "\n".join(f.text for f in cuda.cuda(cfg))


@pytest.mark.parametrize(
    ("names", "missing"), [("0,2", ["2"]), ("1", []), ("GPU-abc,0", []), ("2,3", ["2", "3"])]
)
def test_gpus_that_are_named_and_not_there(two_gpus, monkeypatch, names, missing):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    found = [each.text for each in cuda.cuda(Config()) if "there is no GPU" in each.text]
    assert found == [f"CUDA_VISIBLE_DEVICES={names}: there is no GPU {name}" for name in missing]


def checked(folder, *arguments):
    environment = {"CUDA_VISIBLE_DEVICES": "0", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rlhf.check", "experiment=quickstart", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_the_quickstart_fits_one_gpu_and_a_person_is_taken_at_their_word(tmp_path):
    done = checked(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for key in ("num_training_ranks", "num_inference_workers"):
        assert f"compute.{key}=1, not 2 as the config files prefer" in done.stderr
    assert "training 1 × 1, generate 1 × 1, score 1 × 1" in done.stdout
    done = checked(tmp_path, "compute.num_training_ranks=2")
    assert done.returncode == 2 and "num_training_ranks" not in done.stderr
    assert (
        "✗ training: compute.num_training_ranks=2: each rank has a GPU of its own, and the run has 1."
        in done.stdout
    )


def on_nodes(monkeypatch, nodes, **values):
    """A run over the nodes of a cluster with so many GPUs; None where none was joined."""
    cfg = Config()
    cfg.compute.launcher = Launcher.ray
    for name, value in values.items():
        setattr(cfg.compute, name, value)
    rows = []
    for name, there in (nodes or {}).items():
        row = {"Alive": True, "Resources": {"GPU": float(there), "CPU": 8.0}, "NodeID": name}
        rows.append({**row, "NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.1"})
    ray = SimpleNamespace(is_initialized=lambda: nodes is not None, nodes=lambda: rows)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return cfg


@pytest.mark.parametrize(
    ("nodes", "values", "level", "said"),
    [
        ({"a": 8, "b": 8}, {}, OK, "a (10.0.0.1): 8, b (10.0.0.1): 8"),
        ({"a": 8, "b": 8}, {"num_gpus": 8, "num_training_ranks": 16, "num_nodes": 2}, OK, "training 16 × 1"),
        ({"a": 8}, {"num_training_ranks": 16, "num_nodes": 2}, OK, "training 16 × 1"),
        ({"a": 8, "b": 8}, {"num_training_ranks": 17, "num_nodes": 2}, ERROR, "the run has 16"),
        ({"a": 8, "b": 4}, {"num_gpus": 8}, WARNING, "b (10.0.0.1) has 4 GPUs where compute.num_gpus=8"),
        ({"a": 4, "b": 2}, {"num_gpus": 8}, ERROR, "compute.num_gpus=8 of each node: no node has so many"),
        ({"a": 0}, {"num_gpus": 1}, ERROR, "compute.num_gpus=1 of each node: no node has so many (none)"),
        ({"a": 0}, {"device": Device.cuda}, ERROR, "no node of the cluster has a GPU"),
        ({"a": 0}, {}, OK, "GPUs of the nodes that are there: none"),
        ({"a": 2}, {"num_inference_workers": 3}, ERROR, "compute.num_inference_workers=3"),
    ],
)
def test_the_gpus_of_a_clusters_nodes_are_looked_at(two_gpus, monkeypatch, nodes, values, level, said):
    found = list(cuda.cuda(on_nodes(monkeypatch, nodes, **values)))
    assert any(said in each.text and each.level is level for each in found), found
    assert {each.level for each in found} <= {OK, level}


def test_this_machine_stands_for_nodes_that_nobody_has_joined(two_gpus, monkeypatch):
    cfg = on_nodes(monkeypatch, None, num_gpus=8)
    assert all(each.level is OK for each in cuda.cuda(cfg))
    assert machine.gpus_of_run(cfg.compute) == ["0", "1"] and machine.num_gpus_of_run(cfg.compute) == 2


def test_a_large_model_is_for_the_nodes_to_hold_where_the_driver_has_no_gpu(monkeypatch):
    monkeypatch.setattr(capacity, "visible_gpus", list)
    capacity.check_capacity(on_nodes(monkeypatch, None))
    capacity.check_capacity(on_nodes(monkeypatch, {"head": 0, "a": 8}))
    with pytest.raises(ConfigError, match="nodes of the cluster cannot run it: none has a GPU"):
        capacity.check_capacity(on_nodes(monkeypatch, {"a": 0}))


def test_a_node_with_fewer_gpus_than_asked_for_is_left_out(monkeypatch, tmp_path):
    invited, said = [], []
    cfg = on_nodes(monkeypatch, {"small": 4, "large": 8, "head": 0}, num_gpus=8)
    monkeypatch.setattr(RayCluster, "_invite", lambda self, node_id, row: invited.append(node_id))
    cluster = RayCluster(cfg.compute, tmp_path, "token", said.append)
    for _ in range(2):
        cluster.nodes()
    assert set(invited) == {"large"} and len(said) == 1
    assert "small (10.0.0.1): has 4 GPUs where compute.num_gpus=8 asks for more, and is left out" in said[0]
