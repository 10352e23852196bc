"""Ranges of numbers at their ends, and which fields of a config have which."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import pytest

from rlhf.config import fields
from rlhf.config.fields import Range, compared, filled, numbers, plain, setting


@pytest.mark.parametrize(
    ("within", "inside", "outside"),
    [
        (fields.SEED, [0, 4294967295], [-1, 4294967296]),
        (fields.ZERO_STAGE, [2, 3], [1, 4]),
        (fields.SHARE_OF_STEPS, [0, 0.5, 1], [-0.001, 1.001]),
        (fields.SOME_OR_ALL, [1, 10**6], [0, -1]),
        (fields.NONE_OR_MORE, [0, 10**6], [-1]),
        (fields.POSITIVE, [1e-300], [0, -1e-300]),
        (fields.POSITIVE_SHARE, [1e-300, 1], [0, 1 + 1e-9]),
        (fields.SHARE_OR_OFF, [0, 1 - 1e-9], [1, -1e-9]),
        (fields.HALF_OR_OFF, [0, 0.5 - 1e-9], [0.5, 0.6]),
        (fields.NOT_NEGATIVE, [0, 1e300], [-1e-300, math.inf]),
        (fields.LOSS_FACTOR, [1e-9, 0.1, 1e9], [0, 1e-300, 1e39]),
        (fields.LOSS_TERM, [0, 1e9], [-1e-9, 1.1e9, 1e39]),
    ],
)
def test_the_ends_of_a_range(within, inside, outside):
    assert [value for value in inside if not within.holds(value)] == []
    assert [value for value in outside if within.holds(value)] == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, [1]])
def test_what_is_in_no_range(value):
    assert not Range("").holds(value)


def test_a_range_without_limits_holds_every_number():
    assert all(Range("").holds(value) for value in (0, -1e300, 1e300))


@pytest.mark.parametrize(
    ("within", "text"),
    [
        (Range(""), ""),
        (Range("", least=1), "≥ 1"),
        (Range("", least=1, least_is_open=True), "> 1"),
        (Range("", least=0, most=1), "in [0, 1]"),
        (Range("", least=0, most=1, least_is_open=True, most_is_open=True), "in (0, 1)"),
        (Range("", least=0, most=1, most_is_open=True), "in [0, 1)"),
    ],
)
def test_a_range_as_documented(within, text):
    assert str(within) == text


class Colour(Enum):
    red = "RED"


@dataclass
class Inner:
    share: float = setting(0.5, within=fields.POSITIVE_SHARE)
    memory: int = setting(4, compared=False)


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    count: int = 3
    flag: bool = True
    nothing: int | None = None
    colour: Colour = Colour.red
    names: list[str] = setting(factory=lambda: ["a"], later=True)
    added: int = setting(7, later=True)


def test_numbers_have_a_key_and_a_range_and_truth_is_none():
    assert list(numbers(Outer())) == [
        ("inner.share", 0.5, fields.POSITIVE_SHARE),
        ("inner.memory", 4, fields.POSITIVE),
        ("count", 3, fields.POSITIVE),
        ("added", 7, fields.POSITIVE),
    ]


def test_a_config_as_plain_json():
    assert plain(Outer(nothing=1)) == {
        "inner": {"share": 0.5, "memory": 4},
        "count": 3,
        "flag": True,
        "nothing": 1,
        "colour": "RED",
        "names": ["a"],
        "added": 7,
    }
    assert plain({1: (Colour.red, [Inner])}) == {"1": ["RED", [Inner]]}


def test_what_is_compared_of_a_config():
    same = {"inner": {"share": 0.5}, "count": 3, "flag": True, "nothing": None, "colour": "RED"}
    assert compared(Outer()) == same
    assert compared(Outer(names=["b"], added=8)) == same | {"names": ["b"], "added": 8}
    assert compared(Outer(names=["a"], added=7)) == same


def test_defaults_of_settings():
    with pytest.raises(TypeError):
        filled(Outer, None, no_such_field=1)
    assert filled(Inner, Outer(), share=0.25) == Inner(0.25, 4)
    assert filled(Outer, Inner(), count=4) == Outer(count=4)
    made = [Outer(), Outer()]
    assert made[0].names is not made[1].names
