"""How long a worker may be silent, what is said of it then, and what is said of one that is gone."""

from __future__ import annotations

import signal
import time
from types import SimpleNamespace

import pytest

from rlhf.config.stage_configs import PairSettings, StageCompute
from rlhf.errors import DataError, WorkerFailed
from rlhf.launch import attending, node
from rlhf.launch.attending import Told, Watched
from rlhf.run.job import Job

NOW = 1000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(attending, "time", SimpleNamespace(monotonic=lambda: NOW, sleep=time.sleep))


def job(hang_seconds):
    return Job("pair", "pair", PairSettings(), {}, "out", 42, StageCompute(hang_seconds=hang_seconds))


def worker(silence=0.0, patience=10.0):
    """A worker that has said nothing for so long; its process is gone."""
    state = lambda: "process 1073741824, gone"  # noqa: E731
    return Watched("pair.0", 0, "a.log", patience, state, heard_at=NOW - silence)


def process(pipe, is_alive=True, exitcode=None):
    """The same worker's process, as its machine has it."""
    made = SimpleNamespace(pid=2**30, is_alive=lambda: is_alive, join=lambda seconds: None, exitcode=exitcode)
    return node.WorkerProcess(made, pipe)


@pytest.mark.parametrize(
    ("hang_seconds", "patience"),
    [(0, 600), (1, 0.25), (400, 100), (2400, 600), (2404, 600), (14400, 600)],
)
def test_a_quarter_of_the_limit_but_not_more_than_ten_minutes(hang_seconds, patience):
    assert attending.patience_of(job(hang_seconds)) == patience


@pytest.mark.parametrize(("silence", "patience", "lines"), [(9.9, 10.0, 0), (10.0, 10.0, 1), (11.0, 10.0, 1)])
def test_silence_is_said_once_and_again_after_twice_as_long(silence, patience, lines):
    said = []
    quiet, talking = worker(silence, patience), worker(1.0, 30.0)
    for _ in range(2):
        attending.watch(job(100), [quiet, talking], Told(say=said.append))
    assert len(said) == lines
    if lines:
        assert "pair waits for" in said[0] and said[0].count("process 1073741824, gone") == 2
        assert f"silent for {silence:.0f} s, last heard of: starting or loading; log: a.log" in said[0]
        assert (quiet.patience, talking.patience) == (2 * silence, 30.0)


@pytest.mark.parametrize(
    ("silence", "hang_seconds", "fails"), [(99.9, 100, False), (100.0, 100, True), (1e9, 0, False)]
)
def test_a_worker_is_given_up_after_the_limit(silence, hang_seconds, fails):
    if fails:
        with pytest.raises(WorkerFailed, match=r"compute\.hang_seconds=100"):
            attending.watch(job(hang_seconds), [worker(silence)], Told())
    else:
        attending.watch(job(hang_seconds), [worker(silence)], Told())


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
    text = node.how_it_ended(process(None, exitcode=code))
    assert phrase in text and ("memory runs out" in text) == is_killed


def test_the_users_errors_keep_their_kind_and_others_show_the_end_of_their_traceback():
    error = attending.failure(job(1), worker(), ("DataError", "no such row", "…"))
    assert isinstance(error, DataError) and str(error) == "no such row"
    error = attending.failure(job(1), worker(), ("WorkerFailed", "http://h: no answer\nStart it.", "…"))
    # The message once, and no frames: it names the way out.
    assert isinstance(error, WorkerFailed)
    assert str(error) == "pair: http://h: no answer\nStart it.\nThe whole log: a.log"
    trace = "\n".join(f"line {number}" for number in range(20)) + "\n\n"
    lines = str(attending.failure(job(1), worker(), ("KeyError", "k", trace))).splitlines()
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
        (True, [], ("closed", "its worker ended with exit code 3.")),
        # What a worker said before it died is heard; then nothing is waited for.
        (False, [("outcome", 1)], ("outcome", 1)),
        (False, [], ("closed", "its worker ended with exit code 3.")),
    ],
)
def test_a_message_of_a_dead_worker_is_heard(is_alive, messages, received):
    dead_or_alive = process(Pipe(*messages), is_alive, exitcode=3)
    assert node.receive(dead_or_alive) == received
    assert dead_or_alive.is_open == (received[0] != "closed")
    assert dead_or_alive.is_leaving == (received[0] == "outcome")


def test_a_worker_that_cannot_be_told_is_left_alone():
    still_open = Pipe()
    for pipe in (Pipe(is_closed=True), still_open):
        node.tell(process(pipe), 3)
    assert still_open.messages == [3]


def test_messages_are_taken_in():
    shown = []
    told = Told(progress=lambda *figures: shown.append(figures))
    talking = worker(silence=50.0)
    taken = []
    for kind, body in [("next", None), ("made", 7), ("progress", (1, 2, "steps")), ("outcome", "done")]:
        taken.append(attending.take_in(job(400), talking, kind, body, told))
    assert taken == [("next", None), ("made", 7), None, None]
    assert talking.outcome == "done" and shown == [(1, 2, "steps")] and talking.last_report == "1 of 2 steps"
    assert (talking.heard_at, talking.patience) == (NOW, 100)


def test_what_a_worker_was_answered_is_known():
    asking = worker()
    for answer, report in ((7, "shard 7 begun"), ("later", "shard 7 begun"), (None, "finishing")):
        attending.note_answer(asking, answer)
        assert asking.last_report == report


def test_a_worker_that_closes_without_an_outcome_has_died():
    gone = worker()
    with pytest.raises(WorkerFailed, match="ended with exit code 3"):
        attending.take_in(job(400), gone, "closed", "its worker ended with exit code 3.", Told())
    gone.outcome, gone.is_open = "done", True
    attending.take_in(job(400), gone, "closed", "", Told())
    assert not gone.is_open
