"""An attempt at a training that ends badly leaves its whole checkpoints to the next one, whatever ended it."""

import pytest

from rlhf.config.schema import ComputeConfig
from rlhf.config.stage_configs import PairSettings
from rlhf.data.digest import sealed
from rlhf.errors import SmallerBatches, WorkerFailed
from rlhf.launch import ray_launcher
from rlhf.launch.ray_launcher import RayLauncher
from rlhf.launch.remote_node import NodeLost
from rlhf.run.attempt_folder import SEAL
from rlhf.run.job import Job


class Node:
    name = "node"

    def __init__(self, is_lost):
        self.is_lost = is_lost

    def ask(self, method):
        if self.is_lost:
            raise NodeLost(self.name)


class Cluster:
    def __init__(self):
        self.ended = []

    def lose(self, node):
        pass

    def end_workers(self, nodes):
        self.ended += nodes

    def num_needed(self):
        return 3

    def wait_for(self, is_enough, wanted):
        return wanted


@pytest.mark.parametrize(
    ("error", "is_lost", "raised"),
    [
        (WorkerFailed("connection closed by peer"), True, NodeLost),
        (WorkerFailed("a bug"), False, WorkerFailed),
        (NodeLost("node"), True, NodeLost),
        (SmallerBatches("of 512 tokens"), False, SmallerBatches),
        (KeyboardInterrupt(), False, KeyboardInterrupt),
    ],
)
def test_checkpoints_of_a_bad_end_are_kept(tmp_path, monkeypatch, error, is_lost, raised):
    node = Node(is_lost)
    launcher = RayLauncher(tmp_path, "token", Cluster())

    def start(self, job, placed):
        checkpoint = job.out_path / "checkpoint-5"
        checkpoint.mkdir()
        (checkpoint / SEAL).write_bytes(sealed({"world_size": 2, "files": {}}))
        (job.out_path / ".batch_tokens.json").write_text("{}", encoding="utf-8")
        raise error

    monkeypatch.setattr(RayLauncher, "_nodes_for", lambda *_: [node])
    monkeypatch.setattr(RayLauncher, "_placed", lambda *_: [(node, [0, 1])])
    monkeypatch.setattr(RayLauncher, "_start", start)
    job = Job("dpo", "dpo", PairSettings(), {}, str(tmp_path), 42)
    with pytest.raises(raised):
        launcher._attempt(job)
    assert ray_launcher._checkpoint_names(job) == ["checkpoint-5"]
    assert launcher.cluster.ended == [node] and not (tmp_path / ".attempts").exists()
    assert (tmp_path / ".batch_tokens.json").exists() == isinstance(error, SmallerBatches)


@pytest.mark.parametrize(
    ("ranks", "pinned", "wanted"),
    [
        (None, None, "dpo: 3 nodes"),
        (2, None, "dpo: 3 nodes with room for 2 ranks"),
        (None, 2, "dpo: nodes for 2 ranks"),
    ],
)
def test_what_a_training_waits_for_is_what_is_said(tmp_path, ranks, pinned, wanted):
    compute = ComputeConfig(num_training_ranks=ranks)
    job = Job("dpo", "dpo", PairSettings(), {}, str(tmp_path), 42, compute=compute)
    assert RayLauncher(tmp_path, "token", Cluster())._nodes_for(job, pinned) == wanted
