"""A node of a cluster works only in the folder that the driver works in, and a run tries that folder out."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf import iterate
from rlhf.command import file_tool
from rlhf.config.choices import Launcher
from rlhf.config.schema import Config
from rlhf.errors import ConfigError
from rlhf.launch import cluster, supervisor
from rlhf.launch.cluster import NodeLost, RayCluster, _Coming
from rlhf.launch.supervisor import Settings, Supervisor
from rlhf.run import file_system_probe
from rlhf.run.file_system_probe import leave_mark
from rlhf.run.lock import hold_run


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A supervisor as on a node, and the folder that is at the run's path there."""
    monkeypatch.setattr(supervisor, "MARK_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "MARK_SECONDS", 0.1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = Settings(str(tmp_path), "token", False, "cpu", "/no/such/folder", {}, False, 1, "127.0.0.1")
    rows = [{"NodeID": "node-1", "Alive": True}]
    ray = SimpleNamespace(wait=lambda refs, timeout: (refs, []), kill=print, nodes=lambda: rows)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return Supervisor(settings)


def taken_in(folder, answer):
    """A cluster that has heard what a node answers to its mark; and what was said."""
    said = []
    found = RayCluster(Config().compute, folder, "token", said.append)
    mark = leave_mark(folder, "node-1")

    def result(reference, seconds):
        return answer(mark)

    there = SimpleNamespace(
        node_id="node-1",
        name="b (10.0.0.2)",
        num_cpus=1,
        num_gpus=0,
        actor=None,
        facts=None,
        result=result,
    )
    coming = found._coming["node-1"] = _Coming(there, "reference", mark)
    found._take_in(coming)
    assert not list(folder.glob(".mark*")) and found._coming == {}
    return found, said


def test_a_node_that_sees_the_mark_and_is_seen_is_taken_in(tmp_path, node):
    found, said = taken_in(tmp_path, lambda mark: node.answer(str(mark), "node-1"))
    assert list(found._nodes) == ["node-1"]
    assert said == ["  · b (10.0.0.2) works for this run, with 1 core"]
    assert found._nodes["node-1"].facts.pid == os.getpid()


def other_folder(node, mark):
    """The path of the run is another folder there."""
    return node.answer(str(mark.parent / "elsewhere" / mark.name), "node-1")


def older_file(node, mark):
    return node.answer(str(mark), "what was written since")


def answer_unseen(node, mark):
    """It sees the driver's file, and the driver not what it writes."""
    facts, answer = node.answer(str(mark), "node-1")
    Path(answer).unlink()
    return facts, answer


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (other_folder, "not there"),
        (older_file, "an older or a half-written one"),
        (answer_unseen, "no such file"),
    ],
)
def test_a_node_in_another_folder_is_left_out_and_told_of(tmp_path, node, how, said):
    found, lines = taken_in(tmp_path, lambda mark: how(node, mark))
    assert found._nodes == {} and "\n" not in found._refused["node-1"]
    (line,) = lines
    assert "b (10.0.0.2) does not work in the same folder, and is left out" in line and said in line
    assert "mount the same shared file system at this path" in line


def test_a_node_that_is_gone_again_may_come_back(tmp_path, node):
    def gone(mark):
        raise NodeLost("b")

    found, said = taken_in(tmp_path, gone)
    assert found._refused == {} and "another one is tried" in said[0]


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_disk_of_this_machine_is_tried_out_where_other_machines_work_in_it(
    tmp_path, monkeypatch, is_shared
):
    tried, said = [], []
    monkeypatch.setattr(
        file_system_probe, "require_file_system", lambda folder, elsewhere: tried.append(folder) or ["odd"]
    )
    with hold_run(tmp_path, said.append, is_shared=is_shared):
        mark = leave_mark(tmp_path, "for a node that never came")
    assert bool(tried) is is_shared and any("odd" in line for line in said) is is_shared
    assert mark.exists() is not is_shared


def test_a_refused_run_on_a_cluster_leaves_no_trace(tmp_path):
    def refused():
        with hold_run(tmp_path / "run", print, is_shared=True):
            leave_mark(tmp_path / "run", "for a node that is still on its way")
            raise ConfigError("refused")

    with pytest.raises(ConfigError, match="refused"):
        refused()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("launcher", list(Launcher))
@pytest.mark.parametrize("module", [iterate, file_tool])
def test_who_runs_on_a_cluster_says_so(tmp_path, monkeypatch, module, launcher):
    asked = []

    def hold(folder, say, elsewhere="", take_over=None, is_shared=False):
        asked.append(is_shared)
        raise ConfigError("enough")

    monkeypatch.setattr(module, "hold_run", hold)
    cfg = Config(run_dir=str(tmp_path / "run"))
    cfg.compute.launcher = launcher
    cfg.model.path = cfg.reward_model.path = "@world/model"
    monkeypatch.setattr(file_tool, "as_config", lambda tool: cfg)
    begin = {
        iterate: lambda: iterate.execute(cfg),
        file_tool: lambda: file_tool._write(cfg, tmp_path / "o.jsonl", tmp_path, None, None, None),
    }
    with pytest.raises(ConfigError, match="enough"):
        begin[module]()
    assert asked == [launcher is Launcher.ray]
