"""Rows that are nearly of a shape: what tells shapes of comparisons, questions and conversations apart."""

from __future__ import annotations

import pytest

from rlhf.data import chosen_rejected, rated_answers, scores
from rlhf.data.comparisons import to_comparisons
from rlhf.data.conversations import to_conversation
from rlhf.data.prompts import to_messages
from rlhf.data.questions import joined, with_system
from rlhf.data.rows import Row, UnusableRow
from rlhf.data.sides import Side, side_of_marked_text
from rlhf.errors import DataError

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
S = {"role": "system", "content": "s"}


def user(text):
    return {"role": "user", "content": text}


def compared(row):
    """Each comparison as its two answers and the index of the better one, or the reason against the row."""
    try:
        found = to_comparisons(row)
    except UnusableRow as error:
        return error.reason
    except DataError as error:
        return str(error).partition(";")[0].partition(":")[0]
    return [(*(side.answer for side in each.sides), each.better) for each in found]


def questions(row):
    return [[side.context for side in each.sides] for each in to_comparisons(row)]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (
            {"prompt": "q", "completions": [{"text": "a", "score": 2}, {"text": "b", "score": 1}]},
            [("a", "b", 0)],
        ),
        (
            {"prompt": "q", "completions": [{"text": "a", "score": 1}, {"text": "b", "score": 1}]},
            [("a", "b", None)],
        ),
        (
            {"prompt": "q", "completions": [{"text": "a", "rank": 2}, {"text": "b", "rank": 1}]},
            [("a", "b", 1)],
        ),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]}, [("a", "b", 1)]),
        ({"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]}, [("a", "b", 0)]),
        (
            {"prompt": "q", "answers": ["a", "b", "c"], "scores": [1, 3, 2]},
            [("a", "b", 1), ("a", "c", 1), ("b", "c", 0)],
        ),
        ({"prompt": "q", "completions": ["a"], "scores": [1]}, "not_scored"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1]}, "not_scored"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, "2"]}, "not_scored"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, None]}, "not_scored"),
        ({"prompt": "q", "completions": [{"text": "a"}, {"text": "b", "score": 1}]}, "not_scored"),
        (
            {"prompt": "q", "completions": [{"text": "a", "score": 0}, {"text": "b", "score": 0.5}]},
            [("a", "b", 1)],
        ),
        ({"prompt": "q", "completions": []}, "not_scored"),
        ({"prompt": "q", "completions": None}, "not_scored"),
        ({"prompt": "q", "responses": None}, "No preference found"),
        ({"prompt": "q", "completions": "text"}, "No preference found"),
    ],
)
def test_lists_of_answers(row, found):
    assert compared(row) == found


def test_an_answer_may_have_a_system_turn_of_its_own():
    answers = [{"text": "a", "score": 2, "custom_system_prompt": "s"}, {"text": "b", "score": 1}]
    assert questions({"prompt": "q", "completions": answers}) == [[[S, Q], [Q]]]


def test_a_tree_of_replies_is_a_list_of_answers():
    replies = [A | {"rank": 1, "replies": [Q]}, B | {"rank": 0}]
    row = {"prompt": Q | {"replies": replies}}
    assert compared(row) == [("a", "b", 1)] and questions(row) == [[[Q], [Q]]]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prediction 1": "a", "prediction 2": "b", "preference": [1]}, [("a", "b", 0)]),
        ({"prediction 1": "a", "prediction 2": "b", "preference": [2]}, [("a", "b", 1)]),
        ({"prediction 1": "a", "prediction 2": "b", "preference": [0]}, [("a", "b", None)]),
        (
            {"prediction 10": "c", "prediction 2": "b", "prediction 1": "a", "preference": [1, 2, 0]},
            [("a", "b", 0), ("a", "c", 1), ("b", "c", None)],
        ),
        ({"prediction 1": "a", "prediction 2": "b", "preference": [3]}, "unknown_label"),
        ({"prediction 1": "a", "prediction 2": "b", "preference": [1, 1]}, "unknown_label"),
        ({"prediction 1": "a", "preference": [1]}, "No preference found"),
    ],
)
def test_labels_of_every_two(row, found):
    assert compared({"question": "q"} | row) == found


@pytest.mark.parametrize(("digits", "is_one"), [(8, True), (9, False)])
def test_numbers_of_predictions_have_up_to_eight_digits(digits, is_one):
    row = Row({"prediction 1": "a", f"prediction {'1' * digits}": "b", "preference": [1]})
    assert rated_answers.has_predictions(row) == is_one


