"""One interface for everything that scores responses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rlhf.data.records import Message
from rlhf.errors import ConfigError, DataError


@dataclass(frozen=True)
class Scored:
    """One raw score per conversation, in order, and how many inputs lost tokens on the left.

    `num_over_context` is how many inputs are longer than the judge's context all the same. `refused` are the
    places of conversations that the judge's chat template does not take; they score NaN. `num_calls` is how
    often a pairwise judge's model was asked; None for judges that read each response once.

    Example:
        Scored([1.5, -0.3], num_truncated=0, num_calls=None)
    """

    scores: list[float]
    num_truncated: int = 0
    num_calls: int | None = None
    num_over_context: int = 0
    refused: tuple[int, ...] = ()


class Judge(Protocol):
    """Maps (conversation, response) to a number; higher is better."""

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """Score responses; an item's score does not depend on the others.

        Example:
            items: [([{"role": "user", "content": "Hi"}], "Hello!")]
        """
        ...


class RuleJudge:
    """A Python function `(messages, response) -> number`.

    Raises:
        ConfigError: the module has no such function.
    """

    def __init__(self, path: str) -> None:
        module_name, _, name = path.partition(":")
        module = importlib.import_module(module_name)
        function: Callable[[list[Message], str], float] | None = getattr(module, name, None)
        # Here, and not at the first response: sampling before it takes hours.
        if not callable(function):
            raise ConfigError(
                f"rule={path}: {module_name} has no function {name!r}. Name one that takes "
                "(messages, response) and gives back a number."
            )
        self._path = path
        self._function = function

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """The function's value for each item; what it raises goes through.

        Raises:
            DataError: a value is no number.
        """
        scores = []
        for messages, response in items:
            scores.append(self._value(messages, response))
        return Scored(scores)

    def _value(self, messages: list[Message], response: str) -> float:
        # Outside of the try: a TypeError of the function's own is a bug in it and not a wrong result.
        value = self._function(messages, response)
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"rule={self._path}: gave back {value!r}, which is no number, for the response "
                f"{response[:200]!r} to {messages[-1]['content'][:200]!r}. Let it give back a "
                "number for every response; NaN leaves one out."
            ) from error
