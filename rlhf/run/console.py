"""How anything is printed, and what a person sees while a run goes on: a line per stage, and how far the
present one is.

Nothing that is printed can end a run: an output that is closed, full, gone, or of an encoding without our
signs, loses text and no more (`prepare_output`). What is printed by this package goes through `show`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf.data.records import dropped
from rlhf.errors import one_line, printable

EVERY_SECONDS = 30.0
"""Between progress lines where the output is no terminal."""

_SHOWN = [
    "rows",
    "train",
    "held_out",
    "responses",
    "truncated",
    "cut_on_the_left",
    "over_context",
    "cut",
    "cut_left",
    "cut_chosen",
    "cut_rejected",
    "equal_after_cut",
    "long_prompts",
    "pairs",
    "steps",
    "conversations",
    "first_loss",
    "last_loss",
    "packs",
    "held_out_accuracy",
    "held_out_loss",
    "disagreement",
    "non_finite",
    "refused_by_template",
    "spelled_special_tokens",
    "engine",
]
"""Counts and metrics worth a place on a stage's line, beside what was dropped."""
# To the start of the terminal's line, and clear it: the progress shown there is overwritten.
_CLEAR_LINE = "\r\x1b[K"


# A reader that has seen enough (`| head`), a terminal that is gone, an output that was closed from the start.
_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)


class _Output(io.FileIO):
    """A file of output that does not fail: what cannot be written is left out.

    `error` is the first reason why something was. Unless nobody reads there any more, it is said on standard
    error.
    """

    def __init__(self, file: int | Path, name: str) -> None:
        # A log is appended to. Standard output is a number, and stays open for whoever else prints there.
        if isinstance(file, int):
            super().__init__(file, "wb", closefd=False)
        else:
            super().__init__(file, "ab")
        self.error: OSError | None = None
        self._shown_name = name

    def write(self, content: Any) -> int:
        try:
            while True:
                num_written = super().write(content)
                if num_written is not None:
                    return num_written
                # It was set not to block by whoever shares it with us, and is full for the moment.
                select.select([], [self], [])
        except OSError as error:
            self._leave_out(error)
            return len(content)

    def _leave_out(self, error: OSError) -> None:
        is_first = self.error is None
        self.error = self.error or error
        if not is_first or error.errno in _NOBODY_READS:
            return
        notice = f"! {self._shown_name} cannot be written: {error.strerror}. What is said there is lost.\n"
        # By its number: `sys.stderr` may be this very output.
        with contextlib.suppress(OSError):
            os.write(2, notice.encode())


def _text_output(output: _Output, encoding: str) -> io.TextIOWrapper:
    # What the encoding has no sign for is escaped: ✓ is \u2713 in latin-1.
    return io.TextIOWrapper(
        io.BufferedWriter(output), encoding, errors="backslashreplace", line_buffering=True
    )


def prepare_output() -> None:
    """Make standard output and error such that no print, ours or a library's, can fail.

    For the beginning of a process. Descriptors that are closed are opened on /dev/null: the next file would
    get their number, and with it all that is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(descriptor, True)  # or a process started from here would lack it again
    # What somebody else has put in their place (a test, a notebook) stays there.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _prepared(sys.stdout, 1, "standard output")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _prepared(sys.stderr, 2, "standard error")


def _prepared(stream: Any, descriptor: int, name: str) -> io.TextIOWrapper:
    # Python has none where the descriptor was closed.
    encoding = "utf-8" if stream is None else stream.encoding
    return _text_output(_Output(descriptor, name), encoding)


def show(text: str = "", error: bool = False, end: str = "\n") -> None:
    """Print some text of ours on standard output, or on standard error.

    It may hold names out of data or models, and these anything, such as a terminal's commands: those are
    escaped.
    """
    stream = sys.stderr if error else sys.stdout
    with contextlib.suppress(ValueError):  # somebody, such as a rule, has closed it
        print(printable(text), end=end, file=stream, flush=True)


def output_error() -> OSError | None:
    """Why standard output could not be written though somebody reads it, such as a full disk; else None."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = getattr(raw, "error", None)
    if error is None or error.errno in _NOBODY_READS:
        return None
    return error


class Console:
    """Prints to standard output and keeps a copy with times in `logs/driver.log`."""

    def __init__(self, folder: Path) -> None:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        # Appended to, for a run may be resumed; open for the run's life, so there is no `with`.
        log = _Output(folder / "logs" / "driver.log", "logs/driver.log")
        self._log = _text_output(log, "utf-8")
        self._is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._progress_printed_at = time.monotonic()
        self._stage_name = ""

    def say(self, text: str = "") -> None:
        """Print some lines."""
        if self._is_terminal:
            self._draw(_CLEAR_LINE)
        show(text)
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        for line in printable(text).split("\n"):
            self._log.write(f"{now} {line}\n")
        # A driver that is killed leaves the log complete.
        self._log.flush()

    def begin(self, name: str) -> None:
        """Say that a stage begins."""
        self._stage_name = name
        self._progress_printed_at = time.monotonic()
        if self._is_terminal:
            self._draw(f"  … {printable(name)}")

    def end(self, name: str, seconds: float, figures: dict[str, Any]) -> None:
        """Say that a stage has ended well, how long it took and what came out."""
        parts = []
        for key in _SHOWN:
            if figures.get(key) not in (0, None):
                parts.append(_labelled(figures[key], key))
        for reason, count in dropped(figures).items():
            parts.append(_labelled(count, f"{reason} dropped"))
        text = one_line(", ".join(parts))
        self.say(f"  ✓ {name:<32}{seconds:6.1f} s  {text}")
        if figures.get("warning"):
            self.say(f"  ⚠ {figures['warning']}")

    def progress(self, done: float, total: float, note: str) -> None:
        """Show how far the present stage is."""
        text = f"  … {self._stage_name}  {done:g}/{total:g} {note}"
        now = time.monotonic()
        # Without a terminal every report would be a line of its own, and a file of them unreadable.
        if self._is_terminal:
            self._draw(f"{_CLEAR_LINE}{printable(text)}")
        elif now - self._progress_printed_at > EVERY_SECONDS:
            self._progress_printed_at = now
            self.say(text)

    def _draw(self, text: str) -> None:
        """Write on the terminal's present line, with its commands as they stand."""
        print(text, end="", flush=True)


def _labelled(value: Any, key: str) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    label = key.replace("_", " ")
    return f"{value} {label}"
