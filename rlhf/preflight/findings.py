"""A finding: one fact that was looked at before a run, whether it is fine, and what to do if it is not."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from rlhf.errors import UserError

# Only a capital letter begins a sentence: "e.g. this" and "config.json has" end none.
_GAP_BETWEEN_SENTENCES = re.compile(r"(?<=\.)\s+(?=[A-Z])")


class Level(Enum):
    """Fine, odd but legal, or bound to fail."""

    ok = "✓"
    warning = "⚠"
    error = "✗"


@dataclass(frozen=True)
class Finding:
    """What was looked at with the value found, and unless it is fine why that matters and what to do.

    Example:
        Finding(Level.warning, "reuse=runs/old: 0 finished stages", "Nothing is taken from it.", "data")
    """

    level: Level
    text: str
    way_out: str = ""
    subject: str = ""


def finding(fine: bool, text: str, way_out: str = "", level: Level = Level.warning) -> Finding:
    """A finding that is fine, or else of the given level with its way out."""
    if fine:
        return Finding(Level.ok, text)
    return Finding(level, text, way_out)


def refusal(message: str, level: Level = Level.error) -> Finding:
    """An error message as a finding: its first sentence says what is wrong, the rest is the way out."""
    end = _end_of_first_sentence(message)
    first = message[:end]
    rest = message[end:].strip()
    return Finding(level, first, rest)


def _end_of_first_sentence(message: str) -> int:
    for gap in _GAP_BETWEEN_SENTENCES.finditer(message):
        end = gap.start()
        # Within parentheses a sentence may end without ending the one around it.
        if message.count("(", 0, end) == message.count(")", 0, end):
            return end
    return len(message)


def collect(subject: str, check: Iterable[Finding]) -> list[Finding]:
    """All that a check finds; a user's error that it raises is the last of it."""
    findings: list[Finding] = []
    try:
        # Checks are generators: what they yielded before an error is already in the list.
        findings.extend(check)
    except UserError as error:
        findings.append(refusal(str(error)))
    return [replace(item, subject=item.subject or subject) for item in findings]


def table(findings: Sequence[Finding]) -> str:
    """A block for each subject, a line for each finding and below it the way out."""
    blocks: dict[str, list[str]] = {}
    for item in findings:
        # Findings of one subject stand together, also where they were found at different times.
        lines = blocks.setdefault(item.subject, [item.subject])
        mark = item.level.value
        first, *rest = item.text.split("\n")
        lines.append(f"  {mark} {first}")
        # Deeper than a finding, so that no line of a text from outside passes for one.
        for line in [*rest, *item.way_out.split("\n")]:
            if line:
                lines.append(f"      {line}")
    return "\n".join(itertools.chain.from_iterable(blocks.values()))