TEXTS = ["Human: q\n\nAssistant: a", "Human: q\n\nAssistant: b"]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": TEXTS, "score": [0.1, 0.9]}, [("a", "b", 1)]),
        ({"text": TEXTS, "score": [0.1]}, "not_scored"),
        ({"text": TEXTS[0], "score": 1}, "No preference found"),
        ({"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1}, [("a", "b", 1)]),
        ({"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}, [("a", "b", 0)]),
        ({"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 2}, "unknown_label"),
        ({"info": {"post": "p"}, "summaries": [{"text": "a"}], "choice": 0}, "unknown_label"),
        ({"instruction": "q", "output": ["a", "b"]}, [("a", "b", 0)]),
        ({"instruction": "q", "output": ["a", "b", "c"]}, "No preference found"),
        ({"instruction": "q", "output": ["a", 3]}, "No preference found"),
        ({"instruction": "", "output": ["a", "b"]}, "No preference found"),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 2}, [("a", "b", 1)]),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "score_1": 2, "score_2": 1}, [("a", "b", 0)]),
        (
            {"instruction": "q", "output_1": "a", "output_2": "b", "score_1": 1, "score_2": 1},
            [("a", "b", None)],
        ),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "score_1": 1}, "No preference found"),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": "x"}, "unknown_label"),
        ({"instruction": "q", "output_1": None, "output_2": None, "preference": 1}, "No preference found"),
        ({"messages": [Q, A], "rejected_response": "b"}, [("a", "b", 0)]),
        ({"messages": [Q], "rejected_response": "b"}, "No preference found"),
        ({"prompt": "q", "chosen": "a"}, "no_rejected"),
        ({"prompt": "q", "chosen": "a", "reject": "b"}, [("a", "b", 0)]),
        ({"chosen": "a"}, "No preference found"),
        (
            {"prompt": "q", "response": "a", "score": 3},
            "Rows of one answer with ratings (such as HelpSteer 2's) are no pairs",
        ),
        (
            {"prompt": "q", "response": "a", "label": True},
            "Rows of one answer with a label (KTO) are no pairs",
        ),
        ({"prompt": "q", "response": "a"}, "No preference found"),
    ],
)
def test_shapes_with_a_label(row, found):
    found_here = compared(row)
    assert found_here == found or (isinstance(found_here, str) and found_here == found.partition(";")[0])


@pytest.mark.parametrize(
    ("label", "first", "second", "contradicted"),
    [(1, 1, 2, True), (1, 2, 1, False), (1, 1, 1, False), (1.5, 1, 2, False)],
)
def test_scores_that_say_otherwise_than_the_label(label, first, second, contradicted):
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": label}
    (found,) = to_comparisons(row | {"score_1": first, "score_2": second})
    assert found.contradicted == contradicted


@pytest.mark.parametrize(
    ("row", "contradicted"),
    [
        ({}, False),
        ({"score_chosen": 1, "score_rejected": 2}, True),
        ({"score_chosen": 2, "score_rejected": 1}, False),
        ({"chosen_rating": 1, "rejected_rating": 1}, False),
        ({"metadata": {"chosen_score": 1, "rejected_score": 2}}, True),
        ({"margin": -0.5}, True),
        ({"margin": 0}, False),
        ({"margin": 0.5}, False),
    ],
)
def test_scores_that_say_otherwise_than_the_columns(row, contradicted):
    (found,) = to_comparisons({"prompt": "q", "chosen": "a", "rejected": "b"} | row)
    assert found.contradicted == contradicted


def test_our_own_pairs_are_ordered_by_the_penalised_score():
    row = {"chosen_score": 1, "rejected_score": 2, "chosen_penalised": 0}
    assert scores.chosen_and_rejected_score(Row(row)) is None
    del row["chosen_penalised"]
    assert scores.chosen_and_rejected_score(Row(row)) == (1, 2)


def test_answers_of_the_arena_are_lists_that_belong_together():
    row = {
        "prompt": '["q", "p"]',
        "response_a": '["a", "b"]',
        "response_b": '["c", null]',
        "winner_model_a": 1,
        "winner_model_b": 0,
    }
    (found,) = to_comparisons(row)
    assert [side.answer for side in found.sides] == ["b", ""]
    assert found.sides[1].context == [Q, {"role": "assistant", "content": "c"}, user("p")]
    (other,) = to_comparisons(row | {"response_a": '["a"]', "prompt": '["q"]'})
    assert [side.answer for side in other.sides] == ['["a"]', '["c", null]']


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\n\nHuman: q\n\nAssistant: a", Side([Q], "a")),
        ("He said:\n\nHuman: q\n\nAssistant: a", "not_turns"),
        ("Human: q", "ends_on_user"),
        ("User: q\nBot: a", Side([Q], "a")),
        ("q", "not_turns"),
        (3, "not_turns"),
    ],
)
def test_a_side_of_marked_text(text, found):
    try:
        side = side_of_marked_text(text, "it")
        cleaned = Side(side.context, side.answer.strip())
    except UnusableRow as error:
        cleaned = error.reason
    assert cleaned == found


