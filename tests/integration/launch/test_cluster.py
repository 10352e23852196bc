"""Stages on Ray nodes of this machine: the same files as on one, whatever comes, goes, sleeps or is slow."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.config.schema import Config
from rlhf.config.stage_configs import GenerativeStage, RuleStage
from rlhf.data.judge_files import load_judge_file
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, write_shard
from rlhf.errors import ConfigError, WorkerFailed
from rlhf.launch.attending import Told
from rlhf.run.artifact import Artifact
from rlhf.run.lock import WORKERS_LOCK, hold_run
from rlhf.run.plan import Run
from rlhf.run.processes import descendants_of, holders_of, is_gone, send, state_of
from tests.chat_server import fake_chat
from tests.cluster import node_of, ray_nodes
from tests.commands import digests, wait_for
from tests.integration.loop.test_old_run import OTHERS, SETTINGS

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster`)")

ROOT = Path(__file__).resolve().parents[3]
OLD_RUN = ROOT / "tests" / "data" / "old_run.tar.gz"
LOST = re.compile(r"is lost; (shard \d+ goes|shards \d+(, \d+)+ go) to others")
"""What is said of a node that died with shards in hand."""


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Where rules write down that they were called; the nodes have it from the environment they start in."""
    monkeypatch.setenv("RULE_MARKER", str(tmp_path / "calls"))
    monkeypatch.syspath_prepend(str(ROOT))
    return tmp_path / "calls"


@pytest.fixture
def nodes(marker):
    with ray_nodes(2) as cluster:
        yield cluster
        ray.shutdown()


def candidates(folder, shards=6):
    folder.mkdir()
    for index in range(shards):
        candidate = {"token_ids": [1], "text": "x" * (index + 1), "finish_reason": "stop", "logprob": 0}
        candidate |= {"seed": 1, "temperature": 1}
        row = {
            "id": f"{index}",
            "messages": [{"role": "user", "content": f"{index}"}],
            "prompt_token_ids": [1],
            "candidates": [candidate],
        }
        write_shard(folder / shard_name(index), CANDIDATES_SCHEMA, [row])
    return Artifact(folder, "d")


def score(folder, inputs, rule, token, say=print, **compute):
    return score_by(folder, inputs, RuleStage(rule=f"tests.unit.rules:{rule}"), token, say, **compute)


def score_by(folder, inputs, told, token, say=print, **compute):
    from rlhf.launch.cluster import RayCluster
    from rlhf.launch.ray_launcher import RayLauncher

    cfg = Config()
    cfg.compute.device = type(cfg.compute.device).cpu
    for name, value in compute.items():
        setattr(cfg.compute, name, value)
    cluster = RayCluster(cfg.compute, folder, token, say)
    cluster.connect()
    launcher = RayLauncher(folder, token, cluster, preload=False, device="cpu", told=Told(say=say))
    run = Run(folder, cfg, launcher)
    return run.stage("score", "score", told, {"candidates": inputs})


def all_scores(artifact):
    return [row["scores"][0] for row in read_all_rows(artifact.path)]


