"""What a person types, or a script writes, message by message."""

from __future__ import annotations

import contextlib
import select
import sys

from rlhf.data.rows import has_half_pair
from rlhf.errors import UserError
from rlhf.run.output import show

_PASTED_SECONDS = 0.05
"""A terminal has the next line of a pasted text at once; nobody types one so fast."""


class Keyboard:
    """Standard input as messages.

    Attributes:
        is_terminal: whether a person sits there.
        was_stopped: whether the last thing that came was a Ctrl-C: one more leaves.
    """

    def __init__(self) -> None:
        self.is_terminal = sys.stdin is not None and sys.stdin.isatty()
        self.was_stopped = False
        if self.is_terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 arrow keys, a history, and pasted lines as one message
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:
            # What is no text is refused line by line (`message`), and ends no conversation.
            reconfigure(errors="surrogateescape")

    def message(self) -> str | None:
        """The next message; None at the end of the input, or when a person has pressed Ctrl-C twice.

        Raises:
            UserError: it holds bytes that are no text.
        """
        while True:
            try:
                text = self._lines()
            except EOFError:
                if self.is_terminal:
                    show()
                return None
            except KeyboardInterrupt:
                show()
                if self.was_stopped or not self.is_terminal:
                    return None
                self.was_stopped = True
                show("(Ctrl-C once more leaves)", error=True)
                continue
            self.was_stopped = False
            if has_half_pair(text):
                raise UserError("this line holds bytes that are no text, and was not sent.")
            if text.strip():
                return text

    def _lines(self) -> str:
        text = input("you> " if self.is_terminal else "")
        # Where the terminal does not say what is pasted, its lines come one by one.
        while self.is_terminal and select.select([sys.stdin], [], [], _PASTED_SECONDS)[0]:
            try:
                text += "\n" + input()
            except EOFError:
                break
        return text
