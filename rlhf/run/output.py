"""How anything is printed. What this package prints goes through `show`.

Nothing that is printed can end a run: an output that is closed, full, gone, or of an encoding without our
signs, loses text and no more (`prepare_output`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import printable

# A reader that has seen enough (`| head`), a terminal that is gone, an output that was closed from the start.
_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)


class Output(io.FileIO):
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


def text_output(output: Output, encoding: str) -> io.TextIOWrapper:
    """What takes text for an output, and hands it on at the end of each line."""
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
    return text_output(Output(descriptor, name), encoding)


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


def show_drawn(text: str) -> None:
    """Print what is drawn with a terminal's commands, as it stands: whoever draws escapes what it shows."""
    with contextlib.suppress(ValueError):
        print(text, end="", file=sys.stdout, flush=True)


def can_draw() -> bool:
    """Whether standard output is a terminal that can be drawn on, and has our signs."""
    try:
        if sys.stdout is None or not sys.stdout.isatty():
            return False
        "✓▶─…·π".encode(sys.stdout.encoding)
    except (ValueError, LookupError):  # closed, or an encoding without them
        return False
    return os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class Screen:
    """The view at the bottom of a terminal. It is drawn over itself, and goes before a line is said.

    The cursor stays visible, below the view, and no other screen is taken: a process that is killed has to
    leave the terminal as it was.
    """

    def __init__(self) -> None:
        self._num_lines = 0

    def draw(self, lines: Sequence[str]) -> None:
        """Put these lines in the place of the ones before."""
        if not _is_in_front():
            self._num_lines = 0  # what is above the cursor now is another program's
            return
        text = self._to_the_top()
        for line in lines:
            text += f"{line}\x1b[K\n"  # clear what the line before was longer by
        show_drawn(f"{text}\x1b[J")  # and the lines below it
        self._num_lines = len(lines)

    def clear(self) -> None:
        """Take the view away."""
        if self._num_lines and _is_in_front():
            show_drawn(f"{self._to_the_top()}\x1b[J")
        self._num_lines = 0

    def _to_the_top(self) -> str:
        return f"\r\x1b[{self._num_lines}A" if self._num_lines else "\r"


def _is_in_front() -> bool:
    """Whether this process is the one that its terminal belongs to now: a shell may have sent it behind."""
    try:
        return os.tcgetpgrp(1) == os.getpgrp()
    except OSError:
        return True  # not the terminal that this process is controlled by: nobody can send it behind


def size_of_terminal() -> tuple[int, int]:
    """Columns and lines of the terminal behind standard output; 80 and 24 where it is none."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return 80, 24
    # Some give 0 for what they do not know.
    return size.columns or 80, size.lines or 24
