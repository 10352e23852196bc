"""Stage processes for real: started, fed, killed, ended. The stage is `score` with a rule, which needs no
torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import startup
from rlhf.config.schema import ComputeConfig, Config
from rlhf.config.stage_configs import GenerativeStage, RuleStage
from rlhf.data.judge_files import load_judge_file
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, write_shard
from rlhf.errors import ConfigError, DataError, WorkerFailed
from rlhf.launch import node
from rlhf.launch.attending import Told
from rlhf.launch.local import LocalLauncher
from rlhf.launch.machine import environments, gpus
from rlhf.launch.server import HEAVY, LIGHT
from rlhf.run.artifact import Artifact
from rlhf.run.job import Kind
from rlhf.run.lock import hold_run
from rlhf.run.plan import Run
from tests.chat_server import fake_chat
from tests.stage_runner import config_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def candidates(folder, shards=6):
    folder.mkdir()
    for index in range(shards):
        row = {"id": f"{index}", "messages": [{"role": "user", "content": "Hi"}], "prompt_token_ids": [1]}
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


def score(folder, inputs, rule, token, workers=1, **values):
    return scored_by(RuleStage(rule=f"tests.unit.rules:{rule}"), folder, inputs, token, workers, **values)


def scored_by(config, folder, inputs, token, workers=1, hang_seconds=60.0, say=print, preload=False):
    cfg = Config()
    cfg.compute.hang_seconds = hang_seconds
    cfg.compute.num_inference_workers = workers
    cfg.compute.device = type(cfg.compute.device).cpu
    run = Run(folder, cfg, LocalLauncher(folder, token, preload=preload, told=Told(say=say)))
    return run.stage("score", "score", config, {"candidates": inputs})


def all_scores(artifact):
    return [row["scores"][0] for row in read_all_rows(artifact.path)]


def test_shards_come_out_in_order_and_counted(tmp_path):
    inputs = candidates(tmp_path / "in")
    with hold_run(tmp_path / "run", print) as token:
        artifact = score(tmp_path / "run", inputs, "length", token)
    assert all_scores(artifact) == [1, 2, 3, 4, 5, 6]
    assert artifact.counts["prompts"] == 6


def test_a_log_says_when_its_worker_was_at_work(tmp_path):
    inputs = candidates(tmp_path / "in")
    before = time.time()
    with hold_run(tmp_path / "run", print) as token:
        score(tmp_path / "run", inputs, "process_id", token, workers=2)
    stages = startup.stage_seconds(tmp_path / "run")
    assert [(stage.name, stage.engine) for stage in stages] == [("score", 0.0)], "a rule is no engine"
    began, ended = startup._at_work(tmp_path / "run", "score")
    assert before <= began < ended <= time.time()


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


def test_a_server_that_is_given_up_is_told_once_and_what_it_answered_is_kept(tmp_path):
    def behave(number, body):
        return (200, {}, "Rating: 5") if number < 2 or is_mended else (429, {"Retry-After": "99999999"}, {})

    is_mended = False
    inputs = candidates(tmp_path / "in")
    template = load_judge_file("score_1_10")
    with hold_run(tmp_path / "run", print) as token, fake_chat(behave) as fake:
        config = GenerativeStage(judge_file=template, url=fake.url, served_model="m", concurrency=1)
        with pytest.raises(WorkerFailed) as failure:
            scored_by(config, tmp_path / "run", inputs, token)
        lines = str(failure.value).splitlines()
        assert lines[0].count("the next attempt would be in 99999999 s") == 1
        assert len(lines) == 2 and lines[1].startswith("The whole log: ")
        is_mended = True
        scored_by(config, tmp_path / "run", inputs, token)
        assert len(fake.answered) == 6 and set(fake.answered.values()) == {1}


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


@pytest.fixture
def forks():
    """The server that workers are forked from, started anew: another test's has the environment of then."""
    LIGHT.stop()
    yield LIGHT
    LIGHT.stop()


@pytest.fixture(params=[False, True], ids=["spawned", "forked"])
def preload(request, forks):
    """Both ways of starting a worker."""
    return request.param


def remembered(marker):
    return [int(line) for line in marker.read_text().split()]


@pytest.mark.parametrize("rule", ["child", "stubborn_child", "daemon"])
def test_what_a_rule_has_started_is_gone_after_a_clean_end(tmp_path, monkeypatch, preload, rule):
    monkeypatch.setenv("RULE_MARKER", str(tmp_path / "pids"))
    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    inputs = candidates(tmp_path / "in", shards=2)
    with hold_run(tmp_path / "run", print) as token:
        artifact = score(tmp_path / "run", inputs, rule, token, workers=2, preload=preload)
    pids = remembered(tmp_path / "pids")
    assert len(all_scores(artifact)) == 2 and len(pids) >= 2
    assert [pid for pid in pids if is_alive(pid)] == []
    # Nothing else is ended: neither a process beside the run nor one of the driver itself.
    assert is_alive(bystander.pid)
    bystander.kill()
    bystander.wait()


def test_what_a_rule_has_started_is_gone_after_an_error(tmp_path, monkeypatch, preload):
    monkeypatch.setenv("RULE_MARKER", str(tmp_path / "pids"))
    inputs = candidates(tmp_path / "in", shards=1)
    with hold_run(tmp_path / "run", print) as token, pytest.raises(WorkerFailed) as failure:
        score(tmp_path / "run", inputs, "daemon_then_raises", token, preload=preload)
    assert [pid for pid in remembered(tmp_path / "pids") if is_alive(pid)] == []
    # The error's own lines are told from ours.
    forged = [line for line in str(failure.value).splitlines() if "✓ forged" in line]
    assert forged and all(line.startswith("  | ") for line in forged)


