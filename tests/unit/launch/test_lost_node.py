"""What Ray says of a supervisor that is gone, as a run says it; Ray itself is a stand-in."""

import sys
import types

import pytest

from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError
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
