"""What a field of the schema says of itself: its range, and whether a change of it makes another artifact."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field
from enum import Enum
from typing import Any, TypeVar

Config = TypeVar("Config")


@dataclass(frozen=True)
class Range:
    """An interval of numbers, and what is said of a value outside it.

    `least` and `most` belong to it unless they are open; NaN and infinite values never do.
    """

    says: str
    least: float = -math.inf
    most: float = math.inf
    least_is_open: bool = False
    most_is_open: bool = False

    def __str__(self) -> str:
        """As a reader of the documentation knows it, such as `> 0` or `in [0, 1)`; empty without limits."""
        if self.most == math.inf:
            if self.least == -math.inf:
                return ""
            sign = ">" if self.least_is_open else "≥"
            return f"{sign} {self.least}"
        left = "(" if self.least_is_open else "["
        right = ")" if self.most_is_open else "]"
        return f"in {left}{self.least}, {self.most}{right}"

    def holds(self, value: object) -> bool:
        """Whether a value is a number of this range."""
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if not self.least <= value <= self.most:
            return False
        at_an_open_end = (self.least_is_open and value == self.least) or (
            self.most_is_open and value == self.most
        )
        return not at_an_open_end


NOT_NEGATIVE = Range("must not be negative, and finite.", least=0)
_ROOM = "what is computed of it in fp32, squares and all, would have no room."
LOSS_FACTOR = Range(f"must be a positive number, from 1e-9 to 1e9: beyond, {_ROOM}", least=1e-9, most=1e9)
LOSS_TERM = Range(f"must not be negative, and at most 1e9: beyond, {_ROOM}", least=0, most=1e9)
SHARE = Range("must lie in [0, 1].", least=0, most=1)
POSITIVE = Range("must be a positive number.", least=0, least_is_open=True)
POSITIVE_SHARE = Range("must lie in (0, 1].", least=0, most=1, least_is_open=True)
SHARE_OR_OFF = Range("must lie in [0, 1); 0 is off.", least=0, most=1, most_is_open=True)
HALF_OR_OFF = Range("must lie in [0, 0.5); 0 is off.", least=0, most=0.5, most_is_open=True)
SHARE_OF_STEPS = Range(
    "is a share of the steps, not negative and at most 1; the paper has 0.03.", least=0, most=1
)
SEED = Range(f"must not be negative, and at most {2**32 - 1}, numpy's largest.", least=0, most=2**32 - 1)
SEALED_CHECKPOINTS = Range("must be 2 or more: one stays while the next is written.", least=2)
ZERO_STAGE = Range("must be 2 or 3.", least=2, most=3)
SOME_OR_ALL = Range("must be 1 or more; null takes what the machine has.", least=1)
NONE_OR_MORE = Range("must be 0 or more; null takes what the machine has.", least=0)
CHECKED_WITH_OTHERS = Range("")
"""No limit of its own: `rlhf.config.limits` looks at such a number together with others."""


def setting(
    default: Any = MISSING,
    *,
    factory: Callable[[], Any] | Any = MISSING,
    within: Range | None = None,
    compared: bool = True,
    later: bool = False,
    code: bool = False,
    several: bool = False,
    folders: bool = False,
) -> Any:
    """A field of a config section.

    Args:
        default: its default, or
        factory: what makes it, for lists and mappings.
        within: the numbers it takes; None is `POSITIVE` for a number, and no limit for anything else.
        compared: False for what changes the cost of a stage and not its result, such as memory budgets and
            the spacing of checkpoints: a finished stage is kept when such a setting changes.
        later: True for a field that came after runs were made without it: at its default it is left out of
            the comparison, so that those runs go on.
        code: True for what has Python code run that is not this package's, or hands out a key: a run folder
            of another user cannot set it (`rlhf.command.foreign`).
        several: True for a list whose values may be typed as `key=a,b` too, or one by one
            (`rlhf.command.lists`).
        folders: True for the one such list, or the one folder, of a tool that words without a key belong to.
    """
    metadata = {
        "within": within,
        "compared": compared,
        "later": later,
        "code": code,
        "several": several,
        "folders": folders,
    }
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def numbers(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Range]]:
    """Dotted key, value and range of every number in a tree of sections; what is null has none."""
    for each_field in dataclasses.fields(section):
        value = getattr(section, each_field.name)
        key = prefix + each_field.name
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value, each_field.metadata.get("within") or POSITIVE


def plain(value: Any) -> Any:
    """A config value as plain JSON: dataclasses become dicts, enums their values.

    Example:
        `PairSettings()` becomes {"strategy": "best_worst", "truncated": "never_chosen", "length_penalty":
        0.0, …}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def compared(section: Any) -> dict[str, Any]:
    """A section as plain JSON without the fields that are not compared, at any depth: what its result depends
    on.
    """
    kept = {}
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if not item.metadata.get("compared", True):
            continue
        if item.metadata.get("later") and value == _default_of(item):
            continue
        kept[item.name] = compared(value) if dataclasses.is_dataclass(value) else plain(value)
    return kept


def _default_of(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def filled(cls: type[Config], section: Any, **values: Any) -> Config:
    """A `cls` with the values of the fields that it shares with a section, where `values` says no other."""
    shared = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        if hasattr(section, item.name):
            shared[item.name] = getattr(section, item.name)
    return cls(**(shared | values))
