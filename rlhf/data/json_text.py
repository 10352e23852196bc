"""JSON as every program reads it: the one place of this package that writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def json_text(
    value: Any,
    *,
    indent: int | None = None,
    sort_keys: bool = False,
    ascii_only: bool = True,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """A value as JSON; numbers that are not finite, for which JSON has no word, are null.

    Args:
        value: what is to be written.
        indent: spaces a level; None puts all on one line.
        sort_keys: whether keys come in the order of the alphabet.
        ascii_only: whether other characters are written as escapes.
        default: makes something of a value that JSON has no form for; None refuses it.

    Raises:
        TypeError: JSON has no form for a value.

    Example:
        {"loss": 0.5, "grad_norm": math.inf} gives '{"loss": 0.5, "grad_norm": null}'
    """

    def written(plain: Any) -> str:
        return json.dumps(
            plain,
            indent=indent,
            sort_keys=sort_keys,
            ensure_ascii=ascii_only,
            default=default,
            allow_nan=False,
        )

    try:
        return written(value)
    # Rare, so that the whole value is looked through only then.
    except ValueError:
        return written(finite(value))


def finite(value: Any) -> Any:
    """The same value with null for every number that is not finite, keys of objects included."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [finite(element) for element in value]
    if isinstance(value, dict):
        return {finite(key): finite(element) for key, element in value.items()}
    return value
