"""What a person sees of a run, on a terminal and in a file."""

from __future__ import annotations

import re
import sys

import pytest

from rlhf.errors import Stopped, UserError, WorkerFailed
from rlhf.run import console as module
from rlhf.run.console import Console
from rlhf.run.progress import (
    StageProgress,
    State,
    TimeLeft,
    expected,
    here,
    left_of_run,
    left_of_stage,
    read_progress,
)


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
        monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
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


def test_without_a_terminal_a_line_tells_now_and_then_how_far_it_is(make, clock, capsys):
    console = make(is_terminal=False)
    console.begin("pair")
    assert capsys.readouterr().out == ""
    for seconds in (0, module.EVERY_SECONDS - 1, module.EVERY_SECONDS, module.EVERY_SECONDS + 1):
        clock[0] = 1000.0 + seconds
        console.progress(seconds, 99, "shards")
        console.tick()
    line = capsys.readouterr().out
    assert line.startswith("  … pair  30/99 shards, ") and line.count("\n") == 1
    clock[0] = 1000.0 + 2 * module.EVERY_SECONDS
    console.tick()
    assert capsys.readouterr().out.startswith("  … pair  31/99 shards, ")


def test_a_stage_that_reports_nothing_is_told_of_too(make, clock, capsys):
    console = make(is_terminal=False)
    console.begin("dpo")
    clock[0] += module.EVERY_SECONDS
    console.tick()
    assert capsys.readouterr().out.startswith("  … dpo  starting, ")
    console.progress(0, 0, "loading the model")
    clock[0] += module.EVERY_SECONDS
    console.tick()
    assert capsys.readouterr().out.startswith("  … dpo  loading the model, ")
    console.progress(1, 40, "loss 0.6931")
    clock[0] += module.EVERY_SECONDS
    console.tick()
    assert capsys.readouterr().out.startswith("  … dpo  1/40 loss 0.6931, ")


def test_what_the_driver_does_between_stages_is_told_of_and_nothing_else(make, clock, capsys):
    console = make(is_terminal=False)
    clock[0] += module.EVERY_SECONDS
    console.tick()
    assert capsys.readouterr().out == ""
    with console, module.phase("taking the checksums of /models/m"):
        console.tick()
    assert capsys.readouterr().out.startswith("  … taking the checksums of /models/m, ")
    with module.phase("nobody watches"), module.aside():
        pass


def test_notes_are_kept_for_those_who_look_from_elsewhere(tmp_path, monkeypatch):
    console = Console(tmp_path, recorded=True)
    with console:
        console.tick()
        assert read_progress(tmp_path) is None  # no plan yet
        console.say("  ! before the plan")
        console.plan(["prompts", "pair", "score"], {"prompts": 2.5})
        console.begin("pair")
        console.progress(1, 4, "shards")
        console.held({"responses": 8, "response_tokens": 80})
        console.end("pair", 4.0, {"warning": "odd"})
        console.figures(["π0: score +1.000"])
        console.begin("export")  # which is in no plan
        noted = read_progress(tmp_path)
        assert noted.running.name == "export" and noted.ended == ""
    noted = read_progress(tmp_path)
    assert [(stage.name, stage.state, stage.seconds) for stage in noted.stages] == [
        ("prompts", State.done, 2.5),
        ("pair", State.done, 4.0),
        ("score", State.to_do, 0.0),
        ("export", State.running, 0.0),
    ]
    assert noted.warnings == ["! before the plan", "⚠ odd"] and noted.num_warnings == 2
    assert noted.figures == ["π0: score +1.000"] and noted.ended == "finished"


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (Stopped(2), "stopped by SIGINT (Ctrl-C)"),
        (Stopped(15), "stopped by SIGTERM"),
        (UserError("bad\nsecond line"), "failed: bad"),
        (WorkerFailed("its worker was killed\x1b[2J"), "failed: its worker was killed\\x1b[2J"),
        (ValueError(), "failed: ValueError"),
    ],
)
def test_how_it_ended_is_noted(tmp_path, error, ended):
    def run():
        with Console(tmp_path, recorded=True) as console:
            console.plan(["pair"], {})
            raise error

    with pytest.raises(type(error)):
        run()
    assert read_progress(tmp_path).ended == ended


def test_notes_that_cannot_be_written_cost_nothing(tmp_path, capsys):
    (tmp_path / "logs" / "progress.json").mkdir(parents=True)
    with Console(tmp_path, recorded=True) as console:
        console.plan(["pair"], {})
        console.say("goes on")
    assert capsys.readouterr().out == "goes on\n"


