"""Labels that could turn a pair round: a strength without a sign, names in the place of answers, labels that disagree."""

from __future__ import annotations

from collections import Counter

import pytest

from rlhf.data.comparisons import to_comparisons
from rlhf.data.prompts import load_prompts
from rlhf.data.rows import UnusableRow

TWO = {"prompt": "q", "response_1": "a", "response_2": "b"}
LETTERS = {"prompt": "q", "response_a": "a", "response_b": "b"}


def better(row):
    """The better answer's text, None for a tie."""
    (comparison,) = to_comparisons(row)
    return None if comparison.better is None else comparison.sides[comparison.better].answer


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        (TWO | {"preference": 1, "preference_strength": 3}, "a"),
        (TWO | {"preference": 2, "preference_strength": 3}, "b"),
        (TWO | {"preference_strength": -3}, "a"),
        (TWO | {"overall_preference": 2}, "b"),
        (LETTERS | {"label": "A", "preference_strength": 2}, "a"),
        (LETTERS | {"preferred": "A", "overall_preference": 1}, "a"),
        (LETTERS | {"chosen": "response_b", "rejected": "response_a"}, "b"),
        (LETTERS | {"chosen": "A", "rejected": "B"}, "a"),
        (LETTERS | {"winner": "model_a", "label": "A"}, "a"),
        (LETTERS | {"winner": "model_a", "label": "science"}, "a"),
        ({"prompt": "q", "chosen": "4", "rejected": "5"}, "4"),
    ],
)
def test_the_label_says_which_and_a_strength_only_how_much(row, answer):
    assert better(row) == answer


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (LETTERS | {"winner": "model_a", "label": "B"}, "labels_disagree"),
        (TWO | {"response_3": "c", "score_1": 1, "score_2": 2, "score_3": 3}, "more_than_two_answers"),
        (LETTERS | {"response_c": "c", "winner": "A"}, "more_than_two_answers"),
    ],
)
def test_what_would_lose_or_turn_an_answer_is_dropped_with_a_reason(row, reason):
    with pytest.raises(UnusableRow) as dropped:
        to_comparisons(row)
    assert dropped.value.reason == reason


def test_a_number_of_thousands_of_digits_is_no_crash():
    row = {"question": "q", "prediction 1": "a", "prediction " + "1" * 5000: "b", "preference": [1]}
    with pytest.raises(Exception, match=r"preference|known shapes|label"):
        to_comparisons(row)


def test_three_lettered_columns_are_choices_that_nobody_read(tmp_path):
    path = tmp_path / "siqa.jsonl"
    path.write_text(
        '{"context": "Tracy stayed.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z"}\n'
    )
    _, counts = load_prompts(path)
    assert isinstance(counts, Counter)
    assert {key for key in counts if key.startswith("unread/")} == {
        "unread/answerA",
        "unread/answerB",
        "unread/answerC",
    }


def test_choices_inside_other_words_are_not_taken_for_said(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "Do you know nothing of yesterday?", "choices": ["yes", "no"]}\n')
    (prompt,), _ = load_prompts(path)
    assert prompt.messages[0]["content"].endswith("A. yes\nB. no")
