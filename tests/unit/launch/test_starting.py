"""A node answers while its workers start, which may take minutes; the node is a fake."""

import threading

import pytest

from rlhf.config.stage_configs import PairSettings
from rlhf.errors import WorkerFailed
from rlhf.launch.starting import Starting
from rlhf.launch.supervisor import Settings, Supervisor
from rlhf.run.job import Job

JOB = Job("pair", "pair", PairSettings(), {}, "out", 1)


class Node:
    """Starts a worker as soon as it may.

    Args:
        may_start: set by the test when the imports are done.
        error: what goes wrong then.
    """

    def __init__(self, error=None):
        self.may_start, self.error = threading.Event(), error
        self.ended_once = threading.Event()
        self.living, self.threads = [], set()

    def warm_up(self, engines):
        self.threads.add(threading.get_ident())
        raise OSError("no room for a log")

    def start(self, job, rank, world_size, environment):
        self.threads.add(threading.get_ident())
        assert self.may_start.wait(60)
        if self.error is not None:
            raise self.error
        self.living.append(rank)

    def messages(self, seconds):
        return [(rank, "next", None) for rank in self.living]

    def state(self, rank):
        return "computing"

    def end(self):
        self.living = []
        self.ended_once.set()


def heard(starting, wanted):
    for _ in range(600):
        found = starting.messages(0.1)
        if len(found) == wanted:
            return found
    raise AssertionError(f"{wanted} workers never spoke")


def test_who_waits_for_the_imports_is_heard_of_afterwards():
    node = Node()
    starting = Starting(node)
    starting.warm_up(True)
    starting.begin(JOB, 0, 2, {})
    starting.begin(JOB, 1, 2, {})
    assert starting.messages(0.0) == [] and starting.is_waiting(0) and starting.is_waiting(1)
    node.may_start.set()
    assert heard(starting, 2) == [(0, "next", None), (1, "next", None)]
    assert not starting.is_waiting(0) and not starting.is_waiting(1)
    assert len(node.threads) == 1 and threading.get_ident() not in node.threads


def test_what_was_ended_while_it_started_does_not_live_on():
    node = Node()
    starting = Starting(node)
    for rank in (0, 1):
        starting.begin(JOB, rank, 2, {})
    starting.end()
    assert not starting.is_waiting(0)
    starting.begin(JOB, 7, 1, {})
    node.may_start.set()
    assert heard(starting, 1) == [(7, "next", None)]
    assert node.living == [7]


def test_who_cannot_be_started_is_told_once_and_not_to_the_next_attempt():
    node = Node(WorkerFailed("the forkserver is gone"))
    node.may_start.set()
    starting = Starting(node)
    starting.begin(JOB, 0, 1, {})
    with pytest.raises(WorkerFailed, match="forkserver"):
        heard(starting, 1)
    starting.end()
    node.error = None
    starting.begin(JOB, 0, 1, {})
    assert heard(starting, 1) == [(0, "next", None)]


def test_a_supervisor_answers_while_its_workers_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlhf.launch.supervisor.Node", lambda *arguments: node)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    node = Node()
    supervisor = Supervisor(Settings(str(tmp_path), "t", True, "cpu", "/nowhere", {}, False, 1, "127.0.0.1"))
    job = Job("pair", "iteration_001/pair", PairSettings(), {}, str(tmp_path / "out"), 1)
    supervisor.begin_worker(job, "a/0", 0, 1, {})
    assert supervisor.exchange([], 0.0) == [] and "imports" in supervisor.state(0)
    node.may_start.set()
    assert heard(supervisor._starting, 1) and supervisor.state(0) == "computing"
    supervisor.end()
    assert node.living == []
