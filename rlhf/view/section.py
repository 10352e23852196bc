"""A table with a title and what must be said of it: the part of a page that terminals and files share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf.run.text_table import text_table


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
