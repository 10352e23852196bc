"""Values, names and labels of rows, each at the boundary of what it is taken for."""

from __future__ import annotations

import math
import string
from collections import Counter
from decimal import Decimal

import pytest

from rlhf.data import benchmarks, columns, rendering
from rlhf.data.finish_reasons import finish_reasons_of
from rlhf.data.labels import TwoAnswers, better_of, names_sides, require_two, two_answers
from rlhf.data.rows import (
    Row,
    UnusableRow,
    as_number,
    check_values,
    has_half_pair,
    has_value,
    plain_json,
    plain_name,
    plain_text,
    without_half_pairs,
)
from rlhf.errors import DataError


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("System Prompt", "system_prompt"),
        ("systemPrompt", "system_prompt"),
        ("_a.b-c/d_", "a_b_c_d"),
        ("A1B", "a1_b"),
    ],
)
def test_names_in_any_spelling(name, plain):
    assert plain_name(name) == plain


@pytest.mark.parametrize("value", [None, math.nan, "", " \n", [], {}, ()])
def test_nothing(value):
    assert not has_value(value)


@pytest.mark.parametrize("value", [0, False, "a", [None], {"a": None}, (0,), 0.0])
def test_something(value):
    assert has_value(value)


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), ("1.5", 1.5), (Decimal("2"), 2.0), (" 3 ", 3.0), (True, None), ("x", None), (None, None)],
)
def test_numbers(value, number):
    assert as_number(value) == number


@pytest.mark.parametrize("value", [math.inf, "nan", "-inf", 10**400, "9" * 400, [1]])
def test_what_is_no_finite_number(value):
    assert as_number(value) is None


def nested(levels):
    value = "a"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("wrap", [nested, lambda levels: {"k": nested(levels - 1)}])
def test_values_nest_up_to_a_limit(wrap):
    check_values(wrap(64))
    with pytest.raises(UnusableRow) as error:
        check_values(wrap(65))
    assert error.value.reason == "too_deep"


@pytest.mark.parametrize("value", ["\ud800", ["a", "\udfff"], {"a": {"b": "\ud800"}}, {"\ud800": 1}])
def test_half_a_pair_is_found_anywhere(value):
    with pytest.raises(UnusableRow) as error:
        check_values(value)
    assert error.value.reason == "invalid_unicode"
    assert not has_half_pair("aé😀")
    assert without_half_pairs("a\ud800é\udfff😀") == "a\ufffdé\ufffd😀"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" a ", "a"),
        (["a", "b "], "a\nb"),
        ([], "[]"),
        ([1, {"a": "é"}], '[1, {"a": "é"}]'),
        (1.5, "1.5"),
        (None, "null"),
        (Decimal("1.10"), "1.10"),
        (["a", 1], '["a", 1]'),
    ],
)
def test_values_as_a_person_would_write_them(value, text):
    assert plain_text(value) == text


def test_json_that_every_reader_takes():
    assert (
        plain_json({"a": [math.nan, (math.inf, 1.5)], "b": "é"})
        == '{"a": [null, [null, 1.5]], "b": "\\u00e9"}'
    )
    assert plain_json("é", ascii_only=False) == '"é"'


def test_a_row_remembers_what_was_read_and_not_what_was_looked_at():
    row = Row({"System Prompt": "s", "system_prompt": "t", "Answer": None}, {"context": ["Answer", "answer"]})
    assert (
        row["system_prompt"] == "t" and row.peek("answer") is None and "nothing" not in row and 3 not in row
    )
    assert row.column("SystemPrompt") is None and row.column("system_prompt") == "system_prompt"
    assert row.read == {"system_prompt"} and len(row) == 3 and not row.holds("answer")
    assert row.plain_names() == ["system_prompt", "answer"]
    assert row.maps("context") and not row.maps("question") and row.mapped("context") is None
    assert "Answer" in row.read


@pytest.mark.parametrize(
    ("record", "value"),
    [
        ({"a": " x ", "b": "y"}, "x\n\ny"),
        ({"a": "x", "b": ""}, "x"),
        ({"a": ["x"], "b": ["y", 1]}, ["x", "y", 1]),
        ({"a": ["x"], "b": "y"}, "x\n\ny"),
        ({"a": " x "}, " x "),
    ],
)
def test_mapped_columns_are_joined(record, value):
    assert Row(record, {"context": ["a", "b"]}).mapped("context") == value


