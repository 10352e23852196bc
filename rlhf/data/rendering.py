"""Parts of a question that are no text of their own, as a person would write them into one."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from typing import Any

from rlhf.data.columns import is_known
from rlhf.data.records import Message
from rlhf.data.rows import has_value, plain_text

_PASSAGE_KEYS = (
    "title",
    "text",
    "content",
    "contents",
    "passage",
    "paragraph",
    "snippet",
    "body",
    "document",
)
# Shorter text may stand in a question by accident: a context of "7", say.
_MIN_QUOTED_CHARS = 40


def passages_text(value: Any) -> str:
    r"""One passage or several, with an empty line between them.

    Example:
        [["Sums", "2+2 is 4."], {"title": "More", "text": "3+3 is 6."}, "Done."] gives
        "Sums\n2+2 is 4.\n\nMore\n3+3 is 6.\n\nDone."
    """
    if not isinstance(value, list):
        return _passage(value)
    if not all(isinstance(passage, str | list | Mapping) for passage in value):
        return plain_text(value)
    return "\n\n".join(_passage(passage) for passage in value)


def _passage(passage: Any) -> str:
    if isinstance(passage, Mapping):
        return _passage_of_object(passage)
    if isinstance(passage, list) and all(isinstance(line, str) for line in passage):
        return "\n".join(passage)
    # Not trimmed: a passage may be indented, and the question as a whole is trimmed at its ends.
    return passage if isinstance(passage, str) else plain_text(passage)


def _passage_of_object(passage: Mapping[str, Any]) -> str:
    lines = [passage[key] for key in _PASSAGE_KEYS if isinstance(passage.get(key), str)]
    # Ids, scores and sources may be left out, and nothing else.
    others = [key for key in passage if key not in _PASSAGE_KEYS and has_value(passage[key])]
    if lines and all(is_known(key) for key in others):
        return "\n".join(lines)
    return plain_text(passage)


def choices_text(value: Any) -> str | None:
    r"""The choices of a question, a letter before each; None of what is none.

    Example:
        {"text": ["red", "blue"], "label": ["A", "B"]} gives "A. red\nB. blue"
    """
    if isinstance(value, Mapping):
        return _choices_of_object(value)
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(choice, str | int | float) for choice in value):
        if len(value) > len(string.ascii_uppercase):
            return _lettered(list(range(1, len(value) + 1)), value)
        return _lettered(list(string.ascii_uppercase[: len(value)]), value)
    if not all(isinstance(choice, Mapping) and "text" in choice for choice in value):
        return None
    labels = []
    for number, choice in enumerate(value):
        labels.append(choice.get("label") or choice.get("key") or str(number + 1))
    return _lettered(labels, [choice["text"] for choice in value])


def _choices_of_object(value: Mapping[str, Any]) -> str | None:
    texts = value.get("text")
    labels = value.get("label")
    if isinstance(texts, list) and isinstance(labels, list):
        return _lettered(labels, texts) if texts and len(texts) == len(labels) else None
    # {"A": "red", "B": "blue"}; anything longer than a letter or number is a setting, not a choice.
    labels = [key for key in value if value[key] is not None]
    present = [value[label] for label in labels]
    if not labels or max(map(len, labels)) > 2:
        return None
    if not all(isinstance(text, str) for text in present):
        return None
    return _lettered(labels, present)


def _lettered(labels: list[Any], texts: list[Any]) -> str:
    lines = []
    for label, text in zip(labels, texts, strict=True):
        lines.append(f"{plain_text(label)}. {plain_text(text)}")
    return "\n".join(lines)


def post_text(info: Any) -> str | None:
    r"""What was to be summarised in OpenAI's summarize-from-feedback, as its paper asks for it.

    Example:
        {"subreddit": "tifu", "title": "TIFU", "post": "I fell."} gives
        "SUBREDDIT: r/tifu\nTITLE: TIFU\nPOST: I fell.\nTL;DR:"
    """
    if not isinstance(info, Mapping):
        return None
    if has_value(info.get("article")):
        title = f"Title: {plain_text(info['title'])}\n\n" if has_value(info.get("title")) else ""
        return f"{title}Article:\n\n{plain_text(info['article'])}\n\nTL;DR:"
    if not has_value(info.get("post")):
        return None
    lines = []
    for name, mark in (("subreddit", "SUBREDDIT: r/"), ("title", "TITLE: "), ("post", "POST: ")):
        if has_value(info.get(name)):
            lines.append(mark + plain_text(info[name]))
    return "\n".join([*lines, "TL;DR:"])


def texts_of(value: Any) -> list[str] | None:
    """A list of text, perhaps written as JSON in a text; None of anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not value:
        return None
    # A turn without an answer is null there.
    texts = ["" if text is None else text for text in value]
    return texts if all(isinstance(text, str) for text in texts) else None


def is_said(text: str, messages: list[Message]) -> bool:
    """Whether a text stands in a conversation already: on lines of its own, behind a colon, or if it is
    long.
    """
    trimmed = text.strip()
    for message in messages:
        content = message["content"]
        if len(trimmed) >= _MIN_QUOTED_CHARS and trimmed in content:
            return True
        # A line's end goes around the whole content, so that its first and last line are lines as well.
        lines = f"\n{content}\n"
        if f"\n{trimmed}\n" in lines or f": {trimmed}\n" in lines or f'"{trimmed}"' in lines:
            return True
    return False


def are_choices_said(text: str, messages: list[Message]) -> bool:
    """Whether all choices, one a line with its letter, stand in one message, whatever stands before them
    there.
    """
    choices = [line.partition(". ")[2] for line in text.splitlines()]
    contents = [message["content"] for message in messages]
    return any(_holds_all(content, choices) for content in contents)


def _holds_all(content: str, texts: list[str]) -> bool:
    # Whole words: "no" does not stand in "know".
    return all(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", content) for text in texts)
