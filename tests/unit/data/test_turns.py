"""Conversations in the spellings they come in, each at the boundary of what is taken for one."""

from __future__ import annotations

import pytest

from rlhf.data import turns
from rlhf.data.rows import UnusableRow
from rlhf.data.turns import clean_turn, content_text, earlier_turns, listed, marked_turns, role_of, to_turns


def said(*contents, first="user"):
    """Messages of alternating roles."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]


def system(text, messages):
    return [{"role": "system", "content": text}, *messages]


def outcome(function, *arguments):
    """What a function gives, or the reason for which the row cannot be used."""
    try:
        return function(*arguments)
    except UnusableRow as error:
        return error.reason


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (" a ", "a"),
        (None, "empty"),
        (" ", "empty"),
        (3, "not_text"),
        ("\ud800", "invalid_unicode"),
        ([{"type": "text", "text": "a"}, "b"], "a\nb"),
        ([{"type": "text"}, {"text": "b"}], "b"),
        ([{"type": "input_text", "content": "a"}, {"type": "output_text", "value": "b"}], "a\nb"),
        ([{"type": "image", "text": "a"}], "not_text_part"),
        ([{"mood": "sad"}], "not_text_part"),
        ([3], "not_text_part"),
        ([], "empty"),
        ({"value": "a"}, "a"),
        ({"content": None, "text": ["a", "b"]}, "a\nb"),
        ({"content": {"text": "a"}}, "not_text"),
        ({}, "empty"),
    ],
)
def test_the_text_of_a_turn(content, text):
    assert outcome(content_text, content, "it") == text


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("Human", "user"),
        ("ChatGPT", "assistant"),
        (" SYSTEM_PROMPT ", "system"),
        ({"role": "bot"}, "assistant"),
        ("function_call", "tool"),
        ("toolCalls", "tool"),
        ("Bob", None),
        (3, None),
        ({"name": "bot"}, None),
    ],
)
def test_speakers(speaker, role):
    assert role_of(speaker) == role


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"from": "human", "value": "a", "mood": "sad"}, {"role": "user", "content": "a"}),
        ({"role": None, "from": "gpt", "content": None, "value": "a"}, {"role": "assistant", "content": "a"}),
        ({"content": "a"}, "not_messages"),
        ({"role": "user"}, "not_messages"),
        ("a", "not_messages"),
        ({"role": "user", "content": None}, "empty"),
        ({"role": "Bob", "content": "a"}, "unknown_role"),
        ({"role": "tool", "content": "a"}, "tool_turn"),
        ({"role": "assistant", "content": "", "tool_calls": [1]}, "tool_turn"),
        ({"role": "assistant", "content": "a", "tool_calls": [1]}, {"role": "assistant", "content": "a"}),
        ({"role": "assistant", "content": "", "tool_calls": []}, "empty"),
    ],
)
def test_one_turn(turn, message):
    assert outcome(clean_turn, turn, "it") == message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('[{"role": "user", "content": "a"}]', said("a")),
        (' [{"from": "user"}]', [{"from": "user"}]),
        ("[1, 2]", None),
        ('[{"role": "user"}, 1]', None),
        ("[]", None),
        ("[a", None),
        ('{"role": "user"}', None),
        (3, None),
    ],
)
def test_lists_of_turns_in_a_text(text, value):
    assert listed(text) == (text if value is None else value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "empty"), ([], "empty"), ("", "not_messages"), ({}, "not_messages"), (0, "not_messages")],
)
def test_what_is_no_list_of_messages(value, reason):
    assert outcome(turns.nonempty_list, value, "it") == reason


PAIRS = said("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a", said("a")),
        ("\n\nHuman: a\n\nAssistant:", said("a")),
        ([["a", "b"], ("c", "d")], PAIRS),
        ([["a", "b", "c"]], [["a", "b", "c"]]),
        ([["a"]], [["a"]]),
        ([{"question": "a", "answer": "b"}, {"input": "c", "output": "d"}], PAIRS),
        ([{"system": "s", "q": "a", "a": "b"}], system("s", said("a", "b"))),
        ([{"system": " ", "q": "a", "a": "b"}], said("a", "b")),
        ([{"question": "a"}], [{"question": "a"}]),
        ([{"type": "text", "text": "a"}], said([{"type": "text", "text": "a"}])),
        ([{"text": "a"}], said([{"text": "a"}])),
        ([{"text": "a", "mood": "sad"}], [{"text": "a", "mood": "sad"}]),
        ([{"type": "text", "role": "user"}], [{"type": "text", "role": "user"}]),
        ({"role": "user", "content": "a"}, said("a")),
        ({"messages": [{"role": "user", "content": "a"}], "system": "s"}, system("s", said("a"))),
        ({"turns": [{"role": "user", "content": "a"}], "system": ""}, said("a")),
        ({"messages": "a", "content": "b"}, said("b")),
        ({"problem": "a"}, said("a")),
        ({"mood": "sad"}, "not_messages"),
        ([], "empty"),
        (3, "not_messages"),
    ],
)
def test_turns_of_a_value(value, found):
    assert outcome(to_turns, value, "it") == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (["a", "b", "c", "d"], PAIRS),
        (["a", "b"], said("a", "b")),
        (["a"], ["a"]),
        (["a", "b", "c"], ["a", "b", "c"]),
        ({"question": "a", "answer": "b"}, said("a", "b")),
        ([["a", "b"], ["c", "d"]], PAIRS),
        ("a", said("a")),
    ],
)
def test_earlier_turns(value, found):
    assert outcome(earlier_turns, value, "it") == found


OPEN = "\n\nHuman: a\n\nAssistant:"


@pytest.mark.parametrize(
    ("text", "prompt", "whole"),
    [
        (OPEN, said("a"), said("a")),
        ("\n\nHuman: a\n\nAssistant: b", said("a", "b"), said("a", "b")),
        ("Human: a", said("a"), said("a")),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", said("a", "b", "c"), said("a", "b", "c")),
        # A user's mark of another kind: only what ends as a conversation is one.
        ("User: a\nAssistant: b", None, said("a", "b")),
        ("User: a\nAssistant:", said("a"), said("a")),
        ("User: a", None, None),
        ("User: a\nBot: b\nUser: c", None, None),
        ("### User: a\n### Assistant:", said("a"), said("a")),
        ("## Human: a\n\n## Assistant: b", said("a", "b"), said("a", "b")),
        # A system's turn before, and one that is none.
        ("System: s\nUser: a\nAssistant:", system("s", said("a")), system("s", said("a"))),
        ("User: a\nSystem: s\nAssistant:", None, None),
        ("System: s\nAssistant: b", None, None),
        (
            "Be brief.\n\nHuman: a\n\nAssistant:",
            system("Be brief.", said("a")),
            system("Be brief.", said("a")),
        ),
        ("He said:\n\nHuman: a\n\nAssistant: b", None, None),
        ("Be brief.\n\nUser: a\n\nAssistant:", None, None),
        # Turns that were split in two, where an answer is awaited.
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant:", True, True),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", None, None),
        ("\n\nAssistant: a\n\nHuman: b\n\nAssistant:", None, None),
        ("no mark", None, None),
        ("The human: he", None, None),
    ],
)
def test_marked_text(text, prompt, whole):
    for wanted, found in ((prompt, marked_turns(text)), (whole, marked_turns(text, whole=True))):
        cleaned = found and [turn | {"content": turn["content"].strip()} for turn in found]
        if wanted is True:
            assert [turn["content"] for turn in cleaned] == ["a", "b"]
        else:
            assert cleaned == wanted


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc", said("a", "b", "c")),
        ("a\n<extra_id_1>Assistant\n", said("a")),
        ("\n<extra_id_1>User\na\n<extra_id_1>Assistant\n", said("a")),
        ("a <extra_id_1>", None),
    ],
)
def test_nemos_marks(text, found):
    assert marked_turns(text) == found
