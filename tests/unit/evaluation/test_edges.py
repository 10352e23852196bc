"""Figures of one value, of none, and at the ends of their scales."""

from __future__ import annotations

import math

import pytest

from rlhf.errors import DataError
from rlhf.evaluation import rewardbench1, rewardbench2
from rlhf.evaluation.judge_quality import Judged, best_of_n, figure, pearson


def test_one_value_has_no_bounds_and_two_have():
    assert figure([]) is None
    assert figure([3.0]) == {"mean": 3.0, "low": -math.inf, "high": math.inf}
    assert figure([1.0, 3.0]) == pytest.approx({"mean": 2.0, "low": 2 - 1.96, "high": 2 + 1.96})


@pytest.mark.parametrize(
    ("xs", "ys", "value"),
    [([], [], None), ([1], [2], None), ([1, 2], [1, 2], 1), ([1, 2], [2, 1], -1), ([1, 1], [1, 2], None)],
)
def test_a_side_that_does_not_vary_has_no_correlation(xs, ys, value):
    assert pearson(xs, ys) == (None if value is None else pytest.approx(value))


def test_columns_of_two_lengths_are_a_bug():
    with pytest.raises(Exception, match="same number"):
        pearson([1, 2, 3], [1, 2])


def test_a_prompt_with_one_response_leaves_nothing_to_choose():
    one, two = Judged([1.0], [5.0], [3]), Judged([1.0, 2.0], [0.0, 1.0], [1, 2])
    figures = best_of_n([one, two])
    assert (figures["prompts"], figures["responses"]) == (1, 2)
    assert figures["pair_agreement"]["mean"] == figures["best_worst_agreement"]["mean"] == 1.0
    assert {name: value["mean"] for name, value in figures["quality"].items()} == {
        "pick": 1.0,
        "random": 0.5,
        "oracle": 1.0,
        "worst": 0.0,
    }
    assert figures["gain"] == 1.0
    nothing = best_of_n([one])
    assert nothing["prompts"] == 0 and nothing["gain"] is None and nothing["pair_agreement"] is None


@pytest.mark.parametrize(
    ("scores", "gain", "pairs", "extremes"),
    [
        ([3.0, 2.0, 1.0], 1.0, 1.0, 1.0),
        ([1.0, 2.0, 3.0], -1.0, 0.0, 0.0),
        ([1.0, 1.0, 1.0], 0.0, 0.5, 0.5),
        # The pick is the middle one, and the worst is last: of three pairs two are right.
        ([2.0, 3.0, 1.0], 0.0, 2 / 3, 1.0),
        ([2.0, 2.0, 1.0], 0.5, 2.5 / 3, 1.0),
    ],
)
def test_what_a_choice_of_three_is_worth(scores, gain, pairs, extremes):
    figures = best_of_n([Judged(scores, [2.0, 1.0, 0.0], [1, 2, 3])])
    assert figures["gain"] == pytest.approx(gain)
    assert figures["pair_agreement"]["mean"] == pytest.approx(pairs)
    assert figures["best_worst_agreement"]["mean"] == extremes


def test_lengths_are_held_against_scores_and_qualities():
    rows = [Judged([1.0, 2.0], [5.0, 4.0], [10, 20]), Judged([5.0, 7.0], [1.0, 0.0], [1, 2])]
    figures = best_of_n(rows)
    assert figures["score_length_correlation"]["within"] == pytest.approx(6 / math.sqrt(2.5 * 50.5))
    assert figures["quality_length_correlation"]["within"] == pytest.approx(-5.5 / math.sqrt(1 * 50.5))
    assert (
        figures["score_length_correlation"]["over_all"]
        < 0
        < figures["quality_length_correlation"]["over_all"]
    )


@pytest.mark.parametrize("value", [0, 100, 0.5, 99])
def test_percentages(value):
    assert rewardbench1.report({"hep-go": value})["current"]["Reasoning"] == value


@pytest.mark.parametrize("value", [-0.001, 100.001, True, "50", None, math.nan])
def test_what_is_no_percentage(value):
    with pytest.raises(DataError, match="hep-go: accuracy"):
        rewardbench1.report({"hep-go": value})


def test_the_leaderboards_row_gives_the_leaderboards_mean():
    """83.4 with the prior sets' 74.9, as the leaderboard lists it."""
    row = rewardbench1.PUBLISHED["FsfairX-LLaMA3-RM-v0.1, leaderboard"]
    assert rewardbench1.overall(row, 74.9) == pytest.approx(83.4, abs=0.05)


@pytest.mark.parametrize(
    ("scores", "half_credit", "percent"),
    [
        ([(2, 1), (1, 2), (1, 1), (1, 1)], False, 25.0),
        ([(2, 1), (1, 2), (1, 1), (1, 1)], True, 50.0),
        ([(math.inf, 1), (1, -math.inf), (math.nan, math.nan), (2, 1)], True, 25.0),
    ],
)
def test_accuracies(scores, half_credit, percent):
    assert rewardbench1.accuracy(scores, half_credit) == percent


@pytest.mark.parametrize(
    ("scores", "num_correct", "chance"),
    [
        ([2, 1], 1, 1),
        ([1, 2], 1, 0),
        ([1, 1, 0], 1, 0.5),
        ([1, 1, 1], 2, 2 / 3),
        ([2, 1, math.inf], 1, 0),
        ([2, math.nan], 1, 0),
    ],
)
def test_credits(scores, num_correct, chance):
    assert rewardbench2.credit(scores, num_correct) == pytest.approx(chance)


def test_only_a_shared_first_place_is_a_tie_and_scores_that_are_none_are_counted():
    rows = [
        {"subset": "Math", "id": str(number), "scores": scores, "num_correct": 1}
        for number, scores in enumerate([[2, 1], [1, 2], [1, 1], [None, 1]])
    ]
    assert rewardbench2.report(rows) == {
        "overall": None,
        "subsets": {"Math": {"score": 37.5, "ties": 1, "rows": 4, "non_finite": 1}},
    }


@pytest.mark.parametrize(
    ("gap", "spread", "margin"),
    [(0, 0, 0), (1, 0, 1), (-1, 0, -1), (2, 2, 0), (4, 2, math.tanh(1)), (-math.inf, 0.0, -1)],
)
def test_margins_of_ties(gap, spread, margin):
    assert rewardbench2._margin(gap, spread) == pytest.approx(margin)


@pytest.mark.parametrize(
    ("ref", "tied", "parts"),
    [
        # Gap and spread of `tied` alike: no part beyond the accuracies is won.
        ([2, 1], [4, 3, 2], (1, 1, 0, 0)),
        ([2, 1], [4, 3, 1], (1, 1, 1, 0)),
        ([9, 1], [4, 3, 1], (1, 1, 1, 1)),
        ([1, 1], [4, 3, 3], (0, 0, 0, 0)),
    ],
)
def test_parts_of_ties(ref, tied, parts):
    figures = rewardbench2.ties([("ref:1", ref, 1), ("tied:1", tied, 2)])
    names = ("ref_accuracy", "tied_accuracy", "preferred", "preferred_hard")
    assert tuple(figures[name] for name in names) == parts


def test_published_rows_are_copied_right():
    """RLHF Workflow (arXiv 2405.07863), table of reward models: Chat, Chat Hard, Safety, Reasoning."""
    rows = [tuple(row.values()) for row in rewardbench1.PUBLISHED.values()]
    assert rows[0] == (99.44, 65.13, 88.76, 88.3)
    assert all(list(row) == list(rewardbench1.SECTIONS) for row in rewardbench1.PUBLISHED.values())
