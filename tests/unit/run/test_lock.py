"""Fencing: who may work on a run folder."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import ConfigError, RunInUse, WorkerFailed
from rlhf.run import lock
from rlhf.run.lock import DRIVER_LOCK, hold_run, join_run

ROOT = Path(__file__).resolve().parents[3]


def other_process(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


HOLD = """
import sys
from functools import partial
from pathlib import Path
from rlhf.run.lock import hold_run
with hold_run(Path(sys.argv[1]), partial(print, flush=True)) as token:
    print(token, flush=True)
    sys.stdin.readline()
"""
JOIN = """
import sys
from pathlib import Path
from rlhf.run.lock import join_run
held = join_run(Path(sys.argv[1]), sys.argv[2])
print("joined", flush=True)
sys.stdin.readline()
"""


def test_a_second_driver_is_refused_and_told_who_holds_the_run(tmp_path):
    first = other_process(HOLD, tmp_path)
    assert first.stdout.readline().strip()
    with pytest.raises(RunInUse, match=f"process {first.pid} "), hold_run(tmp_path, print):
        pass
    first.communicate("\n")
    with hold_run(tmp_path, print) as token:
        assert token


def test_a_killed_driver_leaves_nothing_behind(tmp_path):
    first = other_process(HOLD, tmp_path)
    first.stdout.readline()
    first.kill()
    first.communicate()
    with hold_run(tmp_path, print):
        assert json.loads((tmp_path / DRIVER_LOCK).read_text())["pid"] == str(os.getpid())


def test_a_new_driver_waits_for_the_old_ones_workers(tmp_path):
    with hold_run(tmp_path, print) as token:
        worker = other_process(JOIN, tmp_path, token)
        assert worker.stdout.readline() == "joined\n"
    second = other_process(HOLD, tmp_path)
    said = b""
    while not said.endswith(b"\n"):  # no byte more, for the next line must not be there
        said += os.read(second.stdout.fileno(), 1)
    assert said.startswith(b"waiting")
    assert not select.select([second.stdout.fileno()], [], [], 0.5)[0], "it did not wait"
    worker.communicate("\n")
    assert len(second.stdout.readline().strip()) == 32
    second.communicate("\n")


def test_a_worker_that_comes_too_late_leaves(tmp_path):
    with hold_run(tmp_path, print) as old:
        pass
    with hold_run(tmp_path, print) as new:
        with pytest.raises(WorkerFailed, match="another driver"):
            join_run(tmp_path, old)
        join_run(tmp_path, new).close()


@pytest.mark.parametrize("content", ["5", "null", "[1]", '"x"', "[[1, 2]]", "{", "[" * 100_000])
def test_a_lock_file_that_holds_anything_else_names_nobody(tmp_path, content):
    with hold_run(tmp_path, print):
        (tmp_path / DRIVER_LOCK).write_text(content)
        with pytest.raises(RunInUse, match=r"process \? on \?"), hold_run(tmp_path, print):
            pass
        with pytest.raises(WorkerFailed):
            join_run(tmp_path, "token")


def refuse(folder, made=(), error=ConfigError):
    """A driver that writes some files, then is refused."""

    def work():
        for name in ("logs/driver.log", ".digests.json", "config.yaml", *made):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x")
        (folder / "iteration_000" / "held_out").mkdir(parents=True, exist_ok=True)
        raise error("refused")

    with pytest.raises(error), hold_run(folder, print):
        work()


def test_a_refused_run_leaves_no_folder_that_was_not_there(tmp_path):
    refuse(tmp_path / "runs" / "sweep" / "job")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty")
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_folders_that_hold_something_else_by_then_stay(tmp_path):
    (tmp_path / "runs").mkdir()
    refuse(tmp_path / "runs" / "sweep" / "job", ["../sibling/config.yaml"])
    assert [path.name for path in (tmp_path / "runs" / "sweep").iterdir()] == ["sibling"]


@pytest.mark.parametrize("work", ["prompts/artifact.json", ".prompts.partial/.identity.json", "notes.txt"])
def test_a_refused_run_keeps_what_it_has(tmp_path, work):
    refuse(tmp_path / "run", [work])
    assert (tmp_path / "run" / work).exists() and (tmp_path / "run" / "config.yaml").exists()


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    refuse(tmp_path)
    assert (tmp_path / "mine.txt").exists() and (tmp_path / "logs" / "driver.log").exists()


def test_a_run_that_failed_otherwise_keeps_its_logs(tmp_path):
    refuse(tmp_path / "run", error=WorkerFailed)
    assert (tmp_path / "run" / "logs" / "driver.log").exists()


def test_a_stopped_worker_of_a_dead_driver_is_named_with_what_to_do(tmp_path, monkeypatch):
    """It is woken here as the message says, which is what lets the next driver in: else this would not end."""
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(lock, "REMINDER_SECONDS", 0.0)
    with hold_run(tmp_path, print) as token:
        worker = other_process(JOIN, tmp_path, token)
        assert worker.stdout.readline() == "joined\n"
    worker.send_signal(signal.SIGSTOP)
    os.waitpid(worker.pid, os.WUNTRACED)
    said = []

    def listen(text):
        said.append(text)
        # Reminded once, so said twice.
        if len(said) == 3:
            worker.send_signal(signal.SIGCONT)
            worker.stdin.write("\n")
            worker.stdin.flush()

    with hold_run(tmp_path, listen):
        pass
    assert said[0].startswith("waiting for the processes")
    for text in said[1:3]:
        assert f"process {worker.pid} (stopped by a signal)" in text
        assert f"kill -9 {worker.pid}" in text and f"kill -CONT {worker.pid}" in text
        assert str(os.getpid()) not in text.split()
    worker.communicate()


def test_a_worker_that_still_computes_is_named_too(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    with hold_run(tmp_path, print) as token:
        worker = other_process(JOIN, tmp_path, token)
        assert worker.stdout.readline() == "joined\n"
    said = []

    def listen(text):
        said.append(text)
        if len(said) == 2:
            worker.stdin.write("\n")
            worker.stdin.flush()

    with hold_run(tmp_path, listen):
        pass
    assert f"process {worker.pid} (waiting): it should leave by itself" in said[1]
    worker.communicate()


def test_a_worker_that_cannot_be_seen_is_looked_for_where_its_driver_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(
        lock, "holders_of", lambda path: [os.getpid()]
    )  # as on another machine of a shared disk
    with hold_run(tmp_path, print) as token:
        worker = other_process(JOIN, tmp_path, token)
        worker.stdout.readline()
    holder = json.loads((tmp_path / DRIVER_LOCK).read_text()) | {"host": "node7\x1b\n", "pid": "4711"}
    (tmp_path / DRIVER_LOCK).write_text(json.dumps(holder))
    said = []

    def listen(text):
        said.append(text)
        if len(said) == 2:
            worker.communicate("\n")

    with hold_run(tmp_path, listen):
        pass
    assert "The last driver was process 4711 on node7\\x1b\\n, started 20" in said[1]
    assert "UTC: look there" in said[1] and "rm " not in said[1]