def test_what_a_killed_worker_has_started_is_gone(tmp_path, monkeypatch, forks):
    """A worker that is spawned has no parent of ours but the driver, which adopts nobody."""
    monkeypatch.setenv("RULE_MARKER", str(tmp_path / "pids"))
    inputs = candidates(tmp_path / "in", shards=1)
    with hold_run(tmp_path / "run", print) as token, pytest.raises(WorkerFailed, match="killed by signal 9"):
        score(tmp_path / "run", inputs, "daemon_then_killed", token, preload=True)
    assert [pid for pid in remembered(tmp_path / "pids") if is_alive(pid)] == []


def test_a_killed_forkserver_is_called_that_and_the_same_command_goes_on(tmp_path, monkeypatch, forks):
    monkeypatch.setenv("RULE_MARKER", str(tmp_path / "pid"))
    inputs = candidates(tmp_path / "in")
    with hold_run(tmp_path / "run", print) as token:
        with pytest.raises(WorkerFailed) as failure:
            score(tmp_path / "run", inputs, "server_killed_once", token, workers=2, preload=True)
        pid = int((tmp_path / "pid").read_text())
        for part in (
            f"the forkserver, which workers are started from, is gone: process {pid} was killed by",
            "signal 9",
            "compute.preload=false",
            "same command goes on",
        ):
            assert part in str(failure.value)
        # A new one is started by itself.
        artifact = score(tmp_path / "run", inputs, "server_killed_once", token, preload=True)
    assert all_scores(artifact) == [1, 2, 3, 4, 5, 6]


def test_a_forkserver_that_dies_while_it_imports_is_called_that(tmp_path, monkeypatch, forks):
    monkeypatch.setattr(forks, "preloaded", ["tests.unit.launch.dying_preload"])
    inputs = candidates(tmp_path / "in")
    with hold_run(tmp_path / "run", print) as token, pytest.raises(WorkerFailed) as failure:
        score(tmp_path / "run", inputs, "length", token, preload=True)
    assert "the forkserver, which workers are started from, is gone" in str(failure.value)
    assert "killed by signal 9" in str(failure.value)


def test_a_stage_without_an_engine_waits_for_no_import_of_one(tmp_path, monkeypatch, forks):
    monkeypatch.setattr(HEAVY, "warm_up", lambda log: pytest.fail("the heavy imports were begun"))
    inputs = candidates(tmp_path / "in", shards=2)
    with hold_run(tmp_path / "run", print) as token:
        artifact = score(tmp_path / "run", inputs, "has_torch", token, preload=True)
    assert all_scores(artifact) == [0, 0]


SCRIPT = """
import sys
import hydra
from pathlib import Path
from rlhf.run.artifact import Artifact
from rlhf.run.lock import hold_run
from tests.unit.launch.test_local import all_scores, score
print("main is run")
if __name__ == "__main__":
    run, candidates, preload = sys.argv[1:]
    with hold_run(Path(run), print) as token:
        artifact = score(Path(run), Artifact(Path(candidates), "d"), "has_main", token, preload=preload == "True")
    print("scores", all_scores(artifact))
"""


@pytest.mark.parametrize("way", ["script", "module"])
def test_a_worker_does_not_import_the_main_module_of_its_driver(tmp_path, preload, way):
    """Neither a script of a person's own nor a command of ours, with all that it imports, is run again."""
    candidates(tmp_path / "in", shards=1)
    (tmp_path / "driver_script.py").write_text(SCRIPT)
    how = ["-m", "driver_script"] if way == "module" else [tmp_path / "driver_script.py"]
    done = subprocess.run(
        [sys.executable, *how, tmp_path / "run", tmp_path / "in", str(preload)],
        env=dict(os.environ, PYTHONPATH=f"{ROOT}:{tmp_path}"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "scores [0.0]" in done.stdout
    logs = "".join(log.read_text() for log in (tmp_path / "run" / "logs").iterdir())
    assert "main is run" not in logs


def test_a_worker_prints_whatever_the_locale(tmp_path, monkeypatch):
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    inputs = candidates(tmp_path / "in")
    with hold_run(tmp_path / "run", print) as token:
        artifact = score(tmp_path / "run", inputs, "prints", token)
    assert all_scores(artifact) == [1, 2, 3, 4, 5, 6]


def test_a_worker_whose_log_is_full_goes_on(tmp_path):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "score.rank0.log").symlink_to("/dev/full")
    inputs = candidates(tmp_path / "in")
    with hold_run(tmp_path / "run", print) as token:
        artifact = score(tmp_path / "run", inputs, "prints", token)
    assert all_scores(artifact) == [1, 2, 3, 4, 5, 6]


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
        score(folder, Artifact(Path(sys.argv[2]), "d"), "daemon_then_sleeps", token)
if __name__ == "__main__":
    guarded(main)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
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
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where the tests have a nohup
    )
    wait_for(lambda: marker.exists() and len(marker.read_text().splitlines()) == 2)
    driver.send_signal(number)
    assert driver.wait(10) == code
    for pid in remembered(marker):
        wait_for(lambda pid=pid: not is_alive(pid))


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
    monkeypatch.setattr(node, "GRACE_SECONDS", grace)
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


def test_no_process_makes_the_folder_of_a_refused_run_again(tmp_path):
    log = tmp_path / "run" / "logs" / "preload.log"
    # In a process of its own, whose output is then lost.
    script = f"from rlhf.launch.worker import redirect_output; redirect_output({str(log)!r}); print('lost')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
