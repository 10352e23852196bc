"""Rows as other programs have them: numbers, benchmarks' rows, and what is written of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from decimal import Decimal

import pytest

from rlhf.data import responses
from rlhf.data.pairing import LARGEST_SCORE
from rlhf.data.records import FINISHED
from rlhf.data.responses import Form, to_number, write_rows
from rlhf.data.rows import UnusableRow
from rlhf.errors import DataError

QUESTION = [{"role": "user", "content": "q"}]


def jsonl(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3.0),
        (-0.5, -0.5),
        (Decimal("1.5"), 1.5),
        (LARGEST_SCORE, LARGEST_SCORE),
        (-LARGEST_SCORE, -LARGEST_SCORE),
        (math.nextafter(LARGEST_SCORE, math.inf), math.inf),
        (-LARGEST_SCORE * 2, -math.inf),
        (-math.inf, -math.inf),
    ],
)
def test_a_number_beyond_any_score_is_infinite(value, number):
    assert to_number(value, "rewards") == number


def test_null_is_an_unknown_number():
    assert math.isnan(to_number(None, "rewards"))


@pytest.mark.parametrize("value", [True, False, "1", [1], 10**400, Decimal("sNaN")])
def test_what_is_no_number_of_64_bits_makes_a_row_unusable(value):
    with pytest.raises(UnusableRow) as error:
        to_number(value, "rewards")
    assert error.value.reason == "rewards_not_numbers"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"responses": []}, "no_responses"),
        ({"responses": {"a": 1}}, "no_responses"),
        ({"responses": "a"}, "no_responses"),
        ({"responses": ["a", 3]}, "response_not_text"),
        ({"responses": ["a"], "finish_reasons": ["stop", "stop"]}, "finish_reasons_do_not_match"),
        ({"responses": ["\ud800"]}, "invalid_unicode"),
        ({"responses": ["a"], "note": "\ud800"}, "invalid_unicode"),
    ],
)
def test_responses_that_cannot_be_used(row, reason):
    with pytest.raises(UnusableRow) as error:
        responses.to_candidates({"prompt": "q"} | row)
    assert error.value.reason == reason


@pytest.mark.parametrize("rewards", [[1], [1, 2, 3], "no list", None])
def test_rewards_must_be_as_many_as_the_responses(rewards):
    row = {"prompt": "q", "responses": ["a", "b"], "rewards": rewards}
    with pytest.raises(UnusableRow, match="rewards must be a list of 2"):
        responses.to_candidates(row, "rewards")


@pytest.mark.parametrize(("row", "key"), [({}, "responses"), ({"responses": ["a"]}, "rewards")])
def test_a_missing_key_is_an_error_of_the_file(row, key):
    with pytest.raises(DataError, match=f"No {key}: the keys are"):
        responses.to_candidates({"prompt": "q"} | row, "rewards")


def test_rewards_are_carried_along_only_where_they_are_not_read():
    row = {"prompt": "q", "responses": ["a"], "rewards": [1], "note": "n", "qualities": [3]}
    assert json.loads(responses.to_candidates(row)["extra"]) == {"note": "n", "qualities": [3]}
    read = responses.to_candidates(row, "qualities")
    assert json.loads(read["extra"]) == {"note": "n", "rewards": [1]} and read["scores"] == [3.0]


def test_what_was_not_sampled_here_has_no_tokens_and_no_probabilities():
    row = responses.to_candidates({"prompt": "q", "responses": [" a "], "finish_reasons": ["length"]})
    (candidate,) = row["candidates"]
    assert row["prompt_token_ids"] == candidate["token_ids"] == []
    assert candidate["text"] == " a " and candidate["finish_reason"] == "length" and candidate["seed"] == 0
    assert math.isnan(candidate["logprob"]) and math.isnan(candidate["temperature"])


def test_a_row_that_repeats_another_is_dropped_and_one_with_other_rewards_is_not(tmp_path):
    first = {"prompt": "q", "responses": ["a", "b"], "rewards": [1, 2]}
    others = [first | {"rewards": [2, 1]}, first | {"responses": ["a", "c"]}, first | {"prompt": "p"}]
    counts = Counter[str]()
    read = list(responses.read_responses(jsonl(tmp_path, first, *others, first), counts, "rewards"))
    assert len(read) == 4 and counts["rows"] == 5 and counts["dropped/duplicate"] == 1
    assert counts.total() == 6


def test_a_file_without_one_usable_row_names_the_first_problem(tmp_path):
    path = jsonl(tmp_path, {"prompt": "q", "responses": []}, {"prompt": "q", "responses": [3]})
    with pytest.raises(DataError, match=r"none of 2 rows can be used; row 1: responses must be a list"):
        list(responses.read_responses(path, Counter()))


def test_comparisons_have_the_better_one_first_and_a_name(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": "x", "rejected": "y", "id": "seven", "subset": "Hard"},
        {"prompt": "o", "chosen": "x", "rejected": "y", "subset": 3},
    ]
    read = list(responses.read_comparisons(jsonl(tmp_path, *rows, name="mine.jsonl"), Counter()))
    texts = [[candidate["text"] for candidate in row["candidates"]] for row in read]
    assert texts == [["good", "bad"], ["x", "y"], ["x", "y"]]
    assert [json.loads(row["extra"]) for row in read] == [
        {"id": 0, "subset": "mine"},
        {"id": "seven", "subset": "Hard"},
        {"id": 2, "subset": "3"},
    ]
    assert read[0]["candidates"][0]["finish_reason"] == FINISHED and read[0]["messages"] == QUESTION


def best(**changes):
    return {"prompt": "q", "chosen": ["r"], "rejected": ["w", "v"]} | changes


def test_rows_of_rewardbench_2_have_the_right_ones_first(tmp_path):
    rows = [
        best(),
        best(chosen=["r", "s"], num_correct=2, id="ref:12", subset="Ties"),
        best(chosen=[], prompt="other"),
        best(rejected=[], prompt="another"),
    ]
    counts = Counter[str]()
    read = list(responses.read_best_of_n(jsonl(tmp_path, *rows, name="mine.jsonl"), counts))
    texts = [[candidate["text"] for candidate in row["candidates"]] for row in read]
    assert texts == [["r", "w", "v"], ["r", "s", "w", "v"]]
    assert [json.loads(row["extra"]) for row in read] == [
        {"id": 0, "subset": "mine", "num_correct": 1},
        {"id": "ref:12", "subset": "Ties", "num_correct": 2},
    ]
    assert counts["rows"] == 4 and counts["dropped/one_sided"] == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (best(num_correct=2), "num_correct"),
        (best(num_correct=0), "num_correct"),
        (best(subset="Ties", id="7"), "ties_id"),
        (best(subset="Ties", id="ref:1x"), "ties_id"),
        (best(subset="Ties"), "ties_id"),
    ],
)
def test_rows_of_rewardbench_2_that_contradict_themselves(tmp_path, row, reason):
    counts = Counter[str]()
    list(responses.read_best_of_n(jsonl(tmp_path, best(prompt="fine"), row), counts))
    assert counts[f"dropped/{reason}"] == 1


@pytest.mark.parametrize("row", [best(chosen="r"), best(rejected="w")])
def test_one_text_on_a_side_is_of_another_benchmark(tmp_path, row):
    with pytest.raises(DataError, match="read with version=1"):
        list(responses.read_best_of_n(jsonl(tmp_path, row), Counter()))


def test_scores_that_are_not_finite_are_null_and_what_a_row_held_comes_last():
    row = responses.to_candidates({"prompt": "q", "responses": ["a", "b", "c"], "note": 1})
    line = responses.scored_line(row, [0.5, math.nan, -math.inf])
    assert line == {"prompt": QUESTION, "responses": ["a", "b", "c"], "rewards": [0.5, None, None], "note": 1}
    assert list(line)[-1] == "note"


ROWS = [{"a": "é"}, {"a": 2}]


@pytest.mark.parametrize(
    ("rows", "form", "text"),
    [
        ([], Form.lines, ""),
        (ROWS, Form.lines, '{"a": "é"}\n{"a": 2}\n'),
        ([], Form.list, "[]\n"),
        (ROWS[:1], Form.list, '[\n{"a": "é"}\n]\n'),
        (ROWS, Form.list, '[\n{"a": "é"},\n{"a": 2}\n]\n'),
        (ROWS[:1], Form.object, '{\n "a": "é"\n}\n'),
    ],
)
def test_rows_are_written_in_three_forms(tmp_path, rows, form, text):
    assert write_rows(tmp_path / "out", rows, form) == len(rows)
    assert (tmp_path / "out").read_text(encoding="utf-8") == text


def test_an_object_is_one_row(tmp_path):
    with pytest.raises(AssertionError):
        write_rows(tmp_path / "out", ROWS, Form.object)
