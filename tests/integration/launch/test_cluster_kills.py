"""A quickstart over three Ray nodes equals the local one, whatever node dies when: `make test-cluster`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.cluster import nodes_at_work, ray_nodes
from tests.commands import digests, wait_for

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster`)")

KILLS = int(os.environ.get("RLHF_NODE_KILLS", "10"))
SEED = int(os.environ.get("RLHF_SEED", "0"))
pytestmark = pytest.mark.long("make test-cluster")

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
    # One worker a node: four nodes of two would hold eight engines in one machine's memory.
    few = [
        "num_iterations=1",
        "generate.shard_size=20",
        "dpo.save_steps=1",
        "compute.num_inference_workers=1",
        # Sums over other numbers of threads differ in their last bits, and a node has one core where this
        # machine has more.
        "compute.num_threads=1",
    ]
    words = [*few, f"run_dir={run}", *words]
    return [sys.executable, "-m", "rlhf.iterate", "experiment=quickstart", "compute.device=cpu", *words]


class Driver:
    """A run over the nodes, and what it says, each line with its time."""

    def __init__(self, run):
        self.run = run
        self.process = subprocess.Popen(
            command(run, "compute=ray", "compute.num_nodes=1"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip()))

    def has_begun(self, stage):
        """Whether a stage has work of a node, or is over."""
        folder = self.run / stage
        partial = folder.with_name(f".{folder.name}.partial")
        if self.process.poll() is not None or folder.exists():
            return True
        if stage.endswith("dpo"):
            return any(partial.glob(".attempts/*/checkpoint-*/sealed.json"))
        return any(partial.glob(".attempts/*/*"))

    def ended(self, local):
        """Wait for the end, and hold what was made against the local run."""
        self.process.wait(timeout=3600)
        self._reader.join()
        said = "\n".join(line for _, line in self.lines)
        assert self.process.returncode == 0, said
        assert digests(self.run) == digests(local), said
        assert not list(self.run.rglob(".attempts"))

    def said_since(self, began, *words):
        """The lines with one of some words, and the seconds after a time at which they came."""
        found = []
        for at, line in self.lines:
            if any(word in line for word in words):
                found.append(f"  after {at - began:5.1f} s: {line.strip()}")
        return "\n".join(found) or "  (nobody missed it)"


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


def test_three_nodes_make_what_one_machine_makes(local, tmp_path):
    with ray_nodes(3):
        Driver(tmp_path / "run").ended(local)


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_node_dies(local, begun, kill):
    rng = random.Random(1000 * SEED + kill)
    stage = STAGES[kill % len(STAGES)]
    with ray_nodes(3) as cluster:
        driver = Driver(begun)
        wait_for(lambda: driver.has_begun(stage), 1800, stage)
        time.sleep(rng.uniform(0, 2))
        wait_for(lambda: nodes_at_work(cluster, begun) or driver.process.poll() is not None)
        at_work = nodes_at_work(cluster, begun)
        assert at_work, "\n".join(line for _, line in driver.lines)
        victim = rng.choice(at_work)
        at = time.time()
        cluster.remove_node(victim, allow_graceful=False)
        # Another one takes its place, now and then.
        is_replaced = rng.random() < 0.5
        if is_replaced:
            cluster.add_node(num_cpus=1)
        driver.ended(local)
    print(
        f"kill {kill} in {stage}{', a node joins' if is_replaced else ''}; {len(digests(begun))} digests equal"
    )
    print(driver.said_since(at, "lost", "goes on from"))


def test_the_head_dies_and_the_same_command_goes_on(local, begun):
    with ray_nodes(2) as cluster:
        driver = Driver(begun)
        wait_for(lambda: driver.has_begun("iteration_001/generate"), 1800)
        driver.process.send_signal(signal.SIGKILL)
        driver.process.wait()
        cluster.remove_node(cluster.head_node, allow_graceful=False)
    with ray_nodes(2):
        Driver(begun).ended(local)
