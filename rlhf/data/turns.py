"""Turns of a conversation in the spellings they come in, as messages of a role and a content."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.records import Message
from rlhf.data.rows import UnusableRow, has_half_pair, has_value, plain_name, words

ROLES = ("system", "user", "assistant")

_ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
_CONTENT_KEYS = ("content", "value", "text", "message", "parts", "full_text", "stem")
_NESTED = ("messages", "conversations", "conversation", "turns")
_ASKED_KEYS = ("question", "user", "human", "prompt", "instruction", "input", "query", "q")
_ANSWERED_KEYS = (
    "answer",
    "assistant",
    "bot",
    "gpt",
    "response",
    "output",
    "completion",
    "model",
    "reply",
    "a",
)
_TEXT_PARTS = (None, "text", "input_text", "output_text")

_SPELLINGS = {
    "system": "system developer sys systemprompt",
    "user": "user human prompter usr customer client person question instruction student",
    "assistant": "assistant gpt ai model bot chatgpt bing bard claude gemini chatbot llm agent "
    "answer response asst",
}
_ROLE_OF = {spelling: role for role, spellings in _SPELLINGS.items() for spelling in spellings.split()}
# What a program said is neither a question nor an answer, and templates render it each in its own way.
_TOOLS = words("tool tools function function_call function_response observation ipython tool_call tool_calls")
_TOOL_KEYS = ("tool_calls", "function_call", "tool_call")

# HH-RLHF has an empty line before each mark; other sets write it as a heading, with the text below.
MARK = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):[ \n]?")
_SPEAKER = "(System|Human|Assistant|User|AI|Bot|Chatbot|GPT)"
_ANY_MARK = re.compile(f"{_SPEAKER}:", re.IGNORECASE)
# No mark takes white space of any length from where it may begin: a text of a million spaces would take
# hours.
_STYLES = (
    # The first that fits is taken: an empty line between turns says more than a line's end does.
    MARK,
    re.compile(rf"(?<!#)#{{2,3}} ?{_SPEAKER}:", re.IGNORECASE),
    re.compile(rf"(?:\A\s*|\n[ \t\r]*\n[ \t]*){_SPEAKER}:", re.IGNORECASE),
    re.compile(rf"(?:\A\s*|\n[ \t]*){_SPEAKER}:", re.IGNORECASE),
)
# Of NeMo's files: the mark stands on a line of its own, and the first turn, the user's, has none.
_NEMO = re.compile(r"\n?<extra_id_1>(User|Assistant)\n?")


def clean_text(text: Any, what: str) -> str:
    """Text without outer white space, which chat templates trim anyway: every consumer must see the same.

    Raises:
        UnusableRow: no text, empty, or with half a surrogate pair, which no UTF-8 file can hold.
    """
    if text is None:
        raise UnusableRow("empty", f"{what} is null; it must be text.")
    if not isinstance(text, str):
        raise UnusableRow("not_text", f"{what} is {type(text).__name__} {text!r:.80}; it must be text.")
    trimmed: str = text.strip()
    if not trimmed:
        raise UnusableRow("empty", f"{what} is empty; it must be text.")
    # JSON may hold "\ud800" alone, and Python reads it; Parquet and tokenizers would fail on it much later.
    if has_half_pair(trimmed):
        raise UnusableRow("invalid_unicode", f"{what} holds half a surrogate pair: {trimmed!r:.80}.")
    return trimmed


def content_text(content: Any, what: str) -> str:
    """The text of a turn, which may be written as parts.

    Raises:
        UnusableRow: as `clean_text`, or a part is no text: an image, say, without which the turn means
        another thing.

    Example:
        [{"type": "text", "text": "Hi"}] gives "Hi"
    """
    if isinstance(content, Mapping):
        inner = next((content[key] for key in _CONTENT_KEYS if content.get(key) is not None), None)
        # One level only: what nests deeper is no text of a turn.
        return clean_text(inner, what) if not isinstance(inner, list) else content_text(inner, what)
    if not isinstance(content, list):
        return clean_text(content, what)
    texts = []
    for part in content:
        text = _part_text(part, what)
        if text is not None:
            texts.append(text)
    return clean_text("\n".join(texts), what)


def _part_text(part: Any, what: str) -> str | None:
    """The text of one part of a content; None where it is a text part without any."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and kind in _TEXT_PARTS:
        for key in ("text", "content", "value"):
            if isinstance(part.get(key), str):
                return str(part[key])
        if kind is not None:
            return None
    raise UnusableRow("not_text_part", f"{what} has a part of type {kind!r:.40}; only text can be read.")


def role_of(speaker: Any) -> str | None:
    """The role of a speaker in any spelling; None of an unknown one, "tool" of a program."""
    if isinstance(speaker, Mapping):
        speaker = speaker.get("role")
    if not isinstance(speaker, str):
        return None
    name = plain_name(speaker.strip())
    if name in _TOOLS:
        return "tool"
    # "ChatGPT" reads chat_gpt there.
    return _ROLE_OF.get(name.replace("_", ""))


