"""What a person sees of a run, on a terminal and in a file."""

from __future__ import annotations

import re

import pytest

from rlhf.run import console as module
from rlhf.run.console import Console

CLEAR = "\r\x1b[K"


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the console sees, to be set."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A console on a terminal or not; its log is closed at the end."""
    made = []

    def console(is_terminal):
        monkeypatch.setattr(module.sys.stdout, "isatty", lambda: is_terminal, raising=False)
        made.append(Console(tmp_path))
        return made[-1]

    yield console
    for each in made:
        each._log.close()


def log(folder):
    return (folder / "logs" / "driver.log").read_text()


def test_each_line_is_in_the_log_with_its_time(make, tmp_path, capsys):
    console = make(is_terminal=False)
    console.say("one\ntwo\x1b")
    assert capsys.readouterr().out == "one\ntwo\\x1b\n"
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (one|two\\x1b)\n){2}", log(tmp_path))
    make(is_terminal=False).say()
    assert len(log(tmp_path).splitlines()) == 3


def test_a_stage_ends_with_its_time_and_the_figures_that_are_not_zero(make, capsys):
    figures = {"rows": 4, "truncated": 0, "pairs": None, "held_out_loss": 0.123456, "unnamed": 1}
    make(is_terminal=False).end("pair", 61.25, figures | {"dropped/empty": 2, "dropped/other": 0})
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"  ✓ {'pair':<32}  61.2 s  4 rows, 0.1235 held out loss, 2 empty dropped"


def test_a_warning_is_a_line_of_its_own(make, capsys):
    make(is_terminal=False).end("pair", 1, {"warning": "odd"})
    assert capsys.readouterr().out.splitlines()[1] == "  ⚠ odd"
    make(is_terminal=False).end("pair", 1, {"warning": ""})
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_without_a_terminal_progress_is_said_now_and_then(make, clock, capsys):
    console = make(is_terminal=False)
    console.begin("pair")
    assert capsys.readouterr().out == ""
    for seconds in (0, module.EVERY_SECONDS, module.EVERY_SECONDS + 1, module.EVERY_SECONDS + 2):
        clock[0] = 1000.0 + seconds
        console.progress(seconds, 99, "shards")
    assert capsys.readouterr().out == "  … pair  31/99 shards\n"
    clock[0] = 1000.0 + 2 * module.EVERY_SECONDS + 2
    console.progress(1, 2, "shards")
    assert capsys.readouterr().out == "  … pair  1/2 shards\n"


def test_a_terminal_shows_progress_in_one_line(make, capsys, tmp_path):
    console = make(is_terminal=True)
    console.begin("pair")
    console.progress(1, 2, "shards")
    assert capsys.readouterr().out == f"  … pair{CLEAR}  … pair  1/2 shards"
    console.say("done")
    assert capsys.readouterr().out == f"{CLEAR}done\n" and len(log(tmp_path).splitlines()) == 1