def test_an_unfolded_row_maps_its_question_no_more():
    row = Row({"q": "x", "a": 1}, {"question": ["q"], "context": ["a"]}).unfolded("q", "y", {"hint": "h"})
    assert dict(row) == {"q": "y", "a": 1, "hint": "h"} and row.maps("context") and not row.maps("question")


@pytest.mark.parametrize("length", [59, 60])
def test_a_name_of_up_to_60_letters_is_shown_whole(length):
    assert columns.shown("n" * length) == "n" * length


def test_a_longer_name_is_cut_and_an_unseen_letter_escaped():
    assert columns.shown("n" * 61) == "n" * 59 + "…"
    assert columns.shown("a\n") == "a\\n"


def test_forty_columns_are_counted_by_name_and_the_others_under_one():
    counts = Counter[str]()
    for number in range(42):
        columns.count_unread(counts, Row({f"evidence {number}": "x"}))
    columns.count_unread(counts, Row({"evidence 3": "x"}))
    by_name = columns.unread_columns(counts)
    assert len(by_name) == 41 and by_name["(other columns)"] == 2
    assert by_name["evidence 3"] == 2 and by_name["evidence 39"] == 1 and "evidence 40" not in by_name


@pytest.mark.parametrize(
    "name",
    ["id", "Response_0", "outputB", "chosen_rating", "is_safe", "x_score", "my metadata", "in_abc_train"],
)
def test_what_is_no_part_of_a_question(name):
    assert columns.is_known(name)


@pytest.mark.parametrize("name", ["evidence", "hint", "response_long", "identity", "island", "passage"])
def test_what_may_be_a_part_of_a_question(name):
    assert not columns.is_known(name)


@pytest.mark.parametrize(("letters", "unread"), [("ab", []), ("abc", ["answer_a", "answer_b", "answer_c"])])
def test_three_lettered_columns_are_choices(letters, unread):
    assert columns.unread_of(Row({f"answer_{letter}": "x" for letter in letters} | {"id": 1})) == unread


def test_keys_of_turns_that_hold_something_are_told():
    row = Row(
        {"messages": [{"role": "user", "content": "a", "mood": "sad", "note": ""}, "x"], "list": [{"k": 1}]}
    )
    _ = row["messages"], row["list"]
    assert columns.unread_of(row) == ["messages[].mood"]
    row = Row({"messages": {"from": "human", "value": "a", "mood": "sad"}})
    _ = row["messages"]
    assert columns.unread_of(row) == ["messages[].mood"]


@pytest.mark.parametrize(
    "mapping", [{"note": "a"}, {"context": []}, {"context": ["a", 3]}, {"context": 3}, ["a"]]
)
def test_a_mapping_that_is_none(mapping):
    with pytest.raises(DataError):
        columns.column_map(mapping)


def test_a_mapping_names_columns_in_any_spelling():
    assert columns.column_map({"context": "a", "system": ["b", "c"]}) == {
        "context": ["a"],
        "system": ["b", "c"],
    }
    assert columns.column_map(None) == {}
    columns.check_mapped({"context": ["my_note"]}, {"My Note"})
    with pytest.raises(DataError, match=r"context=note: no row has such a column; there are id, text\."):
        columns.check_mapped({"context": ["note"]}, {"text", "id"})


@pytest.mark.parametrize(
    ("unread", "text"),
    [
        ({}, None),
        (
            {"evidence": 7},
            "column `evidence` (7 of 9 rows) is not read; p.columns={context: evidence} maps it",
        ),
        (
            {"b": 1, "a b": 2},
            "columns `a b` (2 of 9 rows), `b` (1 of 9 rows) are not read; p.columns={context: ['a b', b]} maps them",
        ),
        ({"messages[].mood": 1}, "column `messages[].mood` (1 of 9 rows) is not read"),
        ({"(other columns)": 1}, "column `(other columns)` (1 of 9 rows) is not read"),
    ],
)
def test_unread_columns_as_a_sentence(unread, text):
    counts = {"rows": 9, "unread/gone": 0} | {f"unread/{name}": count for name, count in unread.items()}
    assert columns.unread_text(counts, "p") == text
    if unread:
        assert columns.unread_text(counts, "p.columns") == text


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        (["red", 2], "A. red\nB. 2"),
        ([], None),
        (["a", ["b"]], None),
        ({"text": ["red"], "label": ["x"]}, "x. red"),
        ({"text": ["red"], "label": ["x", "y"]}, None),
        ({"text": [], "label": []}, None),
        ({"A": "red", "10": "blue", "C": None}, "A. red\n10. blue"),
        ({"100": "red"}, None),
        ({"A": 3}, None),
        ({}, None),
        (
            [{"text": "red", "label": "x"}, {"text": "blue", "key": "y"}, {"text": "green"}],
            "x. red\ny. blue\n3. green",
        ),
        ([{"text": "red"}, {"label": "y"}], None),
        ("red", None),
    ],
)
def test_choices(choices, text):
    assert rendering.choices_text(choices) == text


