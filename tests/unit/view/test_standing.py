"""Whether a run goes on, has died or is finished, and what is told of one without notes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf import status as module
from rlhf.config.view_tools import StatusTool
from rlhf.data.shards import write_atomic
from rlhf.run.console import Console
from rlhf.run.file_system import FileSystem
from rlhf.run.lock import DRIVER_LOCK, driver_of, hold_run
from rlhf.run.progress import State, read_progress, write_progress
from rlhf.view import standing
from rlhf.view.run_folder import open_run
from rlhf.view.standing import standing_of

ROOT = Path(__file__).resolve().parents[3]


DRIVER = """
import sys, time
from pathlib import Path
from rlhf.run.console import Console
from rlhf.run.lock import hold_run
folder = Path(sys.argv[1])
with hold_run(folder, print), Console(folder, recorded=True) as console:
    console.plan(["prompts", "iteration_001/dpo", "iteration_001/export"], {})
    console.begin("iteration_001/dpo")
    console.progress(3, 8, "loss 0.6")
    print("begun", flush=True)
    time.sleep(600)
"""


def lines_of(folder):
    return standing_of(open_run(str(folder))).lines


@pytest.fixture
def driver(run):
    """A driver at work in a process of its own."""
    (run / "iteration_001" / "dpo").rename(run / "iteration_001" / ".dpo.partial")
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, run],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


def test_a_run_that_goes_on(run, driver):
    standing_now = standing_of(open_run(str(run)))
    assert f"goes on, process {driver.pid} on " in standing_now.lines[0] and len(standing_now.lines) == 1
    assert standing_now.progress.running.name == "iteration_001/dpo"
    assert standing_now.progress.stage("prompts").state is State.done  # as the folder has it


def test_looking_takes_no_lock(run, driver, monkeypatch):
    def flock(file, operation):
        raise AssertionError("a driver that begins just then would be sent away")

    monkeypatch.setattr(fcntl, "flock", flock)
    files = [path for path in run.rglob("*") if path.name != "progress.json"]
    before = [os.stat(path).st_mtime_ns for path in files]
    module.status(StatusTool(str(run)))
    assert [os.stat(path).st_mtime_ns for path in files if path != run / "logs"] == [
        time for path, time in zip(files, before, strict=True) if path != run / "logs"
    ]


def test_a_run_that_was_killed(run, driver):
    driver.kill()
    driver.wait()
    standing_now = standing_of(open_run(str(run)))
    assert "died in iteration_001/dpo, last sign " in standing_now.lines[0]
    assert f"process {driver.pid} on " in standing_now.lines[0]
    assert f"python -m rlhf.iterate run_dir={run}" in standing_now.lines[1]
    assert standing_now.progress.stage("iteration_001/dpo").state is State.unfinished
    assert standing_now.notes == ["… iteration_001/dpo: 0.0 s of work, kept: nothing"]


def test_the_number_of_a_driver_may_be_anothers_by_now(run, driver):
    driver.kill()
    driver.wait()
    holder = json.loads((run / DRIVER_LOCK).read_text())
    (run / DRIVER_LOCK).write_text(json.dumps(holder | {"pid": str(os.getppid())}))
    assert "died in" in lines_of(run)[0]


@pytest.mark.parametrize(
    ("age", "said"), [(2, "goes on, process"), (500, "cannot be seen from here, last sign")]
)
def test_a_driver_on_another_machine(run, age, said):
    with hold_run(run, print), Console(run, recorded=True) as console:
        console.plan(["iteration_001/dpo"], {})
        console.begin("iteration_001/dpo")
        noted = read_progress(run)
    noted.written_at = time.time() - age
    write_progress(run, noted)
    holder = json.loads((run / DRIVER_LOCK).read_text())
    (run / DRIVER_LOCK).write_text(json.dumps(holder | {"host": "node7", "ended": ""}))
    line = lines_of(run)[0]
    assert said in line and f"on node7 (started {holder['started']})" in line
    assert "cannot be seen from here" in line


def test_what_takes_a_run_over_is_said_where_locks_do_not_reach(run, monkeypatch):
    with hold_run(run, print), Console(run, recorded=True) as console:
        console.plan(["iteration_001/dpo"], {})
        noted = read_progress(run)
    noted.written_at = time.time() - 500
    write_progress(run, noted)
    holder = json.loads((run / DRIVER_LOCK).read_text()) | {"host": "node7", "ended": ""}
    (run / DRIVER_LOCK).write_text(json.dumps(holder))
    assert "take_over" not in lines_of(run)[1]
    monkeypatch.setattr(standing, "file_system_of", lambda folder: FileSystem("nfs4", "/mnt"))
    assert lines_of(run)[1].endswith(f" run_dir={run} take_over=node7:{holder['pid']}")


def test_a_driver_that_has_ended_is_not_at_work_though_its_process_lives(run):
    with hold_run(run, print):
        assert driver_of(run).is_alive
    assert driver_of(run).is_alive is False


def test_an_old_record_of_this_host_is_told_by_who_has_the_lock_open(run):
    with hold_run(run, print):
        holder = json.loads((run / DRIVER_LOCK).read_text())
        old = {key: holder[key] for key in ("pid", "host", "token")}
        (run / DRIVER_LOCK).write_text(json.dumps(old))
        assert driver_of(run).is_alive and driver_of(run).started == ""
    (run / DRIVER_LOCK).write_text(json.dumps(old))
    assert driver_of(run).is_alive is False


@pytest.mark.parametrize(
    "text", ["", "[]", '{"pid": 1}', '{"pid": "x"}', "\xff", '{"pid": "99999999999999"}']
)
def test_an_odd_lock_file_is_no_driver_at_work(run, text):
    (run / DRIVER_LOCK).write_text(text, encoding="latin-1")
    assert "goes on" not in lines_of(run)[0]


def test_how_a_run_ended_is_said(run):
    def fail():
        with hold_run(run, print), Console(run, recorded=True) as console:
            console.plan(["iteration_001/dpo"], {})
            raise KeyboardInterrupt("stopped\x1b[2J")

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "failed: stopped\\x1b[2J (0." in lines_of(run)[0]
    with hold_run(run, print), Console(run, recorded=True) as console:
        console.plan(["iteration_001/dpo"], {})
    assert ": finished " in lines_of(run)[0]
    (run / "best").unlink()
    assert "finished what it was asked for" in lines_of(run)[0]


def test_an_older_run_is_told_by_its_folder(run, capsys):
    module.status(StatusTool(str(run)))
    out = capsys.readouterr().out
    assert out.startswith(f"{run}: finished\n")
    assert "dpo" in out and "π2: score " in out and "~" not in out


def test_what_is_damaged_or_left_is_said(run, capsys):
    shutil.rmtree(run / "logs", ignore_errors=True)
    (run / "iteration_001" / "pair" / "artifact.json").write_text("{}")
    partial = run / "iteration_001" / ".dpo.partial"
    (run / "iteration_001" / "dpo").rename(partial)
    (partial / "artifact.json").unlink()
    (partial / ".seconds").write_text("61.5")
    (partial / "checkpoint-9").mkdir()
    (partial / "checkpoint-10").mkdir()
    write_atomic(run / "summary.json", b'{"iterations": [{"iteration": "\\u001b[2J"}]}')
    module.status(StatusTool(str(run)))
    out = capsys.readouterr().out
    assert "nobody works on it, and its last driver has left no notes" in out
    assert "✗ iteration_001/pair cannot be used: " in out
    assert "… iteration_001/dpo: 61.5 s of work, kept: checkpoint-10" in out
    assert "\x1b" not in out


def test_a_run_that_was_just_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert "nobody works on it" in lines_of(tmp_path)[0]
