"""Shards over nodes that come and go, as the driver sees it; nodes and their workers are fakes."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.config.stage_configs import GenerateStage, GenerativeStage, RuleStage
from rlhf.data.schemas import SCORES_SCHEMA
from rlhf.data.shards import TOKENS, read_all_rows, shard_name, write_shard
from rlhf.errors import WorkerFailed
from rlhf.launch import cluster, shard_stage
from rlhf.launch.attending import Told
from rlhf.launch.cluster import NodeLost
from rlhf.launch.shard_stage import ShardStage
from rlhf.launch.supervisor import named_by, settings_of_libraries
from rlhf.run.attempt_folder import ATTEMPTS
from rlhf.run.job import ANSWERS, Job, Outcome


class Node:
    """A node with one worker, which makes a shard as soon as it is given one.

    Args:
        name: of the node; its shards say so.
        dies_at: the shard in whose middle it goes, with all its workers.
        sleeps_at: the shard that it never ends.
    """

    def __init__(self, name, dies_at=None, sleeps_at=None):
        self.name = name
        self.dies_at, self.sleeps_at = dies_at, sleeps_at
        warm_up = SimpleNamespace(remote=lambda engines: None)
        self.actor = SimpleNamespace(warm_up=warm_up, begin_worker=SimpleNamespace(remote=self.begin_worker))
        self.messages = []
        self.folders = {}
        self.began = []
        """Rank, folder and environment of each worker."""
        self.is_lost = False

    def ask(self, method, *arguments, seconds=None):
        return getattr(self, method)(*arguments)

    def missing(self, paths):
        return []

    def room(self, compute, tensor_parallel, num_shards):
        return [{"OMP_NUM_THREADS": "1"}]

    def begin_worker(self, job, own, rank, world_size, environment):
        self.job = job
        folder = self.folders[rank] = job.out_path / ATTEMPTS / own
        folder.mkdir(parents=True)
        self.began.append((rank, own, environment))
        if rank > 0 and getattr(job.config, "served_model", None) is not None:
            self.messages += [(rank, "outcome", Outcome()), (rank, "closed", "")]
            return
        if rank == 0 and job.stage == "generate":
            (folder / TOKENS).write_text(self.name, encoding="utf-8")
        self.messages.append((rank, "next", None))

    def answered(self, rank, shard):
        if shard is None:
            self.messages += [(rank, "outcome", Outcome({}, {"by": self.name})), (rank, "closed", "")]
        elif shard == self.dies_at:
            self.is_lost = True
        elif shard != self.sleeps_at:
            self.make(rank, shard)

    def make(self, rank, shard):
        rows = [{"id": self.name, "scores": [float(shard)]}]
        folder = self.folders[rank]
        if isinstance(self.job.config, GenerativeStage):
            (folder / ANSWERS).mkdir(exist_ok=True)
            write_shard(folder / ANSWERS / shard_name(shard), SCORES_SCHEMA, rows)
        write_shard(folder / shard_name(shard), SCORES_SCHEMA, rows, {"rows": 1})
        self.messages += [(rank, "made", shard), (rank, "next", None)]


class Cluster:
    def __init__(self, *nodes):
        self.there = list(nodes)
        self.run_folder = Path("run")

    def nodes(self):
        return list(self.there)

    def num_needed(self):
        return 1

    def has_news(self):
        return False

    def wait_for(self, is_enough, what):
        assert is_enough(self.there)
        return self.there

    def lose(self, node):
        self.there.remove(node)

    def end_workers(self, nodes):
        pass


class Conversation:
    def __init__(self):
        self.heard = []
        self.rounds = 0

    def begin(self, node, reference):
        if node not in self.heard:
            self.heard.append(node)

    def nodes(self):
        return list(self.heard)

    def answer(self, node, rank, shard):
        node.answered(rank, shard)

    def hear(self, seconds):
        self.rounds += 1
        assert self.rounds < 200, "the stage does not end"
        for node in list(self.heard):
            if node.is_lost:
                self.heard.remove(node)
                yield node, None
            elif node.messages:
                said, node.messages = node.messages, []
                yield node, said


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a stage of six shards over some nodes; returns its outcome, its folder and what was said."""
    monkeypatch.setattr(shard_stage, "Conversation", Conversation)

    def run_over(config, *nodes, stage="score"):
        said = []
        out = tmp_path / "out"
        out.mkdir()
        job = Job(stage, stage, config, {}, str(out), 1)
        outcome = ShardStage(Cluster(*nodes), Told(say=said.append), job, list(range(6))).run()
        assert [row["scores"] for row in read_all_rows(out)] == [[float(shard)] for shard in range(6)]
        assert not (out / ATTEMPTS).exists()
        return outcome, out, said

    return run_over


