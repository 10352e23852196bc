"""How long a worker may be silent, what is said of it then, and what is said of one that is gone."""

from __future__ import annotations

import signal
import time
from types import SimpleNamespace

import pytest

from rlhf.config.stage_configs import PairSettings, StageCompute
from rlhf.errors import DataError, WorkerFailed
from rlhf.launch import local
from rlhf.launch.handout import Handout
from rlhf.launch.local import LocalLauncher
from rlhf.run.job import Job

NOW = 1000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: NOW, sleep=time.sleep))


def job(hang_seconds):
    return Job("pair", "pair", PairSettings(), {}, "out", 42, StageCompute(hang_seconds=hang_seconds))


def worker(silence=0.0, patience=10.0, exitcode=None):
    """A worker that has said nothing for so long; its process is none, so that its state is `gone`."""
    process = SimpleNamespace(pid=2**30, name="pair.0", exitcode=exitcode)
    made = local._WorkerProcess(process, None, "a.log", patience, heard_at=NOW - silence)
    return made


@pytest.mark.parametrize(
    ("hang_seconds", "patience"),
    [(0, 600), (1, 0.25), (400, 100), (2400, 600), (2404, 600), (14400, 600)],
)
def test_a_quarter_of_the_limit_but_not_more_than_ten_minutes(hang_seconds, patience):
    assert local._patience(job(hang_seconds)) == patience


@pytest.mark.parametrize(("silence", "patience", "lines"), [(9.9, 10.0, 0), (10.0, 10.0, 1), (11.0, 10.0, 1)])
def test_silence_is_said_once_and_again_after_twice_as_long(tmp_path, silence, patience, lines):
    said = []
    launcher = LocalLauncher(tmp_path, "token", say=said.append)
    quiet, talking = worker(silence, patience), worker(1.0, 30.0)
    for _ in range(2):
        launcher._watch(job(100), [quiet, talking])
    assert len(said) == lines
    if lines:
        assert "pair waits for" in said[0] and said[0].count("process 1073741824, gone") == 2
        assert f"silent for {silence:.0f} s, last heard of: starting or loading; log: a.log" in said[0]
        assert (quiet.patience, talking.patience) == (2 * silence, 30.0)


@pytest.mark.parametrize(
    ("silence", "hang_seconds", "fails"), [(99.9, 100, False), (100.0, 100, True), (1e9, 0, False)]
)
def test_a_worker_is_given_up_after_the_limit(tmp_path, silence, hang_seconds, fails):
    launcher = LocalLauncher(tmp_path, "token", say=lambda text: None)
    if fails:
        with pytest.raises(WorkerFailed, match=r"compute\.hang_seconds=100"):
            launcher._watch(job(hang_seconds), [worker(silence)])
    else:
        launcher._watch(job(hang_seconds), [worker(silence)])


@pytest.mark.parametrize(
    ("code", "phrase", "is_killed"),
    [
        (None, "ended with exit code None", False),
        (0, "ended with exit code 0.", False),
        (1, "ended with exit code 1.", False),
        (-signal.SIGHUP, "was killed by signal 1.", False),
        (-signal.SIGTERM, "was killed by signal 15.", False),
        (-signal.SIGKILL, "was killed by signal 9 (", True),
    ],
)
def test_a_death_is_told_by_its_code(code, phrase, is_killed):
    text = str(local._death(job(1), worker(exitcode=code)))
    assert phrase in text and ("memory runs out" in text) == is_killed


def test_the_users_errors_keep_their_kind_and_others_show_the_end_of_their_traceback():
    error = local._failure(job(1), worker(), ("DataError", "no such row", "…"))
    assert isinstance(error, DataError) and str(error) == "no such row"
    trace = "\n".join(f"line {number}" for number in range(20)) + "\n\n"
    lines = str(local._failure(job(1), worker(), ("KeyError", "k", trace))).splitlines()
    assert lines[0] == "pair failed: k"
    # With a mark before each, so that none passes for a line of ours.
    shown = [line for line in lines if line.startswith("  | ")]
    assert shown == [f"  | line {number}" for number in range(8, 20)]
    assert lines[-1] == "The whole log: a.log"


class Pipe:
    """The driver's end of a pipe: messages that wait in it, and whether its other end is closed."""

    def __init__(self, *messages, is_closed=False):
        self.messages, self.is_closed = list(messages), is_closed

    def poll(self):
        return bool(self.messages)

    def recv(self):
        if not self.messages:
            raise EOFError
        return self.messages.pop(0)

    def send(self, message):
        if self.is_closed:
            raise BrokenPipeError
        self.messages.append(message)


@pytest.mark.parametrize(
    ("is_alive", "messages", "received"),
    [
        (True, [("next", None)], ("next", None)),
        (True, [], ("closed", None)),
        # What a worker said before it died is heard; then nothing is waited for.
        (False, [("outcome", 1)], ("outcome", 1)),
        (False, [], ("closed", None)),
    ],
)
def test_a_message_of_a_dead_worker_is_heard(is_alive, messages, received):
    dead_or_alive = worker()
    dead_or_alive.process.is_alive = lambda: is_alive
    dead_or_alive.pipe = Pipe(*messages)
    assert local._receive(dead_or_alive) == received
    assert dead_or_alive.is_open == (received[0] != "closed")


def test_a_worker_that_cannot_be_told_is_closed():
    closed, still_open = worker(), worker()
    closed.pipe, still_open.pipe = Pipe(is_closed=True), Pipe()
    for each in (closed, still_open):
        local._send(each, 3)
    assert (closed.is_open, still_open.is_open, still_open.pipe.messages) == (False, True, [3])


def test_messages_are_taken_in_and_answered(tmp_path):
    shown = []
    launcher = LocalLauncher(tmp_path, "token", on_progress=lambda *figures: shown.append(figures))
    talking = worker(silence=50.0)
    talking.process.is_alive = lambda: True
    shards = Handout([7], 1)
    for message in [("next", None), ("next", None), ("progress", (1, 2, "steps")), ("outcome", "done")]:
        talking.pipe = Pipe(message)
        launcher._attend_to(job(400), talking, shards)
        if message[0] == "next":
            assert talking.pipe.messages == [7 if talking.last_report == "shard 7 begun" else None]
    assert talking.outcome == "done" and shown == [(1, 2, "steps")] and talking.last_report == "1 of 2 steps"
    assert (talking.heard_at, talking.patience) == (NOW, 100)


def test_a_worker_that_closes_without_an_outcome_has_died(tmp_path):
    launcher = LocalLauncher(tmp_path, "token")
    gone = worker(exitcode=3)
    gone.process.is_alive, gone.process.join = lambda: False, lambda seconds: None
    gone.pipe = Pipe()
    with pytest.raises(WorkerFailed, match="ended with exit code 3"):
        launcher._attend_to(job(400), gone, Handout([], 1))
    gone.outcome, gone.is_open = "done", True
    launcher._attend_to(job(400), gone, Handout([], 1))
