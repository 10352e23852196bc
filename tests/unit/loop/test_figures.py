"""The arithmetic of the evaluation."""

import json
import math
from dataclasses import replace

import pytest

from rlhf.data.schemas import CANDIDATES_SCHEMA, LOGPROBS_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import shard_name, write_shard
from rlhf.loop import figures
from rlhf.loop.figures import (
    Evaluation,
    Row,
    best,
    distance_text,
    log_ratio_to_initial,
    rows_of,
    verdict,
    win_rate,
    write_summary,
)
from rlhf.loop.table import table
from rlhf.run.artifact import Artifact


def candidates(folder, logprobs, tokens=3, truncated=0):
    folder.mkdir(parents=True)
    rows = [
        {
            "id": name,
            "messages": [],
            "prompt_token_ids": [1],
            "candidates": [
                {
                    "token_ids": [5] * tokens,
                    "text": "x",
                    "finish_reason": "stop",
                    "logprob": value,
                    "seed": 1,
                    "temperature": 1.0,
                }
                for value in values
            ],
        }
        for name, values in logprobs.items()
    ]
    write_shard(folder / shard_name(0), CANDIDATES_SCHEMA, rows)
    n = sum(len(v) for v in logprobs.values())
    return Artifact(
        folder, "d", {"counts": {"responses": n, "response_tokens": n * tokens, "truncated": truncated}}
    )


def scores(folder, values, schema=SCORES_SCHEMA, column="scores"):
    folder.mkdir(parents=True)
    write_shard(folder / shard_name(0), schema, [{"id": name, column: each} for name, each in values.items()])
    return Artifact(folder, "d")


def test_win_rate_counts_a_tie_half_and_compares_all_with_all():
    rate, low, high = win_rate({"a": [1.0, 3.0]}, {"a": [2.0, 3.0]})
    # 1<2, 1<3, 3>2, 3=3 -> 1.5 of 4
    assert rate == pytest.approx(0.375)
    assert (low, high) == (0.0, 1.0)


def test_win_rate_against_itself_is_a_half():
    one = {"a": [1.0, 2.0, 5.0], "b": [0.0, 0.0]}
    assert win_rate(one, one)[0] == pytest.approx(0.5)


def test_win_rate_interval_takes_prompts_as_independent():
    policy = {str(i): [1.0] * 4 for i in range(100)}
    initial = {str(i): [float(i % 2 * 2)] * 4 for i in range(100)}
    rate, low, high = win_rate(policy, initial)
    assert rate == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 * 100 / 99 / 100))


def test_win_rate_leaves_out_what_is_not_a_number():
    assert win_rate({"a": [math.nan, 2.0]}, {"a": [1.0, math.inf]})[0] == 1.0
    assert math.isnan(win_rate({"a": [1.0]}, {"b": [1.0]})[0])


def test_kl_is_the_mean_log_ratio_per_response(tmp_path):
    sampled = candidates(tmp_path / "c", {"a": [-1.0, -2.0], "b": [-3.0, -4.0]})
    reference = scores(tmp_path / "r", {"a": [-2.0, -2.0], "b": [-5.0, -7.0]}, LOGPROBS_SCHEMA, "logprobs")
    assert log_ratio_to_initial(sampled, reference) == pytest.approx((1 + 0 + 2 + 3) / 4)


def evaluations(tmp_path):
    zero = Evaluation(
        0,
        Artifact(tmp_path, "p"),
        candidates(tmp_path / "c0", {"a": [-1.0, -1.0]}, tokens=4, truncated=1),
        scores(tmp_path / "s0", {"a": [0.0, 1.0]}),
        gold=scores(tmp_path / "g0", {"a": [0.0, 1.0]}),
    )
    pair = Artifact(tmp_path, "d", {"counts": {"pairs": 7, "dropped/all_tied": 2, "dropped/empty": 0}})
    generate = Artifact(tmp_path, "d", {"counts": {"dropped/prompt_too_long": 1}})
    one = Evaluation(
        1,
        Artifact(tmp_path, "p"),
        candidates(tmp_path / "c1", {"a": [-1.0, -1.0]}),
        scores(tmp_path / "s1", {"a": [2.0, 2.0]}),
        gold=scores(tmp_path / "g1", {"a": [1.0, 1.0]}),
        reference=scores(tmp_path / "r1", {"a": [-1.5, -1.5]}, LOGPROBS_SCHEMA, "logprobs"),
        generate=generate,
        pair=pair,
    )
    return [zero, one]