def test_a_judge_behind_a_server_is_asked_by_another_node_where_the_one_that_asked_is_gone(run, monkeypatch):
    monkeypatch.setenv("OUR_KEY", "secret")
    asking, idle = Node("a", dies_at=2), Node("b")
    told = GenerativeStage(served_model="m", api_key_variable="OUR_KEY")
    outcome, out, _ = run(told, asking, idle)
    ranks = [rank for rank, _, _ in idle.began]
    assert ranks == [1, 0] and outcome.metrics == {"by": "b"}
    folders = [own for _, own, _ in asking.began + idle.began]
    assert len(set(folders)) == 3, "whoever wakes on the lost node must find no folder of another"
    assert idle.began[1][2] == {"OMP_NUM_THREADS": "1", "OUR_KEY": "secret"}
    of_answers, of_scores = list(read_all_rows(out / ANSWERS)), list(read_all_rows(out))
    assert of_answers == of_scores, "answers are of the worker that the scores are of"


def test_one_of_a_lost_node_does_what_rank_0_does(run):
    first, second, third = Node("a", dies_at=0), Node("b"), Node("c")
    outcome, out, _ = run(GenerateStage(), first, second, third, stage="generate")
    assert outcome.metrics["by"] in ("b", "c")
    assert (out / TOKENS).read_text(encoding="utf-8") == outcome.metrics["by"]


def test_a_slow_rank_0_is_not_waited_for_and_what_it_says_late_is_not_heard(run, monkeypatch):
    monkeypatch.setattr(shard_stage, "_LEAST_SLOW_SECONDS", 0.0)
    monkeypatch.setattr(shard_stage, "_SLOW", 0.0)
    slow, other = Node("a", sleeps_at=0), Node("b")

    def also_wakes(rank, shard):
        if rank == 0 and shard is None:
            slow.make(0, 0)
        answered(rank, shard)

    answered, other.answered = other.answered, also_wakes
    outcome, out, said = run(RuleStage(rule="a:b"), slow, other)
    assert outcome.metrics == {"by": "b"} and [rank for rank, _, _ in other.began] == [1, 0]
    assert {row["id"] for row in read_all_rows(out)} == {"b"}
    assert any("begins it too" in line for line in said)


class Silent:
    """A node that answers only what it is told to, once."""

    def __init__(self):
        self.calls = 0
        self.actor = SimpleNamespace(exchange=SimpleNamespace(remote=self.exchange))
        self.answers = {}

    def exchange(self, answers, seconds):
        self.calls += 1
        return (self, self.calls)

    def result(self, reference):
        answer = self.answers[reference]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def two(monkeypatch):
    """A node on which a worker starts, and one at work, which are heard."""

    def wait(references, num_returns, timeout):
        known = [each for each in references if each in starts.answers or each in works.answers]
        return known[:num_returns], []

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(wait=wait))
    starts, works = Silent(), Silent()
    conversation = cluster.Conversation()
    conversation.begin(starts, "start")
    conversation.add(works)
    return conversation, starts, works


def test_while_a_worker_starts_the_others_are_heard(two):
    conversation, starts, works = two
    works.answers[works, 1] = [(1, "next", None)]
    assert list(conversation.hear(1.0)) == [(works, [(1, "next", None)])]
    assert list(conversation.hear(1.0)) == []
    starts.answers["start"] = None
    assert list(conversation.hear(1.0)) == [(starts, [])]
    starts.answers[starts, 1] = [(0, "next", None)]
    assert list(conversation.hear(1.0)) == [(starts, [(0, "next", None)])]


def test_a_worker_that_cannot_start_is_told_of_and_a_node_that_goes_meanwhile_is_lost(two):
    conversation, starts, _ = two
    starts.answers |= {"start": NodeLost("a"), (starts, 1): NodeLost("a")}
    assert [*conversation.hear(1.0), *conversation.hear(1.0)] == [(starts, None), (starts, None)]
    conversation.begin(starts, "again")
    starts.answers["again"] = WorkerFailed("no worker can be started")
    with pytest.raises(WorkerFailed, match="no worker can be started"):
        list(conversation.hear(1.0))


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "RLHF_JUDGE_API_KEY", "SSL_CERT_FILE", "PYTORCH_CUDA_ALLOC_CONF"]
)
def test_what_libraries_are_told_reaches_the_nodes(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    found = settings_of_libraries()
    assert found[name] == "x" and "SOMETHING_ELSE" not in found


def test_a_key_that_no_config_names_stays_here(monkeypatch):
    monkeypatch.setenv("OUR_KEY", "secret")
    for config in (GenerativeStage(), GenerativeStage(api_key_variable="NOT_SET"), RuleStage(rule="a:b")):
        assert named_by(config) == {}
