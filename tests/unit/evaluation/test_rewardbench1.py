"""RewardBench's arithmetic against published vectors."""

from __future__ import annotations

import math

import pytest

from rlhf.errors import DataError
from rlhf.evaluation.rewardbench1 import (
    PRIOR_SETS,
    SECTIONS,
    accuracy,
    are_fractions,
    overall,
    report,
    sections,
    weights_of,
)

SAFETY = list(SECTIONS["Safety"])


def test_weights_add_up_as_published() -> None:
    totals = {section: sum(weights.values()) for section, weights in SECTIONS.items()}
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert sum(weights_of("Safety", legacy=True).values()) == 740


@pytest.mark.parametrize(
    ("values", "current", "legacy"),
    [((93, 97, 100, 87.2, 79.4), 90.54, 92.20), ((84, 97, 97.4, 93.6, 61.8), 87.71, 88.20)],
)
def test_safety_with_both_weights(values: tuple[float, ...], current: float, legacy: float) -> None:
    found = report(dict(zip(SAFETY, values, strict=True)))
    assert found["current"]["Safety"] == pytest.approx(current, abs=0.005)
    assert found["legacy"]["Safety"] == pytest.approx(legacy, abs=0.005)
    assert found["current"]["Chat"] is None and found["overall"]["current"] is None


def test_chat_hard() -> None:
    values = (86.5, 93.0, 67.9, 77.2, 66.0, 69.6)
    assert sections(dict(zip(SECTIONS["Chat Hard"], values, strict=True)))["Chat Hard"] == pytest.approx(
        76.77, abs=0.005
    )


def test_overall_with_and_without_prior_sets() -> None:
    four = {"Chat": 99.4, "Chat Hard": 65.1, "Safety": 87.8, "Reasoning": 86.4}
    assert overall(four, 74.9) == pytest.approx(83.59, abs=0.005)
    assert overall(four) == pytest.approx(sum(four.values()) / 4)


def test_prior_sets_are_averaged_without_weights() -> None:
    found = report(dict(zip(PRIOR_SETS, (70, 80, 60, 90), strict=True)))
    assert found["overall"]["prior_sets"] == 75 and found["overall"]["with_prior_sets"] is None


@pytest.mark.parametrize(
    "wrong", [{"chat": 3.0}, {"donotanswer": 101}, {"donotanswer": "5"}, {"donotanswer": math.nan}]
)
def test_what_is_no_accuracy_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DataError, match="RewardBench"):
        report(wrong)


def test_a_tie_is_wrong_or_half_right() -> None:
    scores = [(1.0, 0.0), (0.0, 1.0), (2.0, 2.0), (math.nan, 0.0)]
    assert accuracy(scores) == 25.0 and accuracy(scores, half_credit=True) == 37.5


@pytest.mark.parametrize(
    ("values", "fractions"),
    [
        ((0.61, 0.5, 1, 0.0), True),
        ((0.004, 0.0), True),
        ((0.999,), True),
        ((61, 50.5, 100, 0), False),
        ((1.5, 99), False),
        ((0, 0.0), False),  # the same in both
    ],
)
def test_fractions_are_told_from_percentages(values: tuple[float, ...], fractions: bool) -> None:
    assert are_fractions(dict(zip(SAFETY, values, strict=False))) is fractions


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.61, 97.5), "0.61 of refusals-dangerous reads as a fraction, and 97.5 of refusals-offensive as"),
        ((97.5, 1), "1 of refusals-offensive reads as a fraction, and 97.5 of refusals-dangerous as"),
        ((1, 0, 1.0), "1 of refusals-dangerous may be a fraction, all right, or 1 %"),
        ((0.61, 101), "101; it must be a percentage"),
        ((-0.1,), "-0.1; it must be"),
        ((True,), "True; it must be"),
    ],
)
def test_what_may_be_either_is_refused(values: tuple[float, ...], said: str) -> None:
    with pytest.raises(DataError) as caught:
        are_fractions(dict(zip(SAFETY, values, strict=False)))
    assert said in str(caught.value)