def test_26_choices_have_letters_and_27_have_numbers():
    assert rendering.choices_text(["x"] * 26).splitlines()[-1] == "Z. x"
    assert rendering.choices_text(["x"] * 27).splitlines()[0::26] == ["1. x", "27. x"]
    assert len(string.ascii_uppercase) == 26


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            [["Sums", "2+2 is 4."], {"title": "More", "text": "3+3 is 6."}, "Done."],
            "Sums\n2+2 is 4.\n\nMore\n3+3 is 6.\n\nDone.",
        ),
        ({"title": "T", "id": 7}, "T"),
        ({"title": "T", "mood": "sad"}, '{"title": "T", "mood": "sad"}'),
        ({"title": "T", "mood": ""}, "T"),
        ({"id": 7}, '{"id": 7}'),
        ([1, 2], "[1, 2]"),
        ([["a", 1]], '["a", 1]'),
        (" indented", " indented"),
    ],
)
def test_passages(value, text):
    assert rendering.passages_text(value) == text


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"subreddit": "s", "title": "t", "post": "p"}, "SUBREDDIT: r/s\nTITLE: t\nPOST: p\nTL;DR:"),
        ({"post": "p"}, "POST: p\nTL;DR:"),
        ({"title": "t", "article": "a"}, "Title: t\n\nArticle:\n\na\n\nTL;DR:"),
        ({"article": "a"}, "Article:\n\na\n\nTL;DR:"),
        ({"title": "t"}, None),
        ("p", None),
    ],
)
def test_posts(info, text):
    assert rendering.post_text(info) == text


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (' ["a", null]', ["a", ""]),
        (["a"], ["a"]),
        ([], None),
        ("[1]", None),
        ("[", None),
        ("a", None),
        ('{"a": 1}', None),
        (None, None),
    ],
)
def test_lists_of_text(value, texts):
    assert rendering.texts_of(value) == texts


@pytest.mark.parametrize(
    ("text", "content", "is_said"),
    [
        ("x" * 40, f"a{'x' * 40}b", True),
        ("x" * 39, f"a{'x' * 39}b", False),
        ("seven ", "a\nseven\nb", True),
        ("seven", "seven", True),
        ("seven", "Context: seven\nb", True),
        ("seven", 'say "seven" now', True),
        ("seven", "say seven now", False),
        ("seven", "a\nseven ", False),
    ],
)
def test_a_text_that_stands_in_a_question_already(text, content, is_said):
    assert (
        rendering.is_said(text, [{"role": "user", "content": "other"}, {"role": "user", "content": content}])
        == is_said
    )


def test_choices_that_stand_in_one_message_already():
    def said(*contents):
        return rendering.are_choices_said(
            "A. no\nB. a. b", [{"role": "user", "content": each} for each in contents]
        )

    assert said("x", "is it (no) or a. b?") and not said("no", "a. b") and not said("know a. b")


ANSWERS = {
    "12": TwoAnswers("response", ("1", "2")),
    "ab": TwoAnswers("response", ("a", "b")),
    "01": TwoAnswers("response", ("0", "1")),
    "shp": TwoAnswers("human_ref", ("a", "b")),
}


def better(answers, **row):
    """0, 1, "tie", "none" of a row without a label, or the reason for which it is not used."""
    try:
        has_label, which = better_of(Row(row), ANSWERS[answers])
    except UnusableRow as error:
        return error.reason
    if not has_label:
        return "none"
    return "tie" if which is None else which


