"""Parts of a question that are no text of their own, as a person would write them into one."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

from rlhf.data.records import Message
from rlhf.data.rows import has_value, plain_text

_PASSAGE_KEYS = ("title", "text", "content", "contents", "passage", "paragraph", "snippet", "body", "document")
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
        lines = [passage[key] for key in _PASSAGE_KEYS if isinstance(passage.get(key), str)]
        # What stands under other keys would be lost.
        rest = [key for key, value in passage.items() if key not in _PASSAGE_KEYS and isinstance(value, list | dict)]
        return "\n".join(lines) if lines and not rest else plain_text(passage)
    if isinstance(passage, list) and all(isinstance(line, str) for line in passage):
        return "\n".join(passage)
    # Not trimmed: a passage may be indented, and the question as a whole is trimmed at its ends.
    return passage if isinstance(passage, str) else plain_text(passage)


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
    present = {key: text for key, text in value.items() if text is not None}
    if not present or not all(len(key) <= 2 and isinstance(text, str) for key, text in present.items()):
        return None
    return _lettered(list(present), list(present.values()))


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
    """Whether a text stands in a conversation already: as a paragraph of it, or word by word if it is long."""
    trimmed = text.strip()
    for message in messages:
        if f"\n\n{trimmed}\n\n" in f"\n\n{message['content']}\n\n":
            return True
        if len(trimmed) >= _MIN_QUOTED_CHARS and trimmed in message["content"]:
            return True
    return False
