"""What Ray says of a supervisor that is gone, as a run says it; Ray itself is a stand-in."""

import sys
import types

import pytest

from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError, WorkerFailed
from rlhf.launch.cluster import RayCluster, _Coming
from rlhf.launch.remote_node import NodeLost, RemoteNode


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(cause)
        self.cause = cause


NAMES = ("GetTimeoutError", "OutOfMemoryError", "RayActorError", "RuntimeEnvSetupError")
ERRORS = {name: type(name, (RayError,), {}) for name in NAMES}


@pytest.fixture
def node(monkeypatch):
    """A node; what is asked of it raises what is given for a reference."""

    def get(reference, timeout):
        raise reference

    exceptions = types.ModuleType("ray.exceptions")
    vars(exceptions).update(ERRORS, RayError=RayError, RayTaskError=RayTaskError)
    ray = types.ModuleType("ray")
    ray.get, ray.exceptions = get, exceptions
    ray.wait = lambda references, timeout: ([], references)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    return RemoteNode("8f8bb79a9b93", "10.0.0.2", 8, 0, None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("OutOfMemoryError", "where memory ran short"),
        ("RuntimeEnvSetupError", "the environment cannot be made"),
        ("RayActorError", "Ray node 8f8bb79a)"),
        ("GetTimeoutError", "Ray node 8f8bb79a)"),
    ],
)
def test_whatever_ends_a_supervisor_is_the_loss_of_its_node(node, name, said):
    with pytest.raises(NodeLost) as raised:
        node.result(ERRORS[name]("the environment cannot be made\nand forty lines more"))
    assert said in str(raised.value) and "forty" not in node.name


def test_what_a_supervisor_raises_is_what_it_was(node):
    with pytest.raises(ConfigError, match="too few"):
        node.result(RayTaskError(ConfigError("too few")))


def test_a_supervisor_that_is_slow_to_start_is_waited_for_and_told_of_ever_more_seldom(node, tmp_path):
    said = []
    cluster = RayCluster(ComputeConfig(), tmp_path, "token", said.append)
    coming = cluster._coming[node.node_id] = _Coming(node, object(), tmp_path / "mark")
    cluster._take_in(coming)
    assert said == []
    coming.since -= 100.0
    for _ in range(3):
        cluster._take_in(coming)
    assert len(said) == 1 and "has not started in 100 s" in said[0]
    coming.since -= 200.0
    cluster._take_in(coming)
    assert len(said) == 2 and node.node_id in cluster._coming


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_node_that_has_died_is_not_said_to_be_tried_again(node, tmp_path, is_alive):
    said = []
    ray = sys.modules["ray"]
    ray.wait = lambda references, timeout: (references, [])
    ray.kill = lambda actor: None
    ray.nodes = lambda: [{"NodeID": node.node_id, "Alive": is_alive}]
    cluster = RayCluster(ComputeConfig(), tmp_path, "token", said.append)
    gone = ERRORS["RayActorError"]("gone")
    coming = cluster._coming[node.node_id] = _Coming(node, gone, tmp_path / "mark")
    cluster._take_in(coming)
    assert cluster._coming == {}
    assert any("another one is tried" in line for line in said) == is_alive


@pytest.mark.parametrize(
    ("rows", "there"),
    [
        ([{"CPU": 0}], r"\(0 nodes are there; 1 more without a core\)"),
        ([{"CPU": 8}, {}], r"\(0 nodes are there; 1 more without a core\)"),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 8}], r"\(0 nodes are there; 1 more without a GPU\)"),
        ([{"CPU": 8}], r"\(0 nodes are there\)"),
    ],
)
def test_nodes_that_have_nothing_to_work_with_are_counted(node, tmp_path, monkeypatch, rows, there):
    alive = [{"NodeID": str(number), "Alive": True, "Resources": has} for number, has in enumerate(rows)]
    sys.modules["ray"].nodes = lambda: alive
    monkeypatch.setattr(RayCluster, "_invite", lambda *_: None)
    cluster = RayCluster(ComputeConfig(node_wait_seconds=0.01), tmp_path, "token", print)
    with pytest.raises(WorkerFailed, match=there):
        cluster.wait_for(bool, "a node")
