"""A quickstart over three Ray nodes equals the local one, whatever node dies when: `make test-cluster`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import ray_nodes, wait_for

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster`)")

KILLS = int(os.environ.get("RLHF_NODE_KILLS", "0"))
SEED = int(os.environ.get("RLHF_SEED", "0"))
pytestmark = pytest.mark.skipif(KILLS == 0, reason="minutes long: make test-cluster")

ROOT = Path(__file__).resolve().parents[3]
SHARED = ("world", "sft", "judge", "reward_model", "prompts")
"""Stages before the iterations: made once."""
STAGES = (
    "iteration_000/held_out/generate",
    "iteration_001/generate",
    "iteration_001/score",
    "iteration_001/dpo",
)


def command(run, *words):
    words = ["num_iterations=1", "generate.shard_size=20", "dpo.save_steps=5", f"run_dir={run}", *words]
    return [sys.executable, "-m", "rlhf.iterate", "experiment=quickstart", "compute.device=cpu", *words]


def over_nodes(run):
    return subprocess.Popen(
        command(run, "compute=ray", "compute.num_nodes=1"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def digests(run):
    found = {}
    for path in run.rglob("artifact.json"):
        if ".partial" not in str(path):
            found[str(path.parent.relative_to(run))] = json.loads(path.read_text(encoding="utf-8"))["digest"]
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run on this machine alone."""
    run = tmp_path_factory.mktemp("local") / "run"
    done = subprocess.run(command(run), cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


@pytest.fixture
def begun(local, tmp_path):
    """A run that has everything before its iterations."""
    run = tmp_path / "run"
    run.mkdir()
    for name in SHARED:
        shutil.copytree(local / name, run / name, copy_function=os.link)
    return run


def has_begun(run, stage):
    folder = run / stage
    partial = folder.with_name(f".{folder.name}.partial")
    if stage.endswith("dpo"):
        return any(partial.glob(".attempts/*/checkpoint-*/sealed.json")) or folder.exists()
    return any(partial.glob(".attempts/*/*")) or folder.exists()


def ended(process, run, local):
    said, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, said
    assert digests(run) == digests(local), said
    assert not list(run.rglob(".attempts"))
    return said


def test_three_nodes_make_what_one_machine_makes(local, tmp_path):
    with ray_nodes(3):
        ended(over_nodes(tmp_path / "run"), tmp_path / "run", local)


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_node_dies(local, begun, kill):
    rng = random.Random(1000 * SEED + kill)
    stage = STAGES[kill % len(STAGES)]
    with ray_nodes(3) as cluster:
        process = over_nodes(begun)
        wait_for(lambda: process.poll() is not None or has_begun(begun, stage), 1800, stage)
        time.sleep(rng.uniform(0, 3))
        victim = rng.choice(sorted(cluster.worker_nodes, key=lambda node: node.node_id))
        cluster.remove_node(victim, allow_graceful=False)
        # Another one takes its place, now and then.
        if rng.random() < 0.5:
            cluster.add_node(num_cpus=1)
        said = ended(process, begun, local)
    print(f"kill {kill} in {stage}:", *[line for line in said.splitlines() if "lost" in line], sep="\n")


def test_the_head_dies_and_the_same_command_goes_on(local, begun):
    with ray_nodes(2) as cluster:
        process = over_nodes(begun)
        wait_for(lambda: process.poll() is not None or has_begun(begun, "iteration_001/generate"), 1800)
        process.send_signal(signal.SIGKILL)
        process.wait()
        cluster.remove_node(cluster.head_node, allow_graceful=False)
    with ray_nodes(2):
        ended(over_nodes(begun), begun, local)
