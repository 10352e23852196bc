"""What a person sees of answers while they come: columns in a terminal that is wide enough, else lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf.errors import printable
from rlhf.run.output import show

_LEAST_COLUMN = 40
"""Characters: in narrower columns text reads badly, so that answers come one below the other."""


class Screen(Protocol):
    """Takes the pieces of each policy's answer, then the line below it."""

    def piece(self, name: str, text: str) -> None:
        """More of an answer."""
        ...

    def foot(self, name: str, text: str) -> None:
        """The answer is complete."""
        ...


class Lines:
    """One answer below the other; each begins with the policy's name."""

    def __init__(self) -> None:
        self._speaking = ""

    def piece(self, name: str, text: str) -> None:
        if self._speaking != name:
            self._speaking = name
            show(f"{name}> ", end="")
        show(text, end="")

    def foot(self, name: str, text: str) -> None:
        if self._speaking != name:  # it has said nothing
            show(f"{name}> ", end="")
        self._speaking = ""
        show(f"\n    {text}")


class Columns:
    """Answers side by side, redrawn as they grow."""

    def __init__(self, names: Sequence[str], live: Live) -> None:
        self._texts = dict.fromkeys(names, "")
        self._feet = dict.fromkeys(names, "")
        self._live = live

    def piece(self, name: str, text: str) -> None:
        self._texts[name] += printable(text)
        self._live.update(self._table())

    def foot(self, name: str, text: str) -> None:
        self._feet[name] = printable(text)
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table.grid(expand=True, padding=(0, 2))
        for _ in self._texts:
            # Folded, not cut: a word may be longer than a column.
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*[Text(name, style="bold") for name in self._texts])
        table.add_row(*[Text(text) for text in self._texts.values()])
        table.add_row(*[Text(text, style="dim") for text in self._feet.values()])
        return table


@contextmanager
def screen_for(names: Sequence[str]) -> Iterator[Screen]:
    """Columns where standard output is a terminal with room for them, else lines."""
    console = Console(file=sys.stdout, highlight=False)
    is_wide = console.width >= _LEAST_COLUMN * len(names)
    if len(names) < 2 or not console.is_terminal or console.is_dumb_terminal or not is_wide:
        yield Lines()
        return
    with Live(console=console, refresh_per_second=8, vertical_overflow="ellipsis") as live:
        yield Columns(names, live)
