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
    "pairs",
    "steps",
    "conversations",
    "first_loss",
    "last_loss",
    "packs",
    "held_out_accuracy",
    "held_out_loss",
    "disagreement",
    "engine",
]
"""Counts and metrics worth a place on a stage's line, beside what was dropped."""


class Console:
    """Prints to standard output and keeps a copy with times in `logs/driver.log`."""

    def __init__(self, folder: Path) -> None:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._log = open(folder / "logs" / "driver.log", "a", encoding="utf-8")  # noqa: SIM115 - for the run's life
        self._terminal = sys.stdout.isatty()
        self._said = time.monotonic()
        self._name = ""

    def say(self, text: str = "") -> None:
        """Print some lines."""
        text = printable(text)
        print(("\r\x1b[K" if self._terminal else "") + text, flush=True)
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        for line in text.split("\n"):
            self._log.write(f"{now} {line}\n")
        self._log.flush()

    def begin(self, name: str) -> None:
        """Say that a stage begins."""
        self._name, self._said = name, time.monotonic()
        if self._terminal:
            print(f"  … {name}", end="", flush=True)

    def end(self, name: str, seconds: float, figures: dict[str, Any]) -> None:
        """Say that a stage has ended well, how long it took and what came out."""
        shown = {key: figures[key] for key in _SHOWN if figures.get(key) not in (0, None)}
        shown |= {f"{reason} dropped": n for reason, n in dropped(figures).items()}
        text = ", ".join(f"{_figure(value)} {key.replace('_', ' ')}" for key, value in shown.items())
        self.say(f"  ✓ {name:<32}{seconds:6.1f} s  {text}")
        if figures.get("warning"):
            self.say(f"  ⚠ {figures['warning']}")

    def progress(self, done: float, total: float, note: str) -> None:
        """Show how far the present stage is."""
        text = f"  … {self._name}  {done:g}/{total:g} {note}"
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", flush=True)
        elif time.monotonic() - self._said > EVERY_SECONDS:
            self._said = time.monotonic()
            self.say(text)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
