"""Stage processes for real: started, fed, killed, ended. The stage is `score` with a rule, which needs no
torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.config.schema import ComputeConfig, Config
from rlhf.config.stage_configs import RuleStage
from rlhf.data.records import CANDIDATES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, write_shard
from rlhf.errors import ConfigError, DataError, WorkerFailed
from rlhf.launch import local
from rlhf.launch.local import LocalLauncher
from rlhf.launch.machine import environments, gpus
from rlhf.run.artifact import Artifact
from rlhf.run.job import Kind
from rlhf.run.lock import hold_run
from rlhf.run.plan import Run
from tests.stage_runner import config_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def candidates(folder, shards=6):
    folder.mkdir()
    for index in range(shards):
        row = {"id": f"{index}", "messages": [], "prompt_token_ids": [1]}
        row["candidates"] = [
            {
                "token_ids": [1],
                "text": "x" * (index + 1),
                "finish_reason": "stop",
                "logprob": 0,
                "seed": 1,
                "temperature": 1,
            }
        ]
        write_shard(folder / shard_name(index), CANDIDATES_SCHEMA, [row])
    return Artifact(folder, "d")


def score(folder, inputs, rule, token, workers=1, hang_seconds=60.0, say=print):
    cfg = Config()
    cfg.compute.hang_seconds = hang_seconds
    cfg.compute.num_inference_workers = workers
    cfg.compute.device = type(cfg.compute.device).cpu
    run = Run(folder, cfg, LocalLauncher(folder, token, preload=False, say=say))
    return run.stage("score", "score", RuleStage(rule=f"tests.unit.rules:{rule}"), {"candidates": inputs})


def all_scores(artifact):
    return [row["scores"][0] for row in read_all_rows(artifact.path)]


def test_shards_come_out_in_order_and_counted(tmp_path):
    inputs = candidates(tmp_path / "in")
    with hold_run(tmp_path / "run", print) as token:
        artifact = score(tmp_path / "run", inputs, "length", token)
    assert all_scores(artifact) == [1, 2, 3, 4, 5, 6]
    assert artifact.counts["prompts"] == 6


def test_idle_workers_take_the_next_shard_and_none_is_done_twice(tmp_path):
    inputs = candidates(tmp_path / "in", shards=12)
    with hold_run(tmp_path / "run", print) as token:
        artifact = score(tmp_path / "run", inputs, "process_id", token, workers=2)
    assert len(all_scores(artifact)) == 12
    assert len(set(all_scores(artifact))) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_raises_ends_the_stage_with_its_message_and_log(tmp_path, workers):
    inputs = candidates(tmp_path / "in")
    with hold_run(tmp_path / "run", print) as token, pytest.raises(WorkerFailed) as failure:
        score(tmp_path / "run", inputs, "broken", token, workers)
    assert "a rule that divides by zero" in str(failure.value)
    assert "rules.py" in str(failure.value)
    log = str(failure.value).rsplit(" ", 1)[1]
    assert "ZeroDivisionError" in Path(log).read_text()


def test_an_error_of_the_user_keeps_its_kind(tmp_path):
    inputs = candidates(tmp_path / "in")
    with (
        hold_run(tmp_path / "run", print) as token,
        pytest.raises(DataError, match="does not like this response"),
    ):
        score(tmp_path / "run", inputs, "bad_data", token)


def test_a_killed_worker_is_named_and_its_finished_shards_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RULE_MARKER", str(tmp_path / "calls"))
    inputs = candidates(tmp_path / "in")
    with hold_run(tmp_path / "run", print) as token:
        with pytest.raises(WorkerFailed, match="killed by signal 9"):
            score(tmp_path / "run", inputs, "killed_once", token)
        artifact = score(tmp_path / "run", inputs, "killed_once", token)
    # the sixth call died before it returned; the five shards before it were not made again
    assert all_scores(artifact) == [0, 1, 2, 3, 4, 6]


def test_a_worker_that_hangs_is_named_stopped_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("RULE_MARKER", str(tmp_path / "calls"))
    inputs, said = candidates(tmp_path / "in"), []
    with hold_run(tmp_path / "run", print) as token:
        with pytest.raises(WorkerFailed) as failure:
            score(tmp_path / "run", inputs, "stops_once", token, hang_seconds=20.0, say=said.append)
        log = str(tmp_path / "run" / "logs" / "score.rank0.log")
        parts = ["score hangs", "worker score.0", "stopped by a signal", "last heard of: shard 1 begun", log]
        for part in [*parts, "compute.hang_seconds=20", "same command goes on"]:
            assert part in str(failure.value)
        assert 1 <= len(said) <= 3 and all(part in said[-1] for part in ("score waits for", *parts[1:])), said
        pid = int(str(failure.value).split("(process ")[1].split(",")[0])
        wait_for(lambda: not is_alive(pid))
        artifact = score(tmp_path / "run", inputs, "stops_once", token)
    assert all_scores(artifact) == [0, 2, 3, 4, 5, 6]


DRIVER = """
import sys
from pathlib import Path
from rlhf.command.line import guarded
from rlhf.run.lock import hold_run
from rlhf.run.artifact import Artifact
from tests.unit.launch.test_local import score
def main():
    folder = Path(sys.argv[1])
    with hold_run(folder, print) as token:
        score(folder, Artifact(Path(sys.argv[2]), "d"), "sleeps", token)
