"""Where prompts and preferences come from, and in which language, as far as their rows say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

FILE = "origins.json"
"""In an artifact of stage `prompts`: of each held-out prompt what is known, by its id; no file where nothing
is."""
_SOURCES = ("source", "dataset", "subset")
_LANGUAGES = ("language", "lang")


class Origin(NamedTuple):
    """What a row says of itself; None where it says nothing."""

    source: str | None
    language: str | None


def origin_of(row: Mapping[str, Any]) -> Origin:
    """Source and language of a row.

    Example:
        {"source": "hh-rlhf", "lang": "de", "prompt": "Hallo"} gives Origin("hh-rlhf", "de")
    """
    return Origin(_first_text(row, _SOURCES), _first_text(row, _LANGUAGES))


def _first_text(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        name = row.get(key)
        if isinstance(name, str) and name.strip():
            return name.strip()
    return None
