"""A conversation without its models: histories, commands, who is there to talk to, what a person types."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest

from rlhf.errors import ConfigError, UserError
from rlhf.view import chat_input
from rlhf.view.chat_input import Keyboard
from rlhf.view.chat_screen import Lines, screen_for
from rlhf.view.chat_session import HELP, Answer, Session, chosen_iterations, obeyed


@pytest.fixture
def session():
    session = Session(["π0", "π3"], temperature=1.0, max_new_tokens=20, seed=42)
    session.add("Hi", answers("Hello.", "Yo."))
    return session


def answers(first, second):
    return {
        "π0": Answer(first, 2, "stop", {"judge": 0.5}),
        "π3": Answer(second, 1, "length", {"judge": None}),
    }


def test_each_policy_has_its_own_history(session):
    assert session.messages_of("π3", "And?") == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo."},
        {"role": "user", "content": "And?"},
    ]
    assert session.messages_of("π0", "And?")[1]["content"] == "Hello."


def test_commands_change_what_they_say(session):
    assert obeyed(session, "/temperature 0.7").kind == "read" and session.temperature == 0.7
    obeyed(session, "/seed 7")
    obeyed(session, "/max 5")
    assert (session.seed, session.max_new_tokens) == (7, 5)
    assert obeyed(session, "/help").text == HELP
    assert obeyed(session, " /help me").text == " /help me", "only a line that begins with it is a command"
    assert obeyed(session, "/exit").kind == obeyed(session, "/quit").kind == "exit"
    assert obeyed(session, "/undo").text == "(taken back: Hi)"
    assert obeyed(session, "/undo").text == "(nothing to take back)"
    assert obeyed(session, "/again").text == "(nothing was asked yet)"
    session.add("Hi", answers("a", "b"))
    obeyed(session, "/new")
    assert session.questions == [] and session.answers == {"π0": [], "π3": []}


def test_again_takes_the_last_answers_along_and_another_seed(session):
    command = obeyed(session, "/again")
    assert (command.kind, command.text, command.before) == ("say", "Hi", answers("Hello.", "Yo."))
    assert session.questions == [] and session.seed == 43


@pytest.mark.parametrize(
    "line",
    [
        *("/nope", "/", "/temprature 1", "/save", "/seed -1", "/seed 99999999999", "/max 0", "/max 1.5"),
        *("/temperature", "/temperature hot", "/temperature -1", "/temperature nan", "/temperature inf"),
    ],
)
def test_a_command_that_is_none_changes_nothing(session, line):
    before = vars(session).copy()
    with pytest.raises(UserError, match="/"):
        obeyed(session, line)
    assert vars(session) == before


def test_a_message_may_begin_with_a_slash(session):
    assert obeyed(session, "//etc is a folder").text == "/etc is a folder"
    assert obeyed(session, "two\n/lines").text == "two\n/lines"


def test_saved_conversations_are_lines_of_json(session, tmp_path):
    session.add("\u202e\x1b[2J", answers("<b>\x9b", "ü"))
    obeyed(session, f"/save {tmp_path / 'talk.jsonl'}")
    lines = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").split("\n")
    first, second = map(json.loads, lines[:2])
    assert lines[2:] == [""] and (first["policy"], second["policy"]) == ("π0", "π3")
    assert first["messages"][2:] == [
        {"role": "user", "content": "\u202e\x1b[2J"},
        {"role": "assistant", "content": "<b>\x9b"},
    ]
    assert first["answers"][0]["scores"] == {"judge": 0.5} and second["answers"][0]["scores"] == {
        "judge": None
    }


def test_nothing_is_written_over(session, tmp_path):
    (tmp_path / "talk.jsonl").write_text("mine")
    with pytest.raises(UserError, match="it exists"):
        obeyed(session, f"/save {tmp_path / 'talk.jsonl'}")
    assert (tmp_path / "talk.jsonl").read_text() == "mine"
    with pytest.raises(UserError, match="No such file"):
        obeyed(session, f"/save {tmp_path}/no/folder.jsonl")


def test_whom_to_talk_to():
    assert chosen_iterations(None, [0, 1, 2], 1, {}) == [1]
    assert chosen_iterations(None, [0, 1, 2], 0, {}) == [0]
    assert chosen_iterations(None, [0, 1], None, {}) == [1], "the last one where nobody knows the best"
    assert chosen_iterations(2, [0, 1, 2], 1, {}) == [2]
    assert chosen_iterations([2, 0], [0, 1, 2], 1, {}) == [2, 0]


@pytest.mark.parametrize(
    ("iterations", "best", "said"),
    [
        ([0, 7], 1, "no iterate 7 that can be loaded; it has 0, 1"),
        ([2], 1, "no iterate 2 that can be loaded .weights.bin is gone.; it has 0, 1"),
        ([], 1, "numbers are wanted"),
        ("best", 1, "numbers are wanted"),
        ([True], 1, "numbers are wanted"),
        ([1.0], 1, "numbers are wanted"),
        ([-1], 1, "no iterate -1"),
        ([1, 1], 1, "each one once"),
        (None, 2, "best iterate of this run, 2, is not there: weights.bin is gone. It has 0, 1"),
        (None, 3, "best iterate of this run, 3, is not there: its folder is gone"),
    ],
)
def test_who_is_not_there_is_told_with_who_is(iterations, best, said):
    with pytest.raises(ConfigError, match=said):
        chosen_iterations(iterations, [0, 1], best, {2: "weights.bin is gone"})


def typed(monkeypatch, given, is_terminal=False):
    stream = io.TextIOWrapper(io.BytesIO(given), encoding="utf-8")
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stdin", stream)
    return Keyboard()


def test_a_script_writes_a_message_a_line(monkeypatch, capsys):
    keyboard = typed(monkeypatch, "one\n\n  \nzwei ü".encode())
    assert [keyboard.message(), keyboard.message(), keyboard.message()] == ["one", "zwei ü", None]
    assert capsys.readouterr() == ("", ""), "no prompt in what a script reads"


def test_bytes_that_are_no_text_end_no_conversation(monkeypatch):
    keyboard = typed(monkeypatch, b"a\xff\nb\n")
    with pytest.raises(UserError, match="no text"):
        keyboard.message()
    assert keyboard.message() == "b"


def at_a_terminal(monkeypatch, *lines, at_once=()):
    """A keyboard that gives these lines (or raises them); those of `at_once` are there without waiting."""
    left = list(lines)
    num_given = 0

    def give(prompt=""):
        nonlocal num_given
        line = left.pop(0)
        num_given += 1
        if isinstance(line, type):
            raise line
        return line

    def waits(read, *_):
        return ([read[0]] if num_given in at_once else [], [], [])

    monkeypatch.setattr("builtins.input", give)
    monkeypatch.setattr(chat_input, "select", SimpleNamespace(select=waits))
    return typed(monkeypatch, b"", is_terminal=True)


def test_a_pasted_text_of_several_lines_is_one_message(monkeypatch):
    keyboard = at_a_terminal(monkeypatch, "a", "", "/b", "next", EOFError, at_once=(1, 2))
    assert [keyboard.message(), keyboard.message(), keyboard.message()] == ["a\n\n/b", "next", None]


def test_one_ctrl_c_stays_and_two_leave(monkeypatch, capsys):
    keyboard = at_a_terminal(monkeypatch, KeyboardInterrupt, "a", KeyboardInterrupt, KeyboardInterrupt)
    assert keyboard.message() == "a" and keyboard.message() is None
    assert capsys.readouterr().err == "(Ctrl-C once more leaves)\n" * 2


def test_after_an_answer_that_was_stopped_one_more_leaves(monkeypatch):
    keyboard = at_a_terminal(monkeypatch, KeyboardInterrupt)
    keyboard.was_stopped = True
    assert keyboard.message() is None


HOSTILE = "\x1b[2J\x9b31m\u202eevil\x07"


def test_lines_show_hostile_text_as_text(capsys):
    lines = Lines()
    lines.piece("π0", HOSTILE)
    lines.foot("π0", "judge +1.000")
    lines.foot("π3", "0 tokens")
    said = capsys.readouterr().out
    assert not set(said) & set("\x1b\x9b\x07\u202e") and "evil" in said
    assert said.endswith("\n    judge +1.000\nπ3> \n    0 tokens\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("width", "is_wide"), [(100, True), (60, False)])
def test_columns_only_where_there_is_room(monkeypatch, width, is_wide):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "30")
    monkeypatch.setenv("TERM", "xterm-256color")
    with screen_for(["π0", "π3"]) as screen:
        screen.piece("π0", "left " + HOSTILE)
        screen.piece("π3", "[bold]right[/bold] " + "x" * 500)
        screen.foot("π0", "judge +1.000")
        screen.foot("π3", "judge +2.000")
    said = terminal.getvalue()
    assert isinstance(screen, Lines) != is_wide
    assert "\x1b[2J" not in said and not set(said) & set("\x9b\x07\u202e")
    assert "[bold]right[/bold]" in said, "no markup of ours"
    last = said.split("judge +1.000")[-2 if is_wide else 0]
    assert last.count("x") >= 500 if is_wide else said.count("x") >= 500
