"""Best-of-n arithmetic."""

from __future__ import annotations

import math

import pytest

from rlhf.evaluation.judge_quality import Judged, best_of_n, figure, pearson, wilson


def test_a_perfect_judge_picks_like_the_oracle() -> None:
    rows = [Judged([1, 2, 3], [10, 20, 30], [5, 9, 7]), Judged([5, 4], [1, 0], [3, 3])]
    found = best_of_n(rows)
    assert found["prompts"] == 2 and found["responses"] == 5
    assert found["pair_agreement"]["mean"] == found["best_worst_agreement"]["mean"] == 1.0
    assert found["quality"]["pick"]["mean"] == found["quality"]["oracle"]["mean"] == 15.5
    assert found["quality"]["random"]["mean"] == pytest.approx(10.25) and found["gain"] == pytest.approx(1.0)


def test_a_constant_judge_is_chance() -> None:
    found = best_of_n([Judged([7, 7, 7], [0, 1, 2], [1, 2, 3])] * 3)
    assert found["pair_agreement"]["mean"] == 0.5 and found["best_worst_agreement"]["mean"] == 0.5
    assert found["gain"] == 0.0 and found["score_length_correlation"]["over_all"] is None
    assert found["quality_length_correlation"]["within"] == pytest.approx(1.0)


def test_a_reversed_judge_picks_the_worst() -> None:
    found = best_of_n([Judged([3, 2, 1], [0, 1, 2], [1, 1, 1])])
    assert found["pair_agreement"]["mean"] == 0.0 and found["quality"]["pick"]["mean"] == 0
    assert found["gain"] == -1.0


def test_equal_qualities_say_nothing_about_order() -> None:
    found = best_of_n([Judged([1, 2], [5, 5], [1, 2]), Judged([1], [5], [1])])
    assert found["prompts"] == 1 and found["pair_agreement"] is None and found["gain"] is None


def test_correlation_within_prompts_ignores_what_differs_between_them() -> None:
    rows = [Judged([1, 2], [0, 0], [2, 1]), Judged([101, 102], [0, 0], [202, 201])]
    found = best_of_n(rows)["score_length_correlation"]
    assert found["over_all"] > 0.99 and found["within"] == pytest.approx(-1.0)


def test_intervals() -> None:
    assert figure([]) is None
    found = figure([0.0, 1.0, 0.0, 1.0])
    assert found is not None
    assert found["high"] - found["mean"] == pytest.approx(1.96 * math.sqrt(1 / 3) / 2)
    assert pearson([1.0], [1.0]) is None


def test_wilsons_interval():
    assert wilson(0, 2) == pytest.approx((0, 0.6576), abs=1e-4)
    assert wilson(4, 4) == pytest.approx((0.5101, 1), abs=1e-4)
    low, high = wilson(500, 1000)
    assert (low + high) / 2 == pytest.approx(0.5) and high - low == pytest.approx(0.0618, abs=1e-3)
