"""The arithmetic of a report."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf.loop.figures import scores_by_prompt, win_rate
from rlhf.view.report_numbers import (
    HeldOut,
    disagreement_of,
    held_out_of,
    histogram,
    in_order_of,
    means_of,
    pairs_of,
    spread_of,
    trend_of,
    win_rate_of,
)
from rlhf.view.run_folder import open_run

NAN = np.nan


def test_spread_leaves_out_what_is_no_score():
    spread = spread_of(np.array([[1.0, 3.0], [NAN, 5.0], [NAN, NAN]]))
    assert (spread.mean, spread.best, spread.worst) == (3.0, 4.0, 3.0)
    assert np.isnan(spread_of(np.full((2, 2), NAN)).mean)
    assert np.isnan(spread_of(np.empty((0, 0))).best)


def test_means_of_prompts():
    means = means_of(np.array([[1.0, 3.0], [NAN, 5.0], [NAN, NAN]]))
    assert means[:2].tolist() == [2.0, 5.0] and np.isnan(means[2])


def test_a_line_through_points():
    x = np.array([0.0, 1, 2, 3, NAN])
    found = trend_of(x, 2 * x + 1)
    assert found.slope == pytest.approx(2) and found.intercept == pytest.approx(1)
    assert found.correlation == pytest.approx(1)
    down = trend_of(x, np.array([3.0, 1, 2, 0, 9]))
    assert down.slope == pytest.approx(np.polyfit(x[:4], [3, 1, 2, 0], 1)[0])
    assert down.correlation == pytest.approx(np.corrcoef(x[:4], [3, 1, 2, 0])[0, 1])


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([NAN] * 4, [1, 2, 3, 4])]
)
def test_no_line(x, y):
    assert trend_of(np.array(x, float), np.array(y, float)) is None


def test_disagreement_counts_pairs_that_both_judges_order():
    first = np.array([[1.0, 2, 3], [1, 1, 1], [1, 2, NAN]])
    second = np.array([[3.0, 2, 4], [1, 2, 3], [2, 1, 5]])
    shares = disagreement_of(first, second)
    assert shares[0] == pytest.approx(1 / 3)  # of 1 2, 1 3, 2 3 only the first
    assert np.isnan(shares[1])  # a judge that has nothing but ties orders nothing
    assert shares[2] == 1.0


def test_disagreement_of_many_responses_is_of_some():
    scores = np.random.default_rng(0).normal(size=(5, 400))
    assert disagreement_of(scores, -scores).tolist() == [1.0] * 5
    assert disagreement_of(scores, scores).tolist() == [0.0] * 5


def test_histogram_counts_outliers_at_the_ends():
    values = np.concatenate([np.linspace(0, 1, 1000), [1e9, NAN]])
    rows, outside = histogram({"a": values, "b": np.full(3, NAN)}, num_bins=4)
    assert sum(row["share"] for row in rows if row["group"] == "a") == pytest.approx(1)
    assert rows[0]["from"] < 0.1 and rows[3]["to"] < 2
    assert 0 < outside < 0.02
    assert histogram({"a": np.full(4, NAN)}) == ([], 0.0)
    rows, outside = histogram({"a": np.zeros(4)}, num_bins=2)
    assert [row["share"] for row in rows] == [0.0, 1.0] and outside == 0


def test_values_of_another_order_of_prompts():
    held_out = HeldOut(1, ["b", "a"], {}, *[np.zeros((2, 1))] * 3)
    ordered = in_order_of(["a", "b", "c"], held_out, np.array([1.0, 2.0]))
    assert ordered[:2].tolist() == [2.0, 1.0] and np.isnan(ordered[2])


def test_numbers_are_those_of_the_run(made_up):
    run = open_run(str(made_up))
    for evaluation, row in zip(run.evaluations, run.rows, strict=True):
        numbers = held_out_of(evaluation)
        assert spread_of(numbers.scores["score"]).mean == pytest.approx(row.mean_score)
        assert spread_of(numbers.scores["second"]).mean == pytest.approx(row.judges["second"].mean_score)
        assert spread_of(numbers.scores["gold"]).mean == pytest.approx(row.gold_accuracy)
        assert np.nanmean(numbers.tokens_PN) == pytest.approx(row.mean_response_tokens)
        assert np.nanmean(numbers.cut_PN) == pytest.approx(row.truncated)
        assert numbers.chars_PN.max() == 1_000_000
    artifact = run.artifact(2, "pair")
    pairs = pairs_of(2, artifact.path)
    assert pairs.margins.mean() == pytest.approx(artifact.metrics["mean_margin"])
    assert pairs.chosen_chars.mean() == pytest.approx(artifact.metrics["mean_chosen_chars"])


def test_win_rates_are_those_of_the_table(made_up):
    evaluations = open_run(str(made_up)).evaluations
    policies = [held_out_of(evaluation) for evaluation in evaluations]
    policies[2].scores["score"][3] = NAN
    policies[2].scores["score"][0, 1:] = NAN
    policies[1].scores["score"][1] = policies[2].scores["score"][1]
    for ours, theirs in ((0, 1), (2, 1), (3, 0)):
        for judge in ("score", "second", "gold"):
            by_prompt = []
            for policy in (policies[ours], policies[theirs]):
                by_prompt.append(dict(zip(policy.ids, policy.scores[judge].tolist(), strict=True)))
            expected = win_rate(*by_prompt)
            assert win_rate_of(policies[ours], policies[theirs], judge) == pytest.approx(expected)
    assert win_rate(*map(scores_by_prompt, (evaluations[3].scores, evaluations[0].scores)))[0] > 0.5


def test_scores_of_other_prompts_are_not_shown_as_these(made_up):
    evaluations = open_run(str(made_up)).evaluations
    (made_up / "iteration_001/held_out/score/shard_00000.parquet").write_bytes(
        (made_up / "iteration_001/score/shard_00000.parquet").read_bytes()
    )
    with pytest.raises(ValueError, match="not of the same prompts"):
        held_out_of(evaluations[1])
