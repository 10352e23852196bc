"""The view on a real terminal (a pty): what is seen, and what is left of it however the run ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RUN = """
import os, sys, time
from pathlib import Path
from rlhf.command.line import guarded
from rlhf.errors import UserError
from rlhf.run import console as module
from rlhf.run.console import Console
from rlhf.view.live import drawn_lines
module._LOOK_SECONDS = 0.02
def main():
    how = sys.argv[2]
    names = ["world", *(f"iteration_{number:03d}/{kind}" for number in range(1, 8) for kind in ("pair", "dpo"))]
    with Console(Path(sys.argv[1]), drawn_lines, recorded=True) as console:
        console.plan(names, {})
        for number, name in enumerate(names[:5]):
            console.begin(name)
            for step in range(1, 5):
                console.progress(step, 4, "loss 0.69")
                time.sleep(0.03)
            console.end(name, 1.0, {"rows": number, "warning": "odd \\x1b[2J" if number == 2 else ""})
        console.begin(names[5])
        if how == "wait":
            with open(Path(sys.argv[1]) / "ready", "w"):
                pass
            time.sleep(60)
        if how == "error":
            raise UserError("refused")
guarded(main)
"""
LINES = [
    f"iteration_00{number}/{kind}" for number, kind in ((1, "pair"), (1, "dpo"), (2, "pair"), (2, "dpo"))
]


class Terminal:
    """As much of a terminal as the view needs; it refuses every other command."""

    def __init__(self):
        self.lines = [""]
        self.row = 0
        self.column = 0

    def feed(self, text):
        for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+|\x1b", text):
            if token == "\r":
                self.column = 0
            elif token == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif token.startswith("\x1b"):
                self.command(token)
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + token + line[self.column + len(token) :]
                self.column += len(token)

    def command(self, token):
        number, kind = token[2:-1], token[-1]
        if kind == "A":
            self.row -= int(number)
            assert self.row >= 0
        elif kind == "K":
            self.lines[self.row] = self.lines[self.row][: self.column]
        elif kind == "J" and not number:
            del self.lines[self.row + 1 :]
            self.lines[self.row] = self.lines[self.row][: self.column]
        else:
            assert kind == "m", f"not for the view to do: {token!r}"  # ?25l and ?1049h among them


def run_in_terminal(tmp_path, how, kill=None, size=(24, 80), resized=None, **environment):
    """Exit status and raw output of the run above in a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | environment)
        os.environ.pop("COLUMNS", None)
        os.environ.pop("LINES", None)
        os.chdir(ROOT)
        # Whoever runs the tests may have it ignored, as `nohup` does, and children inherit that.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", RUN, str(tmp_path), how])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    before = termios.tcgetattr(terminal)
    raw = b""
    is_killed = False
    while True:
        try:
            raw += os.read(terminal, 65536)
        except OSError:  # the end of a pty
            break
        if resized and b"pair" in raw:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *resized, 0, 0))
        if kill is not None and not is_killed and (tmp_path / "ready").exists():
            is_killed = True
            if kill == "ctrl-c":
                os.write(terminal, b"\x03")
            else:
                os.kill(pid, kill)
    assert termios.tcgetattr(terminal) == before
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), raw.decode()


def seen(raw):
    terminal = Terminal()
    terminal.feed(raw)
    assert terminal.column == 0
    return terminal.lines


def test_lines_stay_and_the_view_goes(tmp_path):
    code, raw = run_in_terminal(tmp_path, "end")
    assert code == 0
    assert "▶ iteration_001/dpo" in raw and "~ 1.0 s" in raw
    lines = seen(raw)
    for name in LINES:
        assert sum(name in line for line in lines) == 1, lines
    assert lines[-1] == "" and not any("▶" in line or "stages" in line for line in lines)
    assert "\x1b[2J" not in raw  # what a name holds of commands


@pytest.mark.parametrize(
    ("kill", "code"), [("ctrl-c", 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (None, 2)]
)
def test_however_it_is_stopped_the_terminal_is_as_it_was(tmp_path, kill, code):
    got, raw = run_in_terminal(tmp_path, "error" if kill is None else "wait", kill)
    assert got == code
    lines = seen(raw.replace("^C", ""))
    assert not any("▶" in line for line in lines)
    said = "error: refused" if kill is None else "the same command goes on from here"
    assert said in "".join(lines[-3:])
    assert sum(LINES[0] in line for line in lines) == 1


def test_a_killed_run_leaves_its_last_picture_and_a_cursor_below_it(tmp_path):
    code, raw = run_in_terminal(tmp_path, "wait", signal.SIGKILL)
    assert code == -signal.SIGKILL
    lines = seen(raw)
    assert any(line.startswith("▶ iteration_003/pair") for line in lines) and lines[-1] == ""


@pytest.mark.parametrize("size", [(24, 40), (6, 80), (3, 12), (0, 0), (1, 1)])
def test_small_terminals(tmp_path, size):
    code, raw = run_in_terminal(tmp_path, "end", size=size)
    assert code == 0
    drawn = [
        re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line) for line in raw.split("\n") if line.endswith("\x1b[K\r")
    ]
    width = max(size[1] or 80, 11)
    assert drawn and all(len(line.strip("\r")) < width for line in drawn)
    pictures = re.findall(r"\x1b\[(\d+)A", raw)
    assert all(int(number) <= max((size[0] or 24) - 1, 1) for number in pictures)


def test_a_terminal_that_shrinks(tmp_path):
    code, raw = run_in_terminal(tmp_path, "end", resized=(12, 40))
    assert code == 0
    lines = seen(raw)
    for name in LINES:
        assert sum(f"✓ {name}" in line for line in lines) == 1


def test_without_colours_the_signs_say_the_same(tmp_path):
    _, raw = run_in_terminal(tmp_path, "end", NO_COLOR="1")
    colours = [code for code in re.findall(r"\x1b\[([0-9;]*)m", raw) if re.search(r"(^|;)[34][0-9]", code)]
    assert not colours and "▶ iteration_001/dpo" in raw


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}, {"PYTHONIOENCODING": "latin-1"}])
def test_what_cannot_be_drawn_on_gets_lines(tmp_path, environment):
    code, raw = run_in_terminal(tmp_path, "end", **environment)
    assert code == 0 and "\x1b" not in raw and "iteration_002/dpo" in raw


def test_a_picture_that_fails_costs_no_run(tmp_path, monkeypatch, capsys):
    from rlhf.run import console as module

    def draw(progress, columns, lines):
        raise ZeroDivisionError

    monkeypatch.setattr(module, "can_draw", lambda: True)
    with module.Console(tmp_path, draw) as console:
        console.plan(["pair"], {})
        console.begin("pair")
        console.end("pair", 1.0, {})
    out = capsys.readouterr().out
    assert "the view cannot be drawn (ZeroDivisionError())" in out and "✓ pair" in out