if __name__ == "__main__":
    guarded(main)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_no_worker_outlives_its_driver(tmp_path, number, code):
    candidates(tmp_path / "in")
    marker, script = tmp_path / "pid", tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = dict(os.environ, RULE_MARKER=str(marker), PYTHONPATH=str(ROOT))
    driver = subprocess.Popen(
        [sys.executable, script, tmp_path / "run", tmp_path / "in"],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    worker = int(wait_for(lambda: marker.exists() and marker.read_text()))
    driver.send_signal(number)
    assert driver.wait(10) == code
    wait_for(lambda: not is_alive(worker))


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def is_alive(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("seconds", "grace"), [("3", 3.0), ("300", 0.05)], ids=["leaves late", "stays"])
def test_the_next_stage_begins_when_the_children_of_a_worker_are_gone_too(
    tmp_path, monkeypatch, seconds, grace
):
    monkeypatch.setenv("RULE_MARKER", str(tmp_path / "child"))
    monkeypatch.setenv("RULE_SECONDS", seconds)
    monkeypatch.setattr(local, "GRACE_SECONDS", grace)
    inputs = candidates(tmp_path / "in", shards=1)
    with hold_run(tmp_path / "run", print) as token:
        score(tmp_path / "run", inputs, "leaves_a_child", token)
    assert not is_alive(int((tmp_path / "child").read_text()))


def compute(**changes):
    return config_of(ComputeConfig, None, **changes)


def test_gpus_are_those_that_are_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    assert gpus(compute()) == ["0", "2", "5"]
    assert gpus(compute(num_gpus=2)) == ["0", "2"]
    assert gpus(compute(device="cpu")) == []
    with pytest.raises(ConfigError, match="num_gpus=4, but 3"):
        gpus(compute(num_gpus=4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="no GPU is visible"):
        gpus(compute(device="cuda"))


def test_inference_workers_share_the_gpus_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    shares = [env["CUDA_VISIBLE_DEVICES"] for env in environments(Kind.inference, compute(), 2, 100)]
    assert shares == ["0,1", "2,3"]
    assert len(environments(Kind.inference, compute(), 1, 3)) == 3  # no more workers than shards
    with pytest.raises(ConfigError, match="tensor_parallel_size=8"):
        environments(Kind.inference, compute(), 8, 100)


def test_training_ranks_form_one_group(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    ranks = environments(Kind.training, compute(), 1, 0)
    assert [(env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) for env in ranks] == [
        ("0", "0", "2"),
        ("1", "1", "2"),
    ]
    assert len({env["MASTER_PORT"] for env in ranks}) == 1
    assert {env["CUDA_VISIBLE_DEVICES"] for env in ranks} == {"4,5"}


def test_on_a_cpu_there_is_one_worker_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(environments(Kind.inference, compute(), 1, 10)) == 1
    two = environments(Kind.training, compute(num_training_ranks=2, num_threads=3), 1, 0)
    assert [env["OMP_NUM_THREADS"] for env in two] == ["3", "3"]
    assert {env["CUDA_VISIBLE_DEVICES"] for env in two} == {""}
