"""What a person sees while a run goes on: a line per stage, and how far the present one is."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf.data.records import dropped
from rlhf.errors import printable

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
    "refused_by_template",
    "spelled_special_tokens",
    "engine",
]
"""Counts and metrics worth a place on a stage's line, beside what was dropped."""
# To the start of the terminal's line, and clear it: the progress shown there is overwritten.
_CLEAR_LINE = "\r\x1b[K"


class Console:
    """Prints to standard output and keeps a copy with times in `logs/driver.log`."""

    def __init__(self, folder: Path) -> None:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        # Appended to, for a run may be resumed; open for the run's life, so there is no `with`.
        self._log = open(folder / "logs" / "driver.log", "a", encoding="utf-8")  # noqa: SIM115
        self._is_terminal = sys.stdout.isatty()
        self._progress_printed_at = time.monotonic()
        self._stage_name = ""

    def say(self, text: str = "") -> None:
        """Print some lines."""
        # Text may hold names out of data or models, and these anything, such as a terminal's commands.
        text = printable(text)
        if self._is_terminal:
            print(_CLEAR_LINE, end="")
        print(text, flush=True)
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        for line in text.split("\n"):
            self._log.write(f"{now} {line}\n")
        # A driver that is killed leaves the log complete.
        self._log.flush()

    def begin(self, name: str) -> None:
        """Say that a stage begins."""
        self._stage_name = name
        self._progress_printed_at = time.monotonic()
        if self._is_terminal:
            print(f"  … {name}", end="", flush=True)

    def end(self, name: str, seconds: float, figures: dict[str, Any]) -> None:
        """Say that a stage has ended well, how long it took and what came out."""
        parts = []
        for key in _SHOWN:
            if figures.get(key) not in (0, None):
                parts.append(_labelled(figures[key], key))
        for reason, count in dropped(figures).items():
            parts.append(_labelled(count, f"{reason} dropped"))
        text = ", ".join(parts)
        self.say(f"  ✓ {name:<32}{seconds:6.1f} s  {text}")
        if figures.get("warning"):
            self.say(f"  ⚠ {figures['warning']}")

    def progress(self, done: float, total: float, note: str) -> None:
        """Show how far the present stage is."""
        text = f"  … {self._stage_name}  {done:g}/{total:g} {note}"
        now = time.monotonic()
        # Without a terminal every report would be a line of its own, and a file of them unreadable.
        if self._is_terminal:
            print(f"{_CLEAR_LINE}{text}", end="", flush=True)
        elif now - self._progress_printed_at > EVERY_SECONDS:
            self._progress_printed_at = now
            self.say(text)


def _labelled(value: Any, key: str) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    label = key.replace("_", " ")
    return f"{value} {label}"
