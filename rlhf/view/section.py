"""A table with a title and what must be said of it: the part of a page that terminals and files share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf.run.text_table import text_table

NOTHING = "–"
"""In a cell of which nothing is known."""


@dataclass
class Section:
    """`right` names the columns that hold numbers; `notes` are sentences below the table.

    Without rows the notes alone are shown.
    """

    title: str
    heads: Sequence[str] = ()
    rows: list[list[str]] = field(default_factory=list)
    right: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)


def as_text(sections: Sequence[Section]) -> str:
    """Sections for a terminal, an empty line between them."""
    return "\n\n".join(map(_section_text, sections))


def _section_text(section: Section) -> str:
    lines = [section.title]
    if section.rows:
        lines.append(text_table(section.heads, section.rows, section.right))
    return "\n".join([*lines, *section.notes])


def number(value: float | None, form: str) -> str:
    """A figure as text, by Python's format; what is unknown or not finite is a dash.

    Example:
        number(0.6184, "+.3f") gives "+0.618"
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    return format(value, form)


def share(value: float | None) -> str:
    """A share of 0–1 in percent."""
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def rate(mean: float | None, low: float | None, high: float | None) -> str:
    """A rate of 0–1 with its interval, such as "0.618 [0.551, 0.684]"."""
    if mean is None or not math.isfinite(mean):
        return NOTHING
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
