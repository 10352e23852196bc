"""What fields say of themselves: ranges, and what is compared."""

import math
from dataclasses import dataclass, field

import pytest

from rlhf.config.fields import (
    HALF_OR_OFF,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE_OR_OFF,
    compared,
    filled,
    setting,
)


@dataclass
class Inner:
    rank: int = 3
    cost: int = setting(5, compared=False)


@dataclass
class Outer:
    rate: float = 0.5
    memory: int = setting(10, compared=False)
    columns: dict[str, str] = setting(factory=dict, later=True)
    inner: Inner = field(default_factory=Inner)


def test_costs_are_not_compared_at_any_depth():
    assert compared(Outer()) == {"rate": 0.5, "inner": {"rank": 3}}
    assert compared(Outer(memory=99, inner=Inner(cost=0))) == compared(Outer())


def test_a_later_field_counts_only_where_it_is_set():
    assert compared(Outer(columns={"question": "q"}))["columns"] == {"question": "q"}
    assert "columns" not in compared(Outer(columns={}))


def test_shared_values_are_filled_in_and_changes_win():
    filled_outer = filled(Outer, Outer(rate=0.1, memory=7), memory=8)
    assert (filled_outer.rate, filled_outer.memory) == (0.1, 8)
    with pytest.raises(TypeError):
        filled(Outer, None, no_such_field=1)


@pytest.mark.parametrize(
    ("within", "inside", "outside", "text"),
    [
        (POSITIVE, [1e-9, 5], [0, -1, math.inf, math.nan, "1", None], "> 0"),
        (NOT_NEGATIVE, [0, 1e9], [-1e-9, math.inf], "≥ 0"),
        (POSITIVE_SHARE, [1e-9, 1], [0, 1.0001], "in (0, 1]"),
        (SHARE_OR_OFF, [0, 0.999], [-0.001, 1], "in [0, 1)"),
        (HALF_OR_OFF, [0, 0.499], [0.5], "in [0, 0.5)"),
    ],
)
def test_ranges(within, inside, outside, text):
    assert [value for value in inside if not within.holds(value)] == []
    assert [value for value in outside if within.holds(value)] == []
    assert str(within) == text