def test_figures_of_finished_policies_are_worked_out_once(tmp_path, monkeypatch):
    read = []
    read_all_rows = figures.read_all_rows
    monkeypatch.setattr(figures, "read_all_rows", lambda *of: read.append(of) or read_all_rows(*of))
    both = evaluations(tmp_path)
    first = rows_of(both[:1])
    num_reads = len(read)
    assert num_reads > 0
    rows = rows_of(both)
    assert rows[0] is first[0]
    del read[:]
    assert rows_of(both) == rows
    assert read == []
    # Beside another π0 they are others.
    other_initial = replace(both[0])
    assert rows_of([other_initial, both[1]])[1] == rows[1]
    assert read != []


def test_rows_and_the_summary_file(tmp_path):
    rows = rows_of(evaluations(tmp_path))
    assert rows[0] == Row(0, 0.5, 0.5, None, None, None, 4.0, 0.0, 0.5, None, {})
    assert rows[1] == Row(1, 2.0, 1.0, 1.0, 0.0, 1.0, 3.0, 0.5, 0.0, 7, {"all_tied": 2, "prompt_too_long": 1})
    write_summary(tmp_path, rows, 1)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["best_iteration"] == 1 and "k1" in written["kl_estimator"]
    assert list(written["iterations"][1]) == [
        "iteration", "mean_score", "gold_accuracy", "win_rate", "win_rate_low", "win_rate_high",
        "mean_response_tokens", "kl", "truncated", "pairs", "dropped", "judges", "disagreement",
    ]  # fmt: skip
    assert written["iterations"][0]["win_rate"] is None


AT_1 = {"temperatures": [1.0], "top_p": 1.0, "top_k": 0}


@pytest.mark.parametrize(
    ("told", "is_kl"),
    [
        (AT_1, True),
        ({**AT_1, "temperatures": [0.7]}, False),
        ({**AT_1, "temperatures": [1.0, 0.7]}, False),
        ({**AT_1, "temperatures": [0.0]}, False),
        ({**AT_1, "top_p": 0.9}, False),
        ({**AT_1, "top_k": 50}, False),
    ],
)
def test_the_kl_is_called_so_only_where_responses_are_drawn_from_the_policy(tmp_path, told, is_kl):
    both = []
    for evaluation in evaluations(tmp_path):
        record = {**evaluation.candidates.record, "config": told}
        both.append(replace(evaluation, candidates=replace(evaluation.candidates, record=record)))
    rows = rows_of(both)
    assert [row.distance for row in rows] == [0.0, 0.5]
    assert [row.kl for row in rows] == ([0.0, 0.5] if is_kl else [None, None])
    assert ("KL" in table(rows)) == is_kl and ("log π/π0" in table(rows)) != is_kl
    assert distance_text(rows).startswith("KL is k1" if is_kl else "log π/π0 is the mean")
    write_summary(tmp_path, rows, 1)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["kl_estimator"] is not None) == is_kl
    assert ("log_ratio" in written) == ("log_ratio" in written["iterations"][1]) != is_kl


def test_what_dpo_dropped_stands_with_the_rest(tmp_path):
    zero, one = evaluations(tmp_path)
    trained = Artifact(tmp_path, "p", {"counts": {"rows": 7, "dropped/long_prompt": 3, "cut_chosen": 1}})
    fine_tuned = Artifact(tmp_path, "p", {"counts": {"dropped/no_answer": 9}})
    rows = rows_of([replace(zero, policy=fine_tuned), replace(one, policy=trained)])
    assert rows[0].dropped == {}
    assert rows[1].dropped == {"all_tied": 2, "prompt_too_long": 1, "long_prompt": 3}


def test_the_best_is_the_highest_mean_score_and_the_earlier_of_equals(tmp_path):
    rows = rows_of(evaluations(tmp_path))
    assert best(rows) == 1
    assert best([rows[1], rows[1]]) == 0


def test_a_number_that_is_none_becomes_null(tmp_path):
    write_summary(tmp_path, [Row(0, math.nan, None, None, None, None, 1.0, None, 0.0, None, {})], 0)
    assert json.loads((tmp_path / "summary.json").read_text())["iterations"][0]["mean_score"] is None