@pytest.mark.parametrize(
    ("chosen", "rejected", "asked", "answers"),
    [
        ([Q, A], [Q, B], [Q], ("a", "b")),
        ([A], [B], [Q], ("a", "b")),
        ({"role": "assistant", "content": "a"}, "b", [Q], ("a", "b")),
        ({"messages": [Q, A]}, {"response": "b"}, [Q], ("a", "b")),
        ([S, Q, A], [S, Q, B], [S, Q], ("a", "b")),
        ("Human: q\n\nAssistant: a", "Human: q\n\nAssistant: b", [Q], ("a", "b")),
        ("User: x\nBot: a", "b", [Q], ("User: x\nBot: a", "b")),
    ],
)
def test_answers_may_repeat_the_question(chosen, rejected, asked, answers):
    (found,) = to_comparisons({"prompt": "q", "chosen": chosen, "rejected": rejected})
    assert found.sides[0].context == asked and tuple(side.answer for side in found.sides) == answers


@pytest.mark.parametrize(
    ("asked", "spoken", "context"),
    [
        ([Q, A, user("p")], [user("more of p")], [Q, A, user("more of p")]),
        ([Q], [user("more of q")], [user("more of q")]),
        ([Q, A, user("p")], [user("p")], [Q, A, user("p")]),
        ([Q, A, user("more of p")], [S, user("p")], [S, Q, A, user("more of p")]),
        ([S], [Q], [S, Q]),
    ],
)
def test_a_prompt_may_be_a_part_of_the_answers_own_question(asked, spoken, context):
    (found,) = to_comparisons({"prompt": asked, "chosen": [*spoken, A], "rejected": [*spoken, B]})
    assert [side.context for side in found.sides] == [context, context]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": [user("other"), A], "rejected": "b"}, "prompt_differs"),
        ({"chosen": [Q], "rejected": "b"}, "ends_on_user"),
        ({"chosen": {"mood": 1}, "rejected": "b"}, "not_turns"),
    ],
)
def test_answers_to_another_question(row, reason):
    assert compared({"prompt": "q"} | row) == reason


def test_columns_are_named_in_pairs():
    assert chosen_rejected.chosen_names(Row({"chosen": None, "rejected": None})) is None
    assert chosen_rejected.chosen_names(Row({"chosen": "a", "rejected": None})) == ("chosen", "rejected")
    assert chosen_rejected.chosen_names(Row({"chosen": "a", "loser_list": "b"})) is None
    assert chosen_rejected.chosen_names(Row({"x": 1}, {"chosen": ["x"]})) == ("chosen", "rejected")


def asked(row):
    try:
        return to_messages(row)
    except UnusableRow as error:
        return error.reason
    except DataError as error:
        return str(error).partition(":")[0]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "q"}, [Q]),
        ({"prompt": "q", "system": "s"}, [S, Q]),
        ({"prompt": "q", "system": "s", "sys": "s"}, [S, Q]),
        ({"prompt": "q", "system": "s", "sys": "t"}, "two_systems"),
        ({"messages": [S, Q], "system": "s"}, [S, Q]),
        ({"messages": [S, Q], "system": "t"}, "two_systems"),
        ({"messages": [S, Q], "system": ""}, [S, Q]),
        ({"messages": [Q, A]}, [Q]),
        ({"messages": [Q, A, user("p")]}, [Q, A, user("p")]),
        ({"messages": [A]}, "empty"),
        ({"messages": [], "prompt": "q"}, [Q]),
        ({"messages": []}, "empty"),
        ({"mood": "sad"}, "No prompt found"),
        ({"prompt": [Q, A]}, "not_user_last"),
        ({"instruction": "Add", "input": [1, 2]}, [user("Add\n\n[1, 2]")]),
        ({"instruction": "Add", "input": "add"}, [user("Add\n\nadd")]),
        ({"instruction": "Add", "input": ""}, [user("Add")]),
        ({"question": "q", "instruction": "Add"}, [user("Add\n\nq")]),
        ({"question": "q", "context": "c"}, [user("q\n\nc")]),
        ({"question": "q", "passages": "c"}, [user("c\n\nq")]),
        ({"question": "q", "context": "q"}, [Q]),
        ({"question": "q", "choices": ["x", "y"]}, [user("q\n\nA. x\nB. y")]),
        ({"prompt": "x or y?", "choices": ["x", "y"]}, [user("x or y?")]),
        ({"question": "x or y?", "choices": ["x", "y"]}, [user("x or y?\n\nA. x\nB. y")]),
        ({"prompt": "q", "history": [["a", "b"]]}, [user("a"), B, Q]),
        ({"prompt": "q", "context": [Q, A]}, [Q, A, Q]),
        ({"prompt": "q", "history": "told"}, [Q]),
        ({"context": [Q]}, [Q]),
        ({"context": "c"}, "No prompt found"),
        ({"turns": ["q"]}, [Q]),
        ({"turns": ["q", "p"]}, "user_turns_only"),
        ({"turns": [{"content": "q"}]}, [Q]),
        ({"data": ["q", "a"]}, [Q]),
        ({"data": ["q"]}, [Q]),
        ({"data": ["q", 3]}, "No prompt found"),
        ({"text": "Human: q\n\nAssistant: a"}, [Q]),
        ({"text": "q", "role": "prompter"}, [Q]),
        ({"text": "q", "role": "prompter", "parent_id": "x"}, "part_of_a_tree"),
        ({"text": "q"}, "No prompt found"),
        ({"input": 3}, [user("3")]),
        ({"question": 3}, "not_text"),
        ({"messages": "q"}, "not_messages"),
        ({"question": {"stem": "q", "choices": ["x"]}}, [user("q\n\nA. x")]),
        ({"question": {"mood": "sad"}}, "not_messages"),
        ({"instruction": "q", "instances": [{"input": "i", "output": "o"}]}, [user("q\n\ni")]),
        ({"instruction": "q", "instances": [{"input": "", "output": "o"}]}, [Q]),
        ({"info": {"post": "p"}}, [user("POST: p\nTL;DR:")]),
    ],
)
def test_questions(row, messages):
    assert asked(row) == messages


