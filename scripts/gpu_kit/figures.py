"""What a step measures, and how it says so while it is still at work."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.data.json_text import json_text

TOY = "toy"
FULL = "full"
NEEDS_GPU = "needs a GPU"
"""In place of a figure that a CPU cannot give."""
FAILED = "failed"
"""In place of one that an error took."""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Example:
        Figure("8B shape, MFU", 0.47, "of the peak", bar=0.45)
    """

    name: str
    value: float | str | None
    """None: it cannot be measured here, and `detail` says why; `FAILED`: it should have been."""
    unit: str = ""
    bar: float | None = None
    lower_is_better: bool = False
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None where there is no bar or no number, False where it failed."""
        if self.value == FAILED:
            return False
        if self.bar is None or not isinstance(self.value, int | float):
            return None
        if self.lower_is_better:
            return self.value <= self.bar
        return self.value >= self.bar


class SkipStepError(Exception):
    """This step cannot be done here; the text says why."""


class Kit:
    """What a step is told, and the file that its figures go into one by one, so that a kill leaves them."""

    def __init__(self, size: str, work: Path, file: Path, seconds: float) -> None:
        self.size = size
        self.work = work
        """A folder for models and runs, the same for all steps."""
        self.file = file
        self.deadline = time.monotonic() + seconds

    @property
    def is_toy(self) -> bool:
        """Whether shapes are tiny, for a CPU."""
        return self.size == TOY

    @property
    def seconds_left(self) -> float:
        """Until the step is ended from outside."""
        return self.deadline - time.monotonic()

    def add(
        self,
        name: str,
        value: float | str | None,
        unit: str = "",
        bar: float | None = None,
        lower_is_better: bool = False,
        detail: str = "",
    ) -> None:
        """Write a figure down at once."""
        figure = Figure(name, value, unit, bar, lower_is_better, detail)
        append_line(self.file, asdict(figure) | {"met": figure.met})

    def fail(self, name: str, why: str) -> None:
        """Say that a figure should have been measured, and was not."""
        self.add(name, FAILED, detail=why)

    def needs_gpu(self, *names: str) -> None:
        """Say of figures that they are not to be had here."""
        for name in names:
            self.add(name, NEEDS_GPU)


def append_line(file: Path, row: dict[str, Any]) -> None:
    """Add a row to a file of JSON lines, and make sure that it is there."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json_text(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Rows of such a file; a last line that a kill has cut is left out."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def as_text(step: dict[str, Any]) -> list[str]:
    """A step's lines of the table: how it went, then its figures."""
    status = step["status"]
    if step["reason"]:
        status += f": {step['reason']}"
    lines = [f"[{step['name']}] {step['what']}: {status} ({step['seconds']:.0f} of {step['limit']:.0f} s)"]
    for figure in step["figures"]:
        lines.append("  " + figure_as_text(figure))
    return lines


def figure_as_text(figure: dict[str, Any]) -> str:
    """One figure: its mark, name, value, bar and what is behind it."""
    mark = {True: "✓", False: "✗", None: "·"}[figure["met"]]
    value = figure["value"]
    if value is None:
        value = "none"
    elif isinstance(value, float):
        value = f"{value:.4g}"
    bar = ""
    if figure["bar"] is not None:
        sign = "≤" if figure["lower_is_better"] else "≥"
        bar = f"({sign} {figure['bar']:g})"
    words = [mark, f"{figure['name']:<44}", f"{value:>12}", figure["unit"], bar, figure["detail"]]
    return " ".join(word for word in words if word).rstrip()


def table(steps: Sequence[dict[str, Any]]) -> str:
    """All steps as text."""
    lines: list[str] = []
    for step in steps:
        lines += as_text(step)
    return "\n".join(lines) + "\n"