@pytest.mark.parametrize(
    ("label", "of_12", "of_ab", "of_01", "of_shp"),
    [
        (1, 0, "unknown_label", 1, 0),
        (2, 1, "unknown_label", "unknown_label", "unknown_label"),
        (0, "unknown_label", "unknown_label", 0, 1),
        ("1", 0, "unknown_label", 1, 0),
        ("A", "unknown_label", 0, "unknown_label", 0),
        ("b", "unknown_label", 1, "unknown_label", 1),
        ("response_2", 1, "unknown_label", "unknown_label", "unknown_label"),
        ("Model B", "unknown_label", 1, "unknown_label", 1),
        ("first", 0, 0, 0, 0),
        ("right", 1, 1, 1, 1),
        ("Tie (both bad)", "tie", "tie", "tie", "tie"),
        ("both-bad", "tie", "tie", "tie", "tie"),
        ("[[A>>B]]", "unknown_label", 0, "unknown_label", 0),
        ("A < B", "unknown_label", 1, "unknown_label", 1),
        ("A=B", "unknown_label", "tie", "unknown_label", "tie"),
        ("A~B", "unknown_label", "tie", "unknown_label", "tie"),
        ("B>A", "unknown_label", 1, "unknown_label", 1),
        ("A>A", "unknown_label", "unknown_label", "unknown_label", "unknown_label"),
        ("model_2>model_1", 1, "unknown_label", "unknown_label", "unknown_label"),
        ("neither of both", "unknown_label", "unknown_label", "unknown_label", "unknown_label"),
        ([1], "unknown_label", "unknown_label", "unknown_label", "unknown_label"),
    ],
)
def test_labels_that_name_a_side(label, of_12, of_ab, of_01, of_shp):
    found = [better(answers, winner=label) for answers in ("12", "ab", "01", "shp")]
    assert found == [of_12, of_ab, of_01, of_shp]


@pytest.mark.parametrize(
    ("label", "which"),
    [
        (1, 0),
        (1.49, 0),
        (1.5, "tie"),
        (1.51, 1),
        (2, 1),
        (0, "tie"),
        (2.01, "unknown_label"),
        (0.99, "unknown_label"),
        (-1, "unknown_label"),
        ("2", 1),
        ("second", 1),
        (None, "tie"),
    ],
)
def test_preferences_of_alpaca_farm(label, which):
    assert better("12", preference=label) == which


def test_a_preference_between_other_sides_is_a_name():
    assert better("ab", preference="A") == 0 and better("01", preference=1) == 1
    assert better("01", preference=0) == 0 and better("01", preference=2) == "unknown_label"


@pytest.mark.parametrize(
    ("strength", "which"),
    [
        (-3, 0),
        (-1, 0),
        (-0.5, 0),
        (0, "tie"),
        (1, 1),
        (3, 1),
        (3.5, "unknown_label"),
        (-4, "unknown_label"),
        ("x", "unknown_label"),
    ],
)
def test_strengths_have_a_sign(strength, which):
    assert better("12", overall_preference=strength) == which


@pytest.mark.parametrize(
    ("flags", "which"),
    [
        ((1, 0, 0), 0),
        ((0, 1, 0), 1),
        ((0, 0, 1), "tie"),
        ((1, 1, 0), "unknown_label"),
        ((0, 0, 0), "unknown_label"),
    ],
)
def test_flags_of_the_arena(flags, which):
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    assert better("ab", **dict(zip(names, flags, strict=True))) == which


def test_the_arena_may_have_no_column_of_ties():
    assert better("ab", winner_model_a=0, winner_model_b=1) == 1
    assert better("ab", winner_model_a=0, winner_model_b=0) == "unknown_label"
    assert better("ab", winner_model_a=1) == "none"


@pytest.mark.parametrize(
    ("row", "which"),
    [
        ({}, "none"),
        ({"winner": "a", "label": "b"}, "labels_disagree"),
        ({"winner": "a", "label": "a"}, 0),
        ({"winner": "tie", "label": "b"}, "labels_disagree"),
        ({"winner": "a", "label": "poetry"}, 0),
        ({"winner": None, "label": "b"}, 1),
        ({"winner": None}, "unknown_label"),
        ({"winner": "b", "preference_strength": -2}, 1),
        ({"model_a": "gpt", "model_b": "llama", "winner": "llama"}, 1),
        ({"model_a": "b", "model_b": "a", "winner": "a"}, 1),
        ({"model_a": "gpt", "model_b": "gpt", "winner": "gpt"}, "unknown_label"),
        ({"generator_a": "gpt", "generator_b": "llama", "winner": "gpt"}, 0),
    ],
)
def test_several_labels_of_a_row(row, which):
    assert better("ab", **row) == which


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("response_a", "response_b"), ("response_a", "response_b")),
        (("response1", "response2"), ("response1", "response2")),
        (("model_a_response", "model_b_response"), ("model_a_response", "model_b_response")),
        (("output_0", "output_1"), ("output_0", "output_1")),
        (("response_a", "output_b"), None),
        (("response_a",), None),
    ],
)
def test_two_columns_of_answers(names, found):
    answers = two_answers(Row(dict.fromkeys(names, "x")))
    assert (answers and answers[:2]) == found


