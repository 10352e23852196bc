"""What a generative judge is asked through: a server, or an engine in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf.data.judge_files import Unread
from rlhf.data.records import Message
from rlhf.data.rows import without_half_pairs

_MOST_TOKENS = 2**63 - 1
"""That a column of answers holds."""


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


def answer_told(text: str, finish_reason: str, prompt_tokens: object, completion_tokens: object) -> Answer:
    """An answer as a server tells it, or as it was kept, made fit for a file.

    Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes U+FFFD. A number of tokens that is no
    whole number, or none that 64 bits hold, is unknown.
    """
    return Answer(
        without_half_pairs(text),
        without_half_pairs(finish_reason),
        _count(prompt_tokens),
        _count(completion_tokens),
    )


def _count(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MOST_TOKENS else None


Answered = Callable[[int, Answer], None]
"""Gets the number of a question and its answer, as soon as it is there."""


class Asker(Protocol):
    """Has questions answered."""

    def ask(self, questions: Sequence[list[Message]], answered: Answered) -> None:
        """Each question once, in any order."""
        ...
