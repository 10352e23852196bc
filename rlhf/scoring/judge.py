"""One interface for everything that scores responses."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf.data.records import Message
from rlhf.errors import ConfigError, DataError
from rlhf.scoring.at_once import AtOnce
from rlhf.scoring.kept import KeptAnswers, key_of

_ITEMS_OF_A_LIST = 64
"""Responses that a rule of lists gets at once: what a kill can have asked for again."""


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

    One that is `async` is called for `concurrency` responses at once. One whose second parameter is annotated
    as a list (`responses: list[str]`) gets conversations and responses as two lists, and gives back a list.

    Raises:
        ConfigError: the module has no such function.
    """

    def __init__(self, path: str, concurrency: int = 1) -> None:
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
        self._function: Any = function
        self._takes_list = takes_list(function)
        self._is_async = is_async(function)
        self.keeps = self._takes_list or self._is_async
        """Whether its values are kept as they come: it may be slow, or cost something."""
        self._calls = AtOnce(concurrency) if self._is_async else None
        self.begin(KeptAnswers())

    def begin(self, kept: KeptAnswers, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Start a shard: what an `async` rule or one of lists says is kept in `kept`, and not asked again."""
        self._kept = kept
        self._progress = progress

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """The function's value for each item; what it raises goes through.

        Raises:
            DataError: a value is no number.
        """
        if self.keeps:
            return Scored(self._kept_values(items))
        scores = []
        for messages, response in items:
            scores.append(self._value(messages, response))
        return Scored(scores)

    def _kept_values(self, items: list[tuple[list[Message], str]]) -> list[float]:
        """The values of a rule that is `async` or takes lists, each different item once."""
        keys = [key_of(messages, response) for messages, response in items]
        item_of = dict(zip(keys, items, strict=True))
        missing = [key for key in item_of if self._kept.get(key) is None]
        size = _ITEMS_OF_A_LIST if self._takes_list else 1
        calls = [missing[start : start + size] for start in range(0, len(missing), size)]

        def arguments(part: list[str]) -> tuple[Any, Any]:
            # Copies, as below.
            messages = [[message.copy() for message in item_of[key][0]] for key in part]
            responses = [item_of[key][1] for key in part]
            return (messages, responses) if self._takes_list else (messages[0], responses[0])

        def done(part: list[str], found: Any) -> None:
            values = [found]
            if self._takes_list:
                values = self._list_of(found, len(part))
            for key, value in zip(part, values, strict=True):
                messages, response = item_of[key]
                number = self._number(value, messages, response)
                # As text: JSON has no word for NaN.
                self._kept.add(key, {"value": repr(number)})
            known = [key for key in item_of if self._kept.get(key) is not None]
            self._progress(len(known), len(item_of))

        if self._calls is not None:
            self._calls.run(lambda part: self._function(*arguments(part)), calls, done)
        else:
            for part in calls:
                done(part, self._function(*arguments(part)))
        scores = []
        for key in keys:
            record = self._kept.get(key)
            assert record is not None, "asked for a moment ago"
            scores.append(float(record["value"]))
        return scores

    def _list_of(self, found: Any, wanted: int) -> Any:
        """What a rule of lists gave back, if it is one value for each response."""
        num_found = len(found) if _is_list(found) else -1
        if num_found == wanted:
            return found
        said = f"{num_found} values"
        if num_found < 0:
            said = f"{found!r:.200} ({type(found).__name__})"
        raise DataError(
            f"rule={self._path}: takes lists, and gave back {said} for {wanted} responses. "
            "Let it give back a "
            "list with one number for each, in their order; NaN leaves one out."
        )

    def _value(self, messages: list[Message], response: str) -> float:
        # Outside of the try: a TypeError of the function's own is a bug in it and not a wrong result.
        # Copies: one that is changed would be another question to all responses behind this one.
        value = self._function([message.copy() for message in messages], response)
        return self._number(value, messages, response)

    def _number(self, value: Any, messages: list[Message], response: str) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"rule={self._path}: gave back {value!r:.200}, which is no number, for the response "
                f"{response[:200]!r} to {messages[-1]['content'][:200]!r}. Let it give back a "
                "number for every response; NaN leaves one out."
            ) from error


def _is_list(found: Any) -> bool:
    """Whether something holds values in an order: a list, a tuple, an array or a tensor.

    A set has lost the order, of a mapping one would get the keys, and of text the letters.
    """
    if isinstance(found, Sequence):
        return not isinstance(found, str | bytes | bytearray | memoryview)
    # Arrays of numpy and pandas, and tensors; a single number has no dimension.
    return getattr(found, "ndim", 0) > 0


def is_async(function: Any) -> bool:
    """Whether a rule is `async def`, or an object whose call is."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def takes_list(function: Any) -> bool:
    """Whether a rule takes lists: its second parameter is annotated as `list[…]`."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False  # of a built-in, which says nothing of itself
    if len(parameters) < 2:
        return False
    annotation = parameters[1].annotation
    # As text under `from __future__ import annotations`: names in it need not be there at run time.
    text = annotation if isinstance(annotation, str) else repr(annotation)
    return annotation is list or re.match(r"(typing\.)?[Ll]ist\b", text) is not None