@pytest.mark.parametrize(
    ("names", "is_third"),
    [
        (("response_1", "response_2", "response_3"), True),
        (("response1", "response2", "response3"), True),
        (("response_1", "response_2"), False),
    ],
)
def test_a_third_answer_would_be_lost(names, is_third):
    row = Row(dict.fromkeys(names, "x") | {"response_4": None})
    if is_third:
        with pytest.raises(UnusableRow, match="response_3 is a third answer"):
            require_two(row, ANSWERS["12"])
    else:
        require_two(row, ANSWERS["12"])


@pytest.mark.parametrize(("answers", "third"), [("ab", "response_c"), ("01", "response_2")])
def test_what_a_third_answer_is_called(answers, third):
    require_two(Row({third: None}), ANSWERS[answers])
    with pytest.raises(UnusableRow):
        require_two(Row({third: "x"}), ANSWERS[answers])


@pytest.mark.parametrize(
    ("chosen", "rejected", "names"),
    [
        ("A", "B", True),
        ("b", "a", True),
        ("A", "A", False),
        ("A", "x", False),
        ("4", "5", False),
        ("A", "tie", False),
    ],
)
def test_columns_that_hold_the_names_of_answers(chosen, rejected, names):
    row = Row({"response_a": "4", "response_b": "5", "chosen": chosen, "rejected": rejected})
    assert names_sides(row, "chosen", "rejected") == names
    assert not names_sides(Row({"chosen": "A", "rejected": "B"}), "chosen", "rejected")


@pytest.mark.parametrize(
    ("row", "reasons"),
    [
        ({}, ["stop", "stop"]),
        ({"finish_reasons": ["eos_token", "max_tokens"]}, ["stop", "length"]),
        ({"finish_reasons": '["End-Turn", {"type": "length"}]'}, ["stop", "length"]),
        ({"finish_reasons": [None, ""]}, ["stop", "stop"]),
        ({"finish_reason": "length"}, ["stop", "stop"]),
        ({"stop_reason": ["length", {"type": None}]}, ["length", "stop"]),
        ({"finish_reasons": ["stop"]}, "finish_reasons_do_not_match"),
        ({"finish_reasons": "[1"}, "finish_reasons_do_not_match"),
        ({"finish_reasons": ["stop", "abort"]}, "unknown_finish_reason"),
    ],
)
def test_reasons_for_which_a_response_ended(row, reasons):
    try:
        found = finish_reasons_of(Row(row), 2)
    except UnusableRow as error:
        found = error.reason
    assert found == reasons


CANDIDATE = {"text": "4", "token_ids": [1, 2, 3], "finish_reason": "stop"}


@pytest.mark.parametrize(("reason", "tokens"), [("stop", 2), ("length", 3)])
def test_the_sampled_terminator_is_no_token_of_the_answer(reason, tokens):
    candidate = CANDIDATE | {"finish_reason": reason}
    new = benchmarks.arena_hard_answer({"uid": "u", "prompt": "q"}, candidate, "mine")
    assert new["metadata"] == {"token_len": tokens} and len(new["ans_id"]) == 22
    old = benchmarks.arena_hard_answer({"question_id": "u"}, candidate, "mine")
    assert old["choices"] == [{"index": 0, "turns": [{"content": "4", "token_len": tokens}]}]
    assert old["answer_id"] == new["ans_id"]
    with pytest.raises(DataError, match=r"the keys are \['prompt'\]"):
        benchmarks.arena_hard_answer({"prompt": "q"}, candidate, "mine")


def test_an_answer_takes_nothing_of_the_baselines():
    question = {"dataset": "d", "output": "theirs", "generator": "theirs", "datasplit": "eval"}
    answer = benchmarks.alpaca_eval_answer(question, CANDIDATE, "mine")
    assert answer == {"dataset": "d", "output": "4", "generator": "mine"}
