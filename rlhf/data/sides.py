"""Two answers to one question, and which is the better one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.bases import BASES
from rlhf.data.questions import joined, question_of, system_of, with_system
from rlhf.data.records import Message
from rlhf.data.rows import Row, UnusableRow, as_row, has_value
from rlhf.data.turns import (
    MARK,
    clean_turns,
    content_of,
    content_text,
    listed,
    marked_turns,
    nonempty_list,
    role_of,
    speaker_of,
    to_turns,
)
from rlhf.errors import DataError

_ANSWER_KEYS = (
    "answer",
    "response",
    "content",
    "text",
    "output",
    "completion",
    "value",
    "summary",
    "generation",
)
_NESTED_KEYS = ("messages", "conversations", "conversation")
# Of preferences: ShareGPT's turns beside the answers, then what most sets call the question.
_FIRST_BASES = ("conversations", "prompt")


@dataclass(frozen=True)
class Side:
    """What was asked, ending with a user's turn, and one answer to it; the answer is not yet cleaned."""

    context: list[Message]
    answer: Any


@dataclass(frozen=True)
class Comparison:
    """Two answers; `better` is 0 for the first, 1 for the second, None for a tie.

    `contradicted` says that scores of the same row have it the other way round.
    """

    sides: tuple[Side, Side]
    better: int | None
    contradicted: bool = False


def of_row(read: Callable[[Row], list[Comparison]]) -> Callable[[Mapping[str, Any]], list[Comparison]]:
    """A reader of rows that takes plain records, too."""

    @functools.wraps(read)
    def read_any(row: Mapping[str, Any]) -> list[Comparison]:
        return read(as_row(row))

    return read_any


def asked_of(row: Row, first: Sequence[str] = _FIRST_BASES) -> list[Message]:
    """The question beside the answers; empty where there is none."""
    question = question_of(row, first)
    if question is not None:
        return question.messages
    # The answers may be whole conversations, and a system turn stand beside them.
    return with_system(system_of(row), [])


def side_of(asked: list[Message], value: Any, what: str, row: Row) -> Side:
    """One answer in any of the ways to write it: text, a turn, parts, or a conversation that ends with it.

    Raises:
        UnusableRow: it is none of these, or what it repeats of the question differs.
        DataError: it is text, and the row does not say what was asked.
    """
    value = listed(value)
    if isinstance(value, str):
        return _side_of_text(asked, value, what, row)
    if isinstance(value, Mapping):
        return _side_of_object(asked, value, what, row)
    if isinstance(value, list) and value and any(speaker_of(turn) is not None for turn in value):
        return _continued(asked, side_of_turns(value, what))
    if asked and not isinstance(value, list):
        return Side(asked, value)
    elements = nonempty_list(value, what)
    turns = to_turns(elements, what)
    if turns is not elements and role_of(speaker_of(turns[-1])) == "user":
        # Parts of one content: `to_turns` takes them for a question.
        return Side(asked, elements)
    return _continued(asked, side_of_turns(turns, what))


def _side_of_text(asked: list[Message], text: str, what: str, row: Row) -> Side:
    if any(turn["role"] != "system" for turn in asked):
        turns = marked_turns(text, whole=True)
        # An answer may quote a dialogue; a conversation begins with the question that the row gives.
        if turns is not None and turns[0]["content"].strip() in (message["content"] for message in asked):
            return _continued(asked, side_of_turns(turns, what))
        return Side(asked, text)
    # An error for the whole file, not a row to skip: the other rows will not say either what was asked.
    if not MARK.search(text) and marked_turns(text, whole=True) is None:
        for name in BASES[:5]:
            if name in row:
                raise UnusableRow("empty", f"{name} is empty.")
        raise DataError(f"{what} is text without a prompt; the keys are {sorted(row)}")
    return _continued(asked, side_of_marked_text(text, what))


def _side_of_object(asked: list[Message], value: Mapping[str, Any], what: str, row: Row) -> Side:
    if speaker_of(value) is not None:
        return _continued(asked, side_of_turns([value], what))
    if any(isinstance(value.get(key), list) for key in _NESTED_KEYS):
        return _continued(asked, side_of_turns(to_turns(value, what), what))
    for key in _ANSWER_KEYS:
        if has_value(value.get(key)):
            inner = value[key]
            # One level only: an object in an object is no answer.
            return Side(asked, inner) if isinstance(inner, Mapping) else side_of(asked, inner, what, row)
    raise UnusableRow("not_turns", f"{what} holds no answer: {value!r:.80}.")


def side_of_turns(turns: Sequence[Any], what: str) -> Side:
    """A conversation whose last turn is the answer.

    Raises:
        UnusableRow: another's turn is the last.
    """
    last = turns[-1]
    speaker = speaker_of(last)
    role = role_of(speaker)
    if role != "assistant":
        named = role or (speaker if isinstance(speaker, str) else type(last).__name__)
        raise UnusableRow("ends_on_user", f"{what} ends with the {named!s:.40}'s turn, not with an answer.")
    # A lone answer is fine so far: the question may stand beside it, under `prompt`.
    return Side(clean_turns(turns[:-1], what), content_of(last))


def side_of_marked_text(text: Any, what: str) -> Side:
    r"""A conversation of turns that begin with `Human:` and `Assistant:` (HH-RLHF), or with such headings.

    Example:
        "\n\nHuman: Hi\n\nAssistant: Hello!"
    """
    parts = MARK.split(text) if isinstance(text, str) else []
    # Split gives what stands before the first mark, then a role and its text for every mark.
    if len(parts) >= 3 and not parts[0].strip():
        turns = []
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
            turns.append({"role": role_of(speaker), "content": content})
        return side_of_turns(turns, what)
    marked = marked_turns(text, whole=True) if isinstance(text, str) else None
    if marked is None:
        raise UnusableRow(
            "not_turns",
            f"{what} is no conversation of turns that begin with 'Human:' or 'Assistant:'.",
        )
    return side_of_turns(marked, what)


def _continued(asked: list[Message], side: Side) -> Side:
    """A side behind the question that stands beside it, which its own turns may repeat in part."""
    if not asked or not side.context:
        return Side(side.context or asked, side.answer)
    spoken = [turn for turn in side.context if turn["role"] != "system"]
    if _is_repeated(spoken, asked):
        # The question beside it says all of this and perhaps more: a context that was added to it.
        system = [turn for turn in side.context[:1] if turn["role"] == "system"]
        return Side(joined(system, asked) if system else asked, side.answer)
    context = joined(asked, side.context)
    last = asked[-1]
    follows = context[len(asked) : len(asked) + 1]
    # Two questions in a row: the prompt is a part of the completion's own one, or another question.
    if context[: len(asked)] == asked and follows and follows[0]["role"] == last["role"] == "user":
        if not any(last["content"] in turn["content"] for turn in spoken if turn["role"] == "user"):
            raise UnusableRow(
                "prompt_differs", "the prompt is another one than that of the answers' own turns."
            )
        context = asked[:-1] + spoken
    return Side(context, side.answer)


def _is_repeated(spoken: list[Message], asked: list[Message]) -> bool:
    """Whether the last turns of the question say, each for each, what these turns do."""
    if len(spoken) > len(asked):
        return False
    tail = asked[len(asked) - len(spoken) :]
    pairs = zip(spoken, tail, strict=True)
    return all(turn["role"] == asked["role"] and turn["content"] in asked["content"] for turn, asked in pairs)


def answer_text(answer: Any) -> str:
    """The text of an answer, trimmed; UnusableRow where there is none."""
    return content_text(answer, "an answer")