def speaker_of(turn: Any) -> Any:
    """Who says a turn, as it is written there; None where it is no turn, or nobody is named."""
    if not isinstance(turn, Mapping):
        return None
    for key in _ROLE_KEYS:
        if turn.get(key) is not None:
            return turn[key]
    return None


def content_of(turn: Mapping[str, Any]) -> Any:
    """What is said in a turn, as it is written there."""
    for key in _CONTENT_KEYS:
        if turn.get(key) is not None:
            return turn[key]
    return None


def clean_turn(turn: Any, where: str) -> Message:
    """One turn as a message; other keys are left out.

    Raises:
        UnusableRow: no turn, an unknown speaker, a tool's turn, or no text.

    Example:
        {"from": "human", "value": "Hi"} gives {"role": "user", "content": "Hi"}
    """
    speaker = speaker_of(turn)
    if speaker is None or not any(key in turn for key in _CONTENT_KEYS):
        raise UnusableRow("not_messages", f"{where} must have role and content; found {turn!r:.80}.")
    role = role_of(speaker)
    content = content_of(turn)
    if role == "tool" or (not has_value(content) and any(has_value(turn.get(key)) for key in _TOOL_KEYS)):
        raise UnusableRow("tool_turn", f"{where} is the turn of a tool, or calls one: {turn!r:.80}.")
    # Chat templates agree on these three only; what else there is, each renders its own way.
    if role is None:
        raise UnusableRow("unknown_role", f"{where} has role {speaker!r:.40}; known are {', '.join(ROLES)}.")
    return {"role": role, "content": content_text(content, f"{where}.content")}


def clean_turns(turns: Sequence[Any], what: str) -> list[Message]:
    """Messages of turns; UnusableRow as for one."""
    messages = []
    for number, turn in enumerate(turns):
        messages.append(clean_turn(turn, f"{what}[{number}]"))
    return messages


def nonempty_list(value: Any, what: str) -> list[Any]:
    """A list that must hold messages, which are not yet looked at.

    Raises:
        UnusableRow: it is no list, or empty.
    """
    if isinstance(value, list) and value:
        return value
    # Null and [] are missing content; anything else is content of a wrong kind.
    reason = "empty" if value is None or value == [] else "not_messages"
    raise UnusableRow(reason, f"{what} must be a list of messages.")


def listed(value: Any) -> Any:
    """The list that a text holds as JSON, as cells of CSV do; any other value as it is.

    Only lists of objects and of text count: a prompt may well read "[1, 2]".

    Example:
        '[{"role": "user", "content": "Hi"}]' gives [{"role": "user", "content": "Hi"}]
    """
    if not isinstance(value, str) or value.lstrip()[:1] != "[":
        return value
    try:
        elements = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if not isinstance(elements, list) or not elements:
        return value
    is_turns = all(speaker_of(element) is not None for element in elements)
    return elements if is_turns else value


