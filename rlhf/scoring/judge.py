"""One interface for everything that scores responses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rlhf.records import Message


@dataclass(frozen=True)
class Scored:
    """One raw score per conversation, in order, and how many inputs lost tokens on the left.

    `num_calls` is how often a pairwise judge's model was asked; None for judges that read each response once.
    """

    scores: list[float]
    num_truncated: int = 0
    num_calls: int | None = None


class Judge(Protocol):
    """Maps (conversation, response) to a number; higher is better."""

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """Score responses; an item's score does not depend on the others."""
        ...


class RuleJudge:
    """A Python function `(messages, response) -> number`."""

    def __init__(self, path: str) -> None:
        module, _, name = path.partition(":")
        self._function: Callable[[list[Message], str], float] = getattr(importlib.import_module(module), name)

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """The function's value for each item."""
        return Scored([float(self._function(messages, response)) for messages, response in items])