def test_the_table_has_a_line_per_policy(tmp_path):
    lines = table(rows_of(evaluations(tmp_path))).split("\n")
    assert len(lines) == 4
    assert lines[2].startswith("π0") and lines[3].startswith("π1")
    assert "1.000 [0.000, 1.000]" in lines[3] and "all_tied 2, prompt_too_long 1" in lines[3]


def test_another_judge_has_columns_of_its_own(tmp_path):
    zero, one, *_ = evaluations(tmp_path)
    others = [scores(tmp_path / f"other{i}", {"a": [float(i)], "b": [0.0]}) for i in (0, 1)]
    both = [replace(e, others={"second": other}) for e, other in zip((zero, one), others, strict=True)]
    rows = rows_of(both)
    assert rows[0].judges["second"].mean_score == 0.0 and rows[0].judges["second"].win_rate is None
    assert rows[1].judges["second"].mean_score == 0.5 and rows[1].judges["second"].win_rate == 0.75
    assert "second" in table(rows).split("\n")[0] and "+0.500" in table(rows)
    write_summary(tmp_path, rows, 1)
    written = json.loads((tmp_path / "summary.json").read_text())["iterations"][1]["judges"]
    assert written["second"]["win_rate"] == 0.75


NAN, INF = math.nan, math.inf


def left_out(tmp_path, **scores_of):
    """Rows of two policies, with other scores for the second one's columns."""
    zero, one = evaluations(tmp_path)
    changes = {name: scores(tmp_path / f"new_{name}", {"a": values}) for name, values in scores_of.items()}
    return rows_of([zero, replace(one, **changes)])


@pytest.mark.parametrize("odd", [NAN, INF, -INF, 1e300])
def test_a_score_that_is_not_finite_empties_no_column_and_is_counted(tmp_path, odd):
    rows = left_out(tmp_path, gold=[odd, 1.0], scores=[3.0, odd])
    assert (rows[1].gold_accuracy, rows[1].mean_score, rows[1].win_rate) == (1.0, 3.0, 1.0)
    assert rows[1].left_out == {"score": 1, "gold": 1} and rows[0].left_out == {}
    text = table(rows)
    assert "nan" not in text and "inf" not in text
    assert text.split("\n")[-1] == (
        "π1: responses left out, for their figure is no finite number: 1 of score, 1 of gold"
    )
    write_summary(tmp_path, rows, 1)
    written = json.loads((tmp_path / "summary.json").read_text())["iterations"]
    assert written[1]["left_out"] == {"score": 1, "gold": 1} and "left_out" not in written[0]


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_a_column_of_nothing_else_is_empty_and_says_why(tmp_path, odd):
    rows = left_out(tmp_path, gold=[odd, odd], scores=[odd, odd])
    assert rows[1].gold_accuracy is None and math.isnan(rows[1].mean_score)
    assert "nan" not in table(rows) and "2 of score, 2 of gold" in table(rows)
    assert best(rows) == 0


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_nan_never_wins(tmp_path, order):
    rows = left_out(tmp_path, scores=[NAN, NAN])
    assert best([rows[index] for index in order]) == order.index(0)
    assert best([rows[1], rows[1]]) == 0, "for want of another"


def test_one_response_without_a_log_probability_leaves_the_others_their_kl(tmp_path):
    zero, one = evaluations(tmp_path)
    odd = candidates(tmp_path / "odd", {"a": [-INF, -1.0]})
    rows = rows_of([zero, replace(one, candidates=odd)])
    assert rows[1].kl == pytest.approx(0.5) and rows[1].left_out == {"KL": 1}


def test_another_judge_counts_its_own(tmp_path):
    zero, one = evaluations(tmp_path)
    both = []
    for number, each in enumerate((zero, one)):
        others = {"second": scores(tmp_path / f"second{number}", {"a": [NAN, float(number)]})}
        both.append(replace(each, others=others))
    rows = rows_of(both)
    assert [row.judges["second"].mean_score for row in rows] == [0.0, 1.0]
    assert [row.left_out for row in rows] == [{"second": 1}, {"second": 1}]
    assert rows[1].judges["second"].win_rate == 1.0


def test_a_pairwise_judge_leaves_out_responses_and_not_whole_prompts(tmp_path):
    compared = scores(tmp_path / "compared", {"a": [NAN, 0.75], "b": [0.25, 0.25]})
    compared = replace(compared, record={"counts": {"judge_calls": 4}})
    assert verdict(compared, compared).win_rate == pytest.approx(0.5)
