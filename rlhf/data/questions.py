"""What a model is asked: all columns of a row that belong to its question, as messages.

Every reader of this package finds the question of a row here, by one table: a base (the conversation, or
the text of a turn), and what belongs to it: system, earlier turns, input, context, choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rlhf.data.bases import BASES, CONVERSATIONS, base_of, is_answer, is_turns
from rlhf.data.columns import is_known, unread_of
from rlhf.data.records import Message
from rlhf.data.rendering import are_choices_said, choices_text, is_said, passages_text
from rlhf.data.rows import Row, UnusableRow, has_value, plain_json, plain_text
from rlhf.data.turns import (
    clean_turns,
    content_of,
    content_text,
    earlier_turns,
    marked_turns,
    speaker_of,
)
from rlhf.errors import DataError

SHAPES = (
    "context_messages: messages",
    "messages or conversations: messages, where one assistant's turn at the end is cut off",
    "prompt: text or messages",
    "instruction, perhaps with input: text",
    "question: text",
    "query, problem, input or turns: text",
)
"""What a row may look like, with system, history, context and choices beside it; `messages` are
`[{"role": …, "content": …}, …]`, or turns with from and value."""

_SYSTEMS = (
    "system",
    "system_prompt",
    "system_message",
    "sys_prompt",
    "system_instruction",
    "system_instructions",
    "system_content",
    "system_text",
    "sysprompt",
    "sys",
    "custom_system_prompt",
)
_HISTORIES = (
    "history",
    "chat_history",
    "conversation_history",
    "dialogue_history",
    "dialog_history",
    "previous_turns",
)
_CONTEXTS = ("context", "contexts", "passage", "passages", "document", "documents")
# Of an object that is a base: where it holds the conversation, or the text of the question.
_INNER_BASES = (
    "messages",
    "conversations",
    "conversation",
    "full_text",
    "stem",
    "content",
    "value",
    "text",
    "question",
    "user",
    "human",
    "prompt",
    "instruction",
    "query",
    "problem",
    "input",
)
_CHOICES = ("choices", "options")
TABLE = (*BASES, *_SYSTEMS, *_HISTORIES, *_CONTEXTS, *_CHOICES, "instances")
"""All columns that may hold a part of the question."""


@dataclass
class Question:
    """The messages of a row up to its answer; `base` is the name of `BASES` under which they stood.

    Where the base is a whole conversation its last answer is `answer`, as it stands there, and `has_answer`
    is true.
    """

    base: str
    messages: list[Message]
    answer: Any = None
    has_answer: bool = False


def question_of(row: Row, first: Sequence[str] = ()) -> Question | None:
    r"""The question of a row; None where no base holds one.

    Args:
        row: is marked: what belongs to the question counts as read.
        first: bases to look at before the others.

    Raises:
        UnusableRow: a part of it cannot be read, or two system turns say different things.

    Example:
        {"system": "Be brief.", "instruction": "Add", "input": [1, 2]} gives
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add\n\n[1, 2]"}]
    """
    found = base_of(row, first)
    if found is None:
        return None
    base, turns = found
    if isinstance(turns, Mapping):
        return _question_inside(row, base, turns, first)
    question = Question(base, [])
    # Before it is cleaned: an answer that cannot be read is no fault of the question.
    if base in (*CONVERSATIONS, "text", "data") and is_answer(turns[-1]):
        question.answer = content_of(turns[-1])
        question.has_answer = True
        turns = turns[:-1]
    if not turns:
        raise UnusableRow("empty", f"{base} holds no turn before the answer.")
    messages = clean_turns(turns, base)
    # Before the history is there: what belongs to this question is not for an earlier one.
    _append_pieces(row, base, messages)
    messages = joined(_history(row, base), messages)
    # Last, for a system turn goes before all others, whichever column they come from.
    question.messages = with_system(system_of(row), messages)
    _mark_repeated(row, question.messages)
    return question


def _question_inside(row: Row, base: str, value: Mapping[str, Any], first: Sequence[str]) -> Question | None:
    """The question of a row whose base is an object: what stands in it is read as if it stood in the row.

    Example:
        {"question": {"stem": "2+2?", "choices": [{"label": "A", "text": "4"}]}}
    """
    filled = [name for name in value if has_value(value[name])]
    key = next((key for key in _INNER_BASES if key in filled), None)
    if key is None:
        raise UnusableRow("not_messages", f"{base} must be text or a list of messages; found {value!r:.80}.")
    filled.remove(key)
    inner = {name: value[name] for name in filled if name not in row}
    unfolded = row.unfolded(row.column(base) or base, value[key], inner)
    question = question_of(unfolded, (base, *first))
    row.read.update(unfolded.read.intersection(row.record))
    # What the row itself holds under the same name was read in its place.
    unread = [name for name in filled if name in row and not is_known(name)]
    unread += [name for name in unread_of(unfolded) if name in inner]
    row.unread_inside += [f"{base}.{name}" for name in unread]
    return question


def refuse_without_question(
    row: Row, what: str, shapes: Sequence[str], bases: Sequence[str] = BASES[:5]
) -> NoReturn:
    """Say that a row holds no question, under one of the bases or at all.

    Raises:
        UnusableRow: a base is there, but empty: the row is of a known shape.
        DataError: there is no base; names the keys found and the shapes known.
    """
    for name in bases:
        if name in row:
            raise UnusableRow("empty", f"{name} is empty.")
    raise DataError(f"No {what} found: the keys are {sorted(row)}; known shapes are: {'; '.join(shapes)}.")


def _append_pieces(row: Row, base: str, messages: list[Message]) -> None:
    """Add input, context and choices to the first question of a conversation, which may be the only one."""
    asked = next((message for message in messages if message["role"] == "user"), None)
    for column, text, goes_before in _pieces(row, base):
        # A system turn alone: whoever asked for the question says that none is there.
        if asked is None:
            return
        row.read.add(column)
        if not text.strip():
            continue
        if _stands_there(base, column, text, messages):
            continue
        parts = [text, asked["content"]] if goes_before else [asked["content"], text]
        asked["content"] = "\n\n".join(parts).strip()


def _stands_there(base: str, column: str, text: str, messages: list[Message]) -> bool:
    """Whether a piece needs no adding, for the question holds it."""
    # Alpaca's rows hold the raw input, whose text an instruction may well quote.
    if base == "instruction" and column in ("input", "context"):
        return False
    if is_said(text, messages):
        return True
    # Files that hold a finished prompt often keep what it was made of beside it, as our own output does.
    is_finished = base in (*CONVERSATIONS, "prompt", "context_messages")
    return is_finished and column in _CHOICES and are_choices_said(text, messages)


def _pieces(row: Row, base: str) -> Iterator[tuple[str, str, bool]]:
    """Column, text, and whether it goes before the question, of all that belongs to one."""
    names = ["input"]
    # An instruction says what to do with the question beside it.
    if base == "instruction":
        names = ["question", "query", "problem", "input"]
    for name in names:
        if name != base and row.holds(name):
            yield str(row.column(name)), plain_text(row.peek(name)), False
    yield from _instance_input(row)
    yield from _contexts(row, base)
    for name in _CHOICES:
        text = choices_text(row.peek(name))
        if text is not None:
            yield str(row.column(name)), text, False


def _instance_input(row: Row) -> Iterator[tuple[str, str, bool]]:
    """Of `instances`, where self-instruct keeps input and output of an instruction."""
    instances = row.peek("instances")
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], Mapping):
        return
    value = instances[0].get("input")
    if has_value(value):
        yield str(row.column("instances")), plain_text(value), False
    elif len(instances) == 1:
        # Nothing is left to read in it: the output is an answer.
        row.read.add(str(row.column("instances")))


def _contexts(row: Row, base: str) -> Iterator[tuple[str, str, bool]]:
    if row.maps("context"):
        value = row.mapped("context")
        if has_value(value):
            yield "", passages_text(value), False
        return
    for name in _CONTEXTS:
        if name != base and row.holds(name) and not is_turns(row.peek(name)):
            # Where a question has passages of its own they stand before it (qa_feedback).
            yield str(row.column(name)), passages_text(row.peek(name)), name == "passages"


def _history(row: Row, base: str) -> list[Message]:
    """The turns before the question."""
    if row.maps("history"):
        value = row.mapped("history")
        return clean_turns(earlier_turns(value, "history"), "history") if has_value(value) else []
    for name in (*_HISTORIES, "context"):
        value = row.peek(name)
        if name == base or not has_value(value):
            continue
        # A context is mostly a text or passages; where it is turns, they come before the question.
        if name == "context" and not is_turns(value):
            continue
        # A text that does not say who speaks cannot become turns: the column stays unread, and is counted.
        turns = marked_turns(value, whole=True) if isinstance(value, str) else None
        if isinstance(value, list | Mapping):
            turns = earlier_turns(value, name)
        if turns:
            row.read.add(str(row.column(name)))
            return clean_turns(turns, name)
    return []


def joined(earlier: list[Message], later: list[Message]) -> list[Message]:
    """Two parts of a conversation; what the second repeats of the first is there once.

    Raises:
        UnusableRow: both begin with a system turn, and these differ.
    """
    if not earlier:
        return later
    if later and later[0]["role"] == "system":
        system, *later = later
        earlier = with_system(system["content"], earlier)
    # Compared without it: a completion may repeat the question and not the system turn.
    has_system = earlier[0]["role"] == "system"
    spoken = earlier[1:] if has_system else earlier
    if spoken and _contains(later, spoken):
        return [*earlier[:1], *later] if has_system else later
    # The longest overlap first, so that nothing of it is left over.
    for length in range(min(len(spoken), len(later)), 0, -1):
        if spoken[-length:] == later[:length]:
            return earlier + later[length:]
    return earlier + later


def _contains(messages: list[Message], part: list[Message]) -> bool:
    """Whether one conversation stands in another as it is."""
    for start in range(len(messages) - len(part) + 1):
        end = start + len(part)
        if messages[start:end] == part:
            return True
    return False


def system_of(row: Row) -> str | None:
    """What stands beside the question for the system to say.

    Raises:
        UnusableRow: no text, or two columns with different ones.
    """
    values = [row.mapped("system")] if row.maps("system") else []
    if not values:
        for name in _SYSTEMS:
            if row.holds(name):
                values.append(row[name])
    # Keys of a dict, and no set, for the message names them in their order.
    texts = {content_text(value, "system"): None for value in values if has_value(value)}
    if len(texts) > 1:
        raise UnusableRow("two_systems", f"two columns hold different system turns: {list(texts)!r:.120}.")
    return next(iter(texts), None)


def with_system(text: str | None, messages: list[Message]) -> list[Message]:
    """A conversation that begins with this system turn.

    Raises:
        UnusableRow: it begins with another one; templates take only one.
    """
    if text is None:
        return messages
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    if messages[0]["content"] != text:
        raise UnusableRow(
            "two_systems", f"the conversation has a system turn, and {text!r:.80} stands beside it."
        )
    return messages


def _mark_repeated(row: Row, messages: list[Message]) -> None:
    """Count a column of the table as read where all of it is said in the messages."""
    for name in TABLE:
        column = row.column(name)
        if column is None or column in row.read:
            continue
        texts = list(_texts_in(row.record[column]))
        if texts and all(any(text in message["content"] for message in messages) for text in texts):
            row.read.add(column)


def _texts_in(value: Any) -> Iterator[str]:
    """All text of a value but who speaks, and what the assistant says."""
    if isinstance(value, str) and value.strip():
        yield value.strip()
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _texts_in(element)
    elif isinstance(value, Mapping):
        if speaker_of(value) is not None:
            value = {} if is_answer(value) else {"content": content_of(value)}
        for element in value.values():
            yield from _texts_in(element)
    elif value is not None and not isinstance(value, str):
        yield plain_json(value)