def files_of(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


def test_every_node_takes_shards_and_the_files_are_those_of_one_machine(tmp_path, nodes):
    inputs = candidates(tmp_path / "in", shards=12)
    with hold_run(tmp_path / "run", print, is_shared=True) as token:
        artifact = score(tmp_path / "run", inputs, "process_id", token, num_nodes=2)
    assert len(all_scores(artifact)) == 12 and len(set(all_scores(artifact))) == 2
    assert not list((tmp_path / "run").glob(".mark*"))
    names = {path.name for path in artifact.path.iterdir()}
    assert names == {"artifact.json", *(shard_name(index) for index in range(12))}


def test_a_worker_of_a_lost_node_that_wakes_writes_nowhere(tmp_path, nodes, marker):
    inputs = candidates(tmp_path / "in")
    stopped, said = [], []

    def kill_the_node_whose_worker_sleeps():
        wait_for(marker.exists)
        wait_for(lambda: any("stopped" in state_of(int(pid)) for pid in marker.read_text().split()))
        pid = next(int(pid) for pid in marker.read_text().split() if "stopped" in state_of(int(pid)))
        stopped.append(pid)
        nodes.remove_node(node_of(nodes, pid), allow_graceful=False)

    killer = threading.Thread(target=kill_the_node_whose_worker_sleeps)
    killer.start()
    with hold_run(tmp_path / "run", print) as token:
        artifact = score(tmp_path / "run", inputs, "stops_and_says_who", token, said.append, num_nodes=2)
    killer.join()
    assert all_scores(artifact) == [1, 2, 3, 4, 5, 6]
    assert any(LOST.search(line) for line in said), said
    before = files_of(tmp_path / "run")
    os.kill(stopped[0], signal.SIGCONT)
    wait_for(lambda: is_gone(stopped[0]))
    after = files_of(tmp_path / "run")
    changed = [path for path in after if path.parent.name != "logs" and after[path] != before.get(path)]
    assert changed == [] and artifact.path.is_dir()


def test_a_judge_behind_a_server_is_asked_on_when_the_node_that_asks_dies(tmp_path, nodes, monkeypatch):
    monkeypatch.setenv("OUR_KEY", "secret")  # after the nodes have started: they do not have it
    inputs, said, begun = candidates(tmp_path / "in"), [], threading.Event()

    def behave(number, body):
        if number == 2:
            begun.set()
            threading.Event().wait(10)
        return 200, {}, "Rating: 5"

    with fake_chat(behave) as fake, hold_run(tmp_path / "run", print) as token, ThreadPoolExecutor(1) as pool:
        told = GenerativeStage(judge_file=load_judge_file("score_1_10"), url=fake.url, served_model="m")
        told = replace(told, api_key_variable="OUR_KEY")
        made = pool.submit(score_by, tmp_path / "run", inputs, told, token, said.append, num_nodes=2)
        wait_for(lambda: begun.is_set() or made.done())
        assert not made.done(), made.result()
        log = tmp_path / "run" / "logs" / "score.rank0.log"
        (asking,) = set(holders_of(log)) & set(holders_of(tmp_path / "run" / WORKERS_LOCK))
        nodes.remove_node(node_of(nodes, asking), allow_graceful=False)
        artifact = made.result()
    assert all_scores(artifact) == [5] * 6
    assert any(LOST.search(line) for line in said), said
    assert {headers["Authorization"] for headers in fake.headers} == {"Bearer secret"}
    answers = list(read_all_rows(artifact.path / "answers"))
    assert len(answers) == 6 and artifact.counts["answers"] == 6
    # What was kept before the end is not asked again: the one on its way is.
    assert len(fake.bodies) == 7 and len(fake.answered) == 6


def test_the_last_shard_of_a_slow_node_is_begun_by_another_too(tmp_path, nodes, marker, monkeypatch):
    monkeypatch.setattr("rlhf.launch.shard_stage._LEAST_SLOW_SECONDS", 1.0)
    inputs, said = candidates(tmp_path / "in", shards=8), []
    with hold_run(tmp_path / "run", print) as token:
        artifact = score(tmp_path / "run", inputs, "sleeps_once", token, said.append, num_nodes=2)
    assert all_scores(artifact) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert any("begins it too" in line for line in said), said


def test_a_node_may_join(tmp_path, nodes, marker):
    inputs = candidates(tmp_path / "in", shards=60)

    # Not the other way round: the kernel ends a node with the thread that has started it.
    with ThreadPoolExecutor(1) as pool, hold_run(tmp_path / "run", print) as token:
        made = pool.submit(score, tmp_path / "run", inputs, "slow_process_id", token, num_nodes=2)
        wait_for(lambda: marker.exists() or made.done())
        nodes.add_node(num_cpus=1)
        artifact = made.result()
    assert len(set(all_scores(artifact))) == 3


def test_a_worker_that_raises_ends_the_stage_and_a_node_that_never_comes_too(tmp_path, nodes):
    inputs = candidates(tmp_path / "in")
    with hold_run(tmp_path / "run", print) as token:
        with pytest.raises(WorkerFailed, match="a rule that divides by zero"):
            score(tmp_path / "run", inputs, "broken", token)
        there = r"(1 node is|\d nodes are) there(; \d more without a core)?"
        with pytest.raises(WorkerFailed, match=rf"9 nodes did not come within .*=1 \({there}\)"):
            score(tmp_path / "run", inputs, "length", token, num_nodes=9, node_wait_seconds=1.0)


def test_without_a_cluster_the_ways_out_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with hold_run(tmp_path / "run", print) as token, pytest.raises(ConfigError, match="compute=local"):
        score(tmp_path / "run", candidates(tmp_path / "in"), "length", token)


def calls_in(marker):
    """When, by which process and with how long a response the rule was called, the first call first."""
    calls = []
    for line in marker.read_text(encoding="utf-8").splitlines():
        at, pid, length = line.split()
        calls.append((float(at), int(pid), int(length)))
    return sorted(calls)


@pytest.mark.skipif(os.environ.get("RLHF_NODE_KILLS", "0") == "0", reason="a minute long: make test-cluster")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_seconds_until_the_shards_of_a_dead_node_are_worked_on_again(tmp_path, nodes, marker, how):
    """A node whose processes are killed closes its connections; one that is stopped, or off, says nothing."""
    inputs, said, gone = candidates(tmp_path / "in", shards=400), [], []

    def say(line):
        said.append((time.time(), line))

    with ThreadPoolExecutor(1) as pool, hold_run(tmp_path / "run", print) as token:
        made = pool.submit(score, tmp_path / "run", inputs, "tells_when", token, say, num_nodes=2)
        wait_for(
            lambda: made.done() or (marker.exists() and len({pid for _, pid, _ in calls_in(marker)}) == 2)
        )
        assert not made.done(), made.result()
        victim = calls_in(marker)[-1][1]
        raylet = node_of(nodes, victim).all_processes["raylet"][0].process.pid
        gone = [raylet, *descendants_of(raylet)]
        for pid in gone:
            send(pid, how)
        at = time.time()
        try:
            artifact = made.result()
        finally:
            for pid in gone:
                send(pid, signal.SIGKILL)
    assert all_scores(artifact) == list(range(1, 401))
    lost = next(when for when, line in said if LOST.search(line))
    in_hand = [length for _, pid, length in calls_in(marker) if pid == victim][-1]
    again = next(when for when, pid, length in calls_in(marker) if length == in_hand and pid != victim)
    print(
        f"{how.name}: the loss is told after {lost - at:.1f} s, its shard begun again after {again - at:.1f} s"
    )


def iterate(given, run, *words):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{given}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "rlhf.iterate", f"run_dir=../{run}", OTHERS, *SETTINGS.split(), *words]
    return subprocess.Popen(
        command, cwd=given, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_run_over_two_nodes_loses_one_in_dpo_and_has_the_files_of_one_machine(tmp_path, nodes):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.rmtree(tmp_path / "run" / "iteration_002")
    shutil.copytree(tmp_path / "run", tmp_path / "local", symlinks=True)
    ranks = ["compute.num_training_ranks=2", "dpo.save_steps=1"]
    here = iterate(tmp_path / "given", "local", *ranks)
    said, _ = here.communicate(timeout=300)
    assert here.returncode == 0, said
    there = iterate(tmp_path / "given", "run", *ranks, "compute=ray", "compute.num_nodes=2")
    attempts = tmp_path / "run" / "iteration_002" / ".dpo.partial" / ".attempts"
    wait_for(lambda: there.poll() is not None or any(attempts.glob("*/checkpoint-*/sealed.json")))
    victim = sorted(nodes.worker_nodes, key=lambda node: node.node_id)[0]
    nodes.remove_node(victim, allow_graceful=False)
    said, _ = there.communicate(timeout=300)
    assert there.returncode == 0, said
    assert "is lost" in said or "stages are finished" in said
    assert digests(tmp_path / "run") == digests(tmp_path / "local")