def test_a_tool_on_files_leaves_no_notes(tmp_path):
    with Console(tmp_path) as console:
        console.plan(["read"], {})
    assert not (tmp_path / "logs" / "progress.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"stages": [{"name": "a"}]}',
        '{"stages": [], "pid": "4711"}',
        '{"stages": [], "began_at": NaN}',
        '{"stages": [], "figures": [1]}',
        '{"stages": [{"name": 1, "state": "done", "start": null, "first": null, "last": null}]}',
        '{"stages": [{"name": "a", "state": "flying", "start": null, "first": null, "last": null}]}',
        '{"stages": ' + "[" * 100000,
    ],
)
def test_damaged_notes_are_none(tmp_path, text):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "progress.json").write_text(text)
    assert read_progress(tmp_path) is None


def test_notes_of_a_later_version_are_read(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "progress.json").write_text('{"stages": [], "pid": 4711, "weather": "fine"}')
    assert read_progress(tmp_path).pid == 4711


def test_the_pace_is_that_since_the_first_shard():
    stage = StageProgress("generate", State.running, began_at=100.0)
    assert stage.remaining(100.0) is None and stage.rate("responses") is None
    stage.count(101.0, 0, 8, "shards")
    assert stage.remaining(110.0) is None
    stage.count(120.0, 1, 8, "shards")  # 20 s, of which most went into loading
    stage.hold(10, 100)
    assert stage.remaining(120.0) == pytest.approx(7 * 20)
    stage.count(124.0, 3, 8, "shards")
    stage.hold(20, 300)
    assert stage.remaining(124.0) == pytest.approx(5 * 2)
    assert stage.remaining(127.0) == pytest.approx(7)
    assert stage.remaining(999.0) == 0
    assert (stage.rate("responses"), stage.rate("tokens")) == (5.0, 75.0)
    # The ranks of a training tell the same steps one after the other.
    stage.count(125.0, 2, 8, "shards")
    assert stage.last.done == 3


def test_another_attempt_is_counted_anew():
    stage = StageProgress("dpo", State.running, began_at=0.0)
    for step in range(1, 21):
        stage.count(step, step, 40, "loss")
    stage.count(50.0, 11, 40, "loss")  # out of memory, and on from a checkpoint
    assert stage.remaining(50.0) is None
    stage.count(52.0, 12, 40, "loss")
    assert stage.remaining(52.0) == pytest.approx(28 * 2)


def test_what_an_earlier_run_of_the_driver_has_done_is_no_pace():
    stage = StageProgress("dpo", State.running, began_at=0.0)
    stage.count(10.0, 30, 40, "loss")
    assert stage.remaining(10.0) is None
    stage.count(12.0, 31, 40, "loss")
    assert stage.remaining(12.0) == pytest.approx(9 * 2)


def planned():
    names = ["world"]
    for number in range(4):
        names += [f"iteration_{number:03d}/{kind}" for kind in ("dpo", "held_out/score")]
    names.remove("iteration_000/dpo")
    return here(names, {"world": 99.0, "iteration_000/held_out/score": 5.0}, 1000.0)


def test_what_is_left_rests_on_its_like_and_is_marked():
    progress = planned()
    left = left_of_run(progress, 1000.0)
    assert (left.seconds, left.estimated, left.unknown) == (15.0, True, 3)
    stage = progress.stage("iteration_001/dpo")
    stage.state, stage.began_at = State.running, 1000.0
    assert left_of_stage(progress, stage, 1010.0) is None
    stage.state, stage.seconds = State.done, 20.0
    left = left_of_run(progress, 1020.0)
    assert (left.seconds, left.estimated, left.unknown) == (3 * 5.0 + 2 * 20.0, True, 0)
    # The newest of its like counts, not the first.
    progress.stage("iteration_001/held_out/score").state = State.done
    progress.stage("iteration_001/held_out/score").seconds = 7.0
    assert expected(progress, "iteration_003/held_out/score") == 7.0
    stage = progress.stage("iteration_002/dpo")
    stage.state, stage.began_at = State.running, 2000.0
    assert left_of_stage(progress, stage, 2015.0) == TimeLeft(5.0, estimated=True)
    assert left_of_stage(progress, stage, 2021.0) is None  # longer than its like: nobody knows


def test_nothing_is_left_of_what_nobody_knows():
    assert left_of_run(here(["world", "iteration_001/dpo"], {}, 0.0), 1.0) is None
    assert left_of_run(here(["world"], {"world": 3.0}, 0.0), 1.0) is None
