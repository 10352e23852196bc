"""Why a response ended, in the words of other servers and libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rlhf.data.records import FINISHED
from rlhf.data.rows import Row, UnusableRow, words

REASON_COLUMNS = ("finish_reasons", "finish_reason", "stop_reasons", "stop_reason")
"""Where the reasons may stand; the first holds one for each response."""
_FINISHED_WORDS = words("""
    stop stopped eos eos_token eot end end_turn end_of_turn end_of_text endoftext stop_sequence stop_token
    stop_string stop_str complete completed finish finished done
""")
# vLLM, TGI, OpenAI, Anthropic, Gemini, in this order.
_CUT_WORDS = words("""
    length max_length max_tokens max_token max_new_tokens max_output_tokens model_length token_limit truncated
""")


def finish_reasons_of(row: Row, num_responses: int) -> list[str]:
    """For each response "stop" or "length"; a row that gives no reasons holds whole responses.

    Raises:
        UnusableRow: a word that says neither, or not one for each response.

    Example:
        {"prompt": "2+2?", "responses": ["4", "Well"], "finish_reasons": ["eos_token", "max_tokens"]}
    """
    name = _column(row)
    if name is None:
        return [FINISHED] * num_responses
    reasons = one_for_each(row, name, num_responses)
    return [_finish_reason(reason, name) for reason in reasons]


def _column(row: Row) -> str | None:
    """The column that holds a reason for each response."""
    plural, *others = REASON_COLUMNS
    if row.peek(plural) is not None:
        return plural
    # Under another name it may speak of the row as a whole: nobody knows of which response then.
    for name in others:
        if isinstance(row.peek(name), list):
            return name
    return None


def _finish_reason(reason: Any, name: str) -> str:
    # SGLang: {"type": "stop", "matched": 2}.
    word = reason.get("type") if isinstance(reason, Mapping) else reason
    if word is None:
        return FINISHED
    plain = str(word).strip().lower().replace("-", "_").replace(" ", "_")
    if not plain or plain in _FINISHED_WORDS:
        return FINISHED
    if plain in _CUT_WORDS:
        return "length"
    raise UnusableRow(
        "unknown_finish_reason",
        f"{name} holds {reason!r:.40}; known are {', '.join(sorted(_FINISHED_WORDS))} of a "
        "finished response, "
        f"{', '.join(sorted(_CUT_WORDS))} of a cut one.",
    )


def one_for_each(row: Row, key: str, num_responses: int) -> list[Any]:
    """A list that must be as long as the responses; a cell of CSV holds it as JSON.

    Raises:
        UnusableRow: it is no such list.
    """
    values = row[key]
    if isinstance(values, str) and values.lstrip()[:1] == "[":
        # Where it is no JSON, the text is refused below.
        with suppress(ValueError, RecursionError):
            values = json.loads(values)
    if isinstance(values, list) and len(values) == num_responses:
        return values
    raise UnusableRow(
        f"{key}_do_not_match",
        f"{key} must be a list of {num_responses}; found {values!r:.80}.",
    )
