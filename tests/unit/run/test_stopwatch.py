"""The seconds of a stage are those of all its attempts, and no part of what the stage is."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.config.schema import Config
from rlhf.errors import WorkerFailed
from rlhf.run import stopwatch as module
from rlhf.run.plan import Run
from rlhf.run.stopwatch import stopwatch
from tests.unit.run.test_plan import InProcess, make, prompts_file

__all__ = ["prompts_file"]
ROOT = Path(__file__).resolve().parents[3]


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Slow(InProcess):
    """A launcher whose attempts take their time, and fail but for the last."""

    def __init__(self, clock, *attempts):
        super().__init__()
        self.clock, self.attempts = clock, list(attempts)

    def launch(self, job, kind, shards):
        self.clock.now += self.attempts.pop(0)
        if self.attempts:
            raise WorkerFailed("died")
        return super().launch(job, kind, shards)


def test_the_seconds_of_all_attempts_add_up(tmp_path, prompts_file, clock):
    launcher = Slow(clock, 5.0, 7.0, 11.0)
    for _ in range(2):
        with pytest.raises(WorkerFailed):
            make(Run(tmp_path / "run", Config(), launcher), prompts_file)
    made = make(Run(tmp_path / "run", Config(), launcher), prompts_file)
    assert made.record["seconds"] == 23.0
    assert sorted(path.name for path in made.path.iterdir()) == [
        "artifact.json",
        "held_out.parquet",
        "train.parquet",
    ]


def test_how_long_it_took_changes_nothing_of_what_it_is(tmp_path, prompts_file, clock):
    long = make(Run(tmp_path / "long", Config(), Slow(clock, 500.0)), prompts_file)
    short = make(Run(tmp_path / "short", Config(), Slow(clock, 1.0)), prompts_file)
    assert long.record["seconds"] != short.record["seconds"]
    for part in ("identity", "digest", "files"):
        assert long.record[part] == short.record[part]


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xff", b"nan", b"inf", b"-5", b"[1]"])
def test_a_damaged_figure_counts_as_nothing(tmp_path, clock, content):
    (tmp_path / ".seconds").write_bytes(content)
    with stopwatch(tmp_path) as seconds:
        clock.now += 2.0
    assert seconds() == 2.0


KILLED = """
import sys, time
from pathlib import Path
from rlhf.run import stopwatch as module
module._EVERY_SECONDS = 0.01
with module.stopwatch(Path(sys.argv[1])) as seconds:
    print("begun", flush=True)
    time.sleep(60)
"""


def test_an_attempt_that_is_killed_counts(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "begun\n"
    while module._read(tmp_path / ".seconds") == 0.0:
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.communicate()
    before = module._read(tmp_path / ".seconds")
    assert before > 0
    with stopwatch(tmp_path) as seconds:
        assert seconds() >= before
    assert json.loads((tmp_path / ".seconds").read_text()) >= before