@pytest.mark.parametrize(
    ("earlier", "later", "both"),
    [
        ([], [Q], [Q]),
        ([Q, A], [user("p")], [Q, A, user("p")]),
        ([Q, A], [Q, A, user("p")], [Q, A, user("p")]),
        ([Q, A], [A, user("p")], [Q, A, user("p")]),
        ([S, Q], [Q, A], [S, Q, A]),
        ([S, Q], [S, Q, A], [S, Q, A]),
        ([Q], [S, Q, A], [S, Q, A]),
        ([S], [Q], [S, Q]),
        ([Q, A], [user("p"), Q, A], [user("p"), Q, A]),
    ],
)
def test_parts_of_a_conversation_are_joined_where_they_overlap(earlier, later, both):
    assert joined(earlier, later) == both


def test_one_system_turn():
    assert (
        with_system(None, [Q]) == [Q] and with_system("s", []) == [S] and with_system("s", [S, Q]) == [S, Q]
    )
    with pytest.raises(UnusableRow):
        with_system("t", [S, Q])
    with pytest.raises(UnusableRow):
        joined([S, Q], [{"role": "system", "content": "t"}, A])


def conversed(row):
    try:
        return to_conversation(row)
    except UnusableRow as error:
        return error.reason
    except DataError as error:
        return str(error).partition(":")[0]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [Q, A]}, [Q, A]),
        ({"messages": [Q]}, [Q]),
        ({"messages": [Q], "response": "a"}, [Q, A]),
        ({"prompt": "q", "response": "a"}, [Q, A]),
        ({"prompt": "q", "completion": [A]}, [Q, A]),
        ({"prompt": "q", "completion": [Q, A]}, [Q, A]),
        ({"prompt": "q", "completion": A}, [Q, A]),
        ({"prompt": "q", "response": ["a"]}, [Q, A]),
        ({"prompt": "q", "response": ["a", "b"]}, "several_answers"),
        ({"prompt": "q", "response": None}, "empty"),
        ({"prompt": "q", "response": None, "completion": "a"}, [Q, A]),
        ({"prompt": "q", "target": "a"}, [Q, A]),
        ({"prompt": "q"}, "No conversation found"),
        ({"instruction": "q", "output": "a", "prompt": "finished"}, [Q, A]),
        ({"instruction": "q", "instances": [{"input": "", "output": "a"}]}, [Q, A]),
        ({"mood": "sad"}, "No conversation found"),
        ({"prompt": Q | {"replies": [B | {"rank": 1}, A | {"rank": 0}]}}, [Q, A]),
        ({"prompt": Q | {"replies": [B, A | {"rank": 5}]}}, [Q, A]),
        ({"prompt": Q | {"replies": [A | {"replies": [Q | {"replies": []}]}]}}, [Q, A]),
        ({"prompt": Q | {"replies": [A | {"replies": [Q | {"replies": [B]}]}]}}, [Q, A, Q, B]),
        ({"prompt": Q | {"replies": []}}, "empty"),
        ({"prompt": Q | {"replies": [3]}}, "empty"),
    ],
)
def test_conversations(row, messages):
    assert conversed(row) == messages
