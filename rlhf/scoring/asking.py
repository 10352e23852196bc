"""What a generative judge is asked through: a server, or an engine in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf.data.judge_files import Unread
from rlhf.data.records import Message


@dataclass(frozen=True)
class Answer:
    """What a judge has written, and the tokens that took; None where nobody has counted them.

    `problem` says why it was not asked at all.
    """

    text: str
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    problem: Unread | None = None


Answered = Callable[[int, Answer], None]
"""Gets the number of a question and its answer, as soon as it is there."""


class Asker(Protocol):
    """Has questions answered."""

    def ask(self, questions: Sequence[list[Message]], answered: Answered) -> None:
        """Each question once, in any order."""
        ...