def to_turns(value: Any, what: str) -> list[Any]:
    """The turns of a value in any of the ways to write a conversation, not yet cleaned.

    That is text (one turn of the user's, or marked turns), turns, content parts, pairs of question and
    answer, or an object that holds one of these.

    Raises:
        UnusableRow: nothing of the kind, or nothing at all.

    Example:
        [["2+2?", "4"]] gives [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    """
    value = listed(value)
    if isinstance(value, str):
        return marked_turns(value) or [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        return _turns_of_object(value, what)
    elements = nonempty_list(value, what)
    if all(_is_part(element) for element in elements):
        return [{"role": "user", "content": elements}]
    if all(_is_pair(element) for element in elements):
        return turns_of_pairs(elements)
    return elements


def earlier_turns(value: Any, what: str) -> list[Any]:
    """The turns of a history, which besides what `to_turns` reads may be one pair, or texts in turn.

    Example:
        ["2+2?", "4"] gives [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    """
    if _is_pair(value) and isinstance(value, Mapping):
        return turns_of_pairs([value])
    is_texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
    # An odd number of them would end with a question nobody answered.
    if is_texts and len(value) % 2 == 0:
        return turns_of_pairs([value[start : start + 2] for start in range(0, len(value), 2)])
    return to_turns(value, what)


def _turns_of_object(value: Mapping[str, Any], what: str) -> list[Any]:
    if speaker_of(value) is not None:
        return [value]
    for key in _NESTED:
        if isinstance(value.get(key), list):
            turns = to_turns(value[key], what)
            has_system = has_value(value.get("system"))
            return [{"role": "system", "content": value["system"]}, *turns] if has_system else turns
    for key in (*_CONTENT_KEYS, *_ASKED_KEYS, "problem"):
        if has_value(value.get(key)):
            return [{"role": "user", "content": value[key]}]
    raise UnusableRow("not_messages", f"{what} must be a list of messages; found {value!r:.80}.")


def _is_part(element: Any) -> bool:
    """Whether this is a part of a content: it has a type, or a text alone, and nobody who says it."""
    if not isinstance(element, Mapping) or speaker_of(element) is not None:
        return False
    return isinstance(element.get("type"), str) or list(element) == ["text"]


def _is_pair(element: Any) -> bool:
    """Whether this is a question with its answer: a list of two, or an object of one key for each."""
    if isinstance(element, list | tuple):
        return len(element) == 2
    if not isinstance(element, Mapping) or speaker_of(element) is not None:
        return False
    return any(key in element for key in _ASKED_KEYS) and any(key in element for key in _ANSWERED_KEYS)


def turns_of_pairs(pairs: Sequence[Any]) -> list[Any]:
    """Turns of questions with their answers.

    Example:
        [{"system": "Be brief.", "input": "2+2?", "output": "4"}] gives a system, a user's and an assistant's
        turn.
    """
    turns = []
    for pair in pairs:
        if isinstance(pair, Mapping):
            if has_value(pair.get("system")):
                turns.append({"role": "system", "content": pair["system"]})
            asked = next(pair[key] for key in _ASKED_KEYS if key in pair)
            answered = next(pair[key] for key in _ANSWERED_KEYS if key in pair)
        else:
            asked, answered = pair
        turns.append({"role": "user", "content": asked})
        turns.append({"role": "assistant", "content": answered})
    return turns


def marked_turns(text: str, whole: bool = False) -> list[Message] | None:
    r"""The turns of text that clearly is a conversation, such as HH-RLHF's; None of any other text.

    The empty "Assistant:" at the end of a prompt is where the answer begins, and no turn.

    Args:
        text: what may be a conversation.
        whole: it must hold answers, and may end with one: "User:" is marked then as well.

    Example:
        "\n\nHuman: Hi\n\nAssistant:" gives [{"role": "user", "content": "Hi"}]
    """
    if "<extra_id_1>" in text:
        return _nemo_turns(text)
    # Most text has no mark at all, and one look is enough to tell.
    if not _ANY_MARK.search(text):
        return None
    readings = [reading for style in _STYLES if (reading := _marked(style, text)) is not None]
    # "\n\nHuman: Hi\nAssistant:" is a user's turn to the first style; one that ends as a conversation goes
    # before it.
    readings.sort(key=lambda reading: not reading.ends(whole))
    for reading in readings:
        if reading.is_conversation(whole):
            return reading.messages()
    return None


@dataclass(frozen=True)
class _Marked:
    """Text cut at the marks of its speakers; `preamble` stands before the first one, called
    `first_speaker`.
    """

    preamble: str
    first_speaker: str
    turns: list[Message]

    @property
    def opens_answer(self) -> bool:
        """Whether it ends with an empty "Assistant:"."""
        last = self.turns[-1]
        return last["role"] == "assistant" and not last["content"].strip()

    def ends(self, whole: bool) -> bool:
        """Whether it ends as a conversation does: where an answer begins, or with one where it must be
        whole.
        """
        if self.opens_answer:
            return True
        last = self.turns[-1]
        return whole and last["role"] == "assistant"

    def is_conversation(self, whole: bool) -> bool:
        """Whether this is a conversation beyond doubt, and no text that quotes one."""
        roles = [turn["role"] for turn in self.turns]
        by_human = self.first_speaker.lower() == "human"
        # A task with examples ends with the open answer; a novel that quotes a dialogue does not.
        if self.preamble and not (by_human and self.opens_answer):
            return False
        if roles[0] == "system" and not self.preamble:
            roles = roles[1:]
        if not roles or roles[0] != "user" or "system" in roles:
            return False
        alternates = all(role != following for role, following in itertools.pairwise(roles))
        # HH-RLHF has turns that were split in two.
        if not alternates and not self.opens_answer:
            return False
        # "User:" opens many a text that is no conversation: it must end as one.
        return by_human or self.ends(whole)

    def messages(self) -> list[Message]:
        """Its turns, not yet cleaned."""
        turns = self.turns[:-1] if self.opens_answer else self.turns
        if not self.preamble:
            return turns
        return [{"role": "system", "content": self.preamble}, *turns]


def _marked(style: re.Pattern[str], text: str) -> _Marked | None:
    parts = style.split(text)
    # Split gives what stands before the first mark, then a role and its text for every mark.
    if len(parts) < 3:
        return None
    turns = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        turns.append({"role": str(role_of(speaker)), "content": content})
    return _Marked(parts[0].strip(), parts[1], turns)


def _nemo_turns(text: str) -> list[Message] | None:
    first, *parts = _NEMO.split(text)
    if not parts:
        return None
    turns = [{"role": "user", "content": first}] if first.strip() else []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        turns.append({"role": str(role_of(speaker)), "content": content})
    return _Marked("", "User", turns).messages()
