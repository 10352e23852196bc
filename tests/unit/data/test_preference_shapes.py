"""Preferences as their owners write them: question, better and worse answer, or why there is no pair."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.comparisons import to_comparisons
from rlhf.data.preferences import Preference, read_preferences, to_preference
from rlhf.data.records import dropped
from rlhf.data.rows import UnusableRow
from rlhf.errors import DataError


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def pairs_of(row: dict[str, Any]) -> list[Preference]:
    return [to_preference(comparison) for comparison in to_comparisons(row)]


HUMAN = {"from": "human", "value": "q"}
S = [system("S"), user("q")]
NAMED: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    # name, a row whose better answer is "a" and the worse "b", the question (by default q of the user)
    ("LLaMA-Factory", {"instruction": "q", "input": "i", "chosen": "a", "rejected": "b"}, [user("q\n\ni")]),
    (
        "LLaMA-Factory with system and history",
        {
            "instruction": "q",
            "input": "",
            "system": "S",
            "history": [["x", "y"]],
            "chosen": "a",
            "rejected": "b",
        },
        [system("S"), user("x"), answer("y"), user("q")],
    ),
    ("LLaMA-Factory of old", {"instruction": "q", "input": "", "output": ["a", "b"]}, []),
    (
        "LLaMA-Factory, ShareGPT",
        {
            "system": "S",
            "conversations": [HUMAN],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        S,
    ),
    ("orca", {"system": "S", "question": "q", "chosen": "a", "rejected": "b"}, S),
    (
        "distilabel",
        {"system": "S", "input": "q", "chosen": "a", "rejected": "b", "status": "swapped", "rating": [1, 2]},
        S,
    ),
    (
        "axolotl, argilla",
        {"system": "S", "instruction": "q", "chosen_response": "a", "rejected_response": "b"},
        S,
    ),
    ("axolotl, icr", {"system": "S", "input": "q", "chosen": "a", "rejected": "b"}, S),
    ("axolotl, chat_template", {"messages": [user("q")], "chosen": answer("a"), "rejected": answer("b")}, []),
    ("argilla", {"system": "S", "chosen": [user("q"), answer("a")], "rejected": [user("q"), answer("b")]}, S),
    (
        "UltraFeedback binarized",
        {
            "prompt": "q",
            "messages": [user("q"), answer("a")],
            "chosen": [user("q"), answer("a")],
            "rejected": [user("q"), answer("b")],
        },
        [],
    ),
    (
        "rm-static",
        {"prompt": "\n\nHuman: q\n\nAssistant:", "response": " a", "chosen": " a", "rejected": " b"},
        [],
    ),
    (
        "HH with a prompt",
        {"prompt": "q", "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        [],
    ),
    (
        "content parts",
        {
            "prompt": [{"role": "user", "content": parts("q")}],
            "chosen": [{"role": "assistant", "content": parts("a")}],
            "rejected": [{"role": "assistant", "content": parts("b")}],
        },
        [],
    ),
    ("content parts as answers", {"prompt": "q", "chosen": parts("a"), "rejected": parts("b")}, []),
    (
        "messages in CSV",
        {"chosen": json.dumps([user("q"), answer("a")]), "rejected": json.dumps([user("q"), answer("b")])},
        [],
    ),
    (
        "LMFlow",
        {
            "chosen": {"messages": [user("q"), answer("a")]},
            "rejected": {"messages": [user("q"), answer("b")]},
        },
        [],
    ),
    ("RMB", {"conversation_input": [user("q")], "chosen": {"answer": "a"}, "reject": {"answer": "b"}}, []),
    (
        "RMB best of n",
        {"conversation_input": [user("q")], "bon_best": {"answer": "a"}, "loser_list": [{"answer": "b"}]},
        [],
    ),
    ("stack-exchange", {"question": "q", "response_j": "a", "response_k": "b"}, []),
    ("ms-swift", {"messages": [system("S"), user("q"), answer("a")], "rejected_response": "b"}, S),
    (
        "model first",
        {"prompt": "q", "model_a_response": "b", "model_b_response": "a", "winner": "model_b"},
        [],
    ),
    ("SPIN", {"real": [user("q"), answer("a")], "generated": [user("q"), answer("b")]}, []),
    ("UltraInteract", {"trajectory": [{"from": "user", "value": "q"}], "chosen": "a", "rejected": "b"}, []),
    (
        "AlpacaFarm",
        {"instruction": "q", "input": "i", "output_1": "b", "output_2": "a", "preference": 2},
        [user("q\n\ni")],
    ),
    ("AlpacaEval 2", {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.0000023}, []),
    (
        "AlpacaEval 2, the other",
        {"instruction": "q", "output_1": "b", "output_2": "a", "preference": 1.71},
        [],
    ),
    ("LLMBar", {"input": "q", "output_1": "b", "output_2": "a", "label": 2.0}, []),
    ("LLMBar in CSV", {"input": "q", "output_1": "b", "output_2": "a", "label": "2"}, []),
    (
        "PKU-SafeRLHF",
        {
            "prompt": "q",
            "response_0": "b",
            "response_1": "a",
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        [],
    ),
    (
        "SHP",
        {"history": "q", "human_ref_A": "b", "human_ref_B": "a", "labels": 0, "score_A": 1, "score_B": 5},
        [],
    ),
    ("SHP, A", {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}, []),
    (
        "Chatbot Arena",
        {
            "conversation_a": [user("q"), answer("b")],
            "conversation_b": [user("q"), answer("a")],
            "winner": "model_b",
        },
        [],
    ),
    (
        "arena 140k",
        {
            "conversation_a": [
                {"role": "user", "content": parts("q")},
                {"role": "assistant", "content": parts("a")},
            ],
            "conversation_b": [
                {"role": "user", "content": parts("q")},
                {"role": "assistant", "content": parts("b")},
            ],
            "winner": "model_a",
        },
        [],
    ),
    (
        "arena 55k",
        {
            "prompt": '["q"]',
            "response_a": '["b"]',
            "response_b": '["a"]',
            "winner_model_a": "0",
            "winner_model_b": "1",
            "winner_tie": "0",
        },
        [],
    ),
    (
        "arena lists",
        {"prompt": ["q"], "response_a": ["a"], "response_b": ["b"], "winner_model_a": 1, "winner_model_b": 0},
        [],
    ),
    (
        "model's name",
        {"prompt": "q", "answer_a": "b", "answer_b": "a", "model_a": "x", "model_b": "y", "winner": "y"},
        [],
    ),
    ("HelpSteer 2", {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -2}, []),
    (
        "HelpSteer 3",
        {"context": [user("q")], "response1": "b", "response2": "a", "overall_preference": 3},
        [],
    ),
    ("JudgeBench", {"question": "q", "response_A": "b", "response_B": "a", "label": "B>A"}, []),
    ("JudgeBench, less", {"question": "q", "response_A": "b", "response_B": "a", "label": "A<B"}, []),
    ("a verdict", {"question": "q", "response_A": "a", "response_B": "b", "verdict": "[[A]]"}, []),
    (
        "WebGPT",
        {"question": {"full_text": "q"}, "answer_0": "b", "answer_1": "a", "score_0": -0.5, "score_1": 0.5},
        [],
    ),
    (
        "Nectar",
        {
            "prompt": "\n\nHuman: q\n\nAssistant: ",
            "answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}],
        },
        [],
    ),
    (
        "UltraFeedback",
        {
            "instruction": "q",
            "completions": [{"response": "b", "overall_score": 1}, {"response": "a", "overall_score": 2}],
        },
        [],
    ),
    (
        "its system",
        {
            "instruction": "q",
            "completions": [
                {"response": "b", "overall_score": 1, "custom_system_prompt": "S"},
                {"response": "a", "overall_score": 2, "custom_system_prompt": "S"},
            ],
        },
        S,
    ),
    ("scored responses", {"prompt": "q", "responses": ["b", "a"], "rewards": [-1.5, 2]}, []),
    ("rated generations", {"instruction": "q", "generations": ["b", "a"], "ratings": [1, 5]}, []),
    (
        "OASST",
        {
            "prompt": {
                "text": "q",
                "role": "prompter",
                "replies": [
                    {"text": "a", "role": "assistant", "rank": 0},
                    {"text": "b", "role": "assistant", "rank": 1},
                ],
            }
        },
        [],
    ),
    (
        "summaries",
        {"info": {"article": "q"}, "summaries": [{"text": "b"}, {"text": "a"}], "choice": 1},
        [user("Article:\n\nq\n\nTL;DR:")],
    ),
]


@pytest.mark.parametrize(("name", "row", "asked"), NAMED, ids=[name for name, _, _ in NAMED])
def test_shapes_of_others(name: str, row: dict[str, Any], asked: list[dict[str, Any]]) -> None:
    assert pairs_of(row) == [(asked or [user("q")], "a", "b")]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        (
            {
                "prompt": [user("My name is Ann.")],
                "chosen": [answer("Hello."), user("My name?"), answer("a")],
                "rejected": [answer("Hello."), user("My name?"), answer("b")],
            },
            [user("My name is Ann."), answer("Hello."), user("My name?")],
        ),
        (
            {
                "prompt": [system("S"), user("q")],
                "chosen": [user("q"), answer("a")],
                "rejected": [user("q"), answer("b")],
            },
            S,
        ),
        (
            {
                "prompt": [user("x"), answer("y")],
                "chosen": [user("q"), answer("a")],
                "rejected": [user("q"), answer("b")],
            },
            [user("x"), answer("y"), user("q")],
        ),
        (
            {
                "prompt": [user("x"), answer("y"), user("q")],
                "chosen": [answer("y"), user("q"), answer("a")],
                "rejected": [user("q"), answer("b")],
            },
            [user("x"), answer("y"), user("q")],
        ),
        (
            {
                "prompt": [system("S")],
                "chosen": [user("q"), answer("a")],
                "rejected": [user("q"), answer("b")],
            },
            S,
        ),
        (
            {
                "prompt": "q",
                "chosen": [system("S"), user("q"), answer("a")],
                "rejected": [system("S"), user("q"), answer("b")],
            },
            S,
        ),
        (
            {
                "instruction": "q",
                "context": "c",
                "chosen": [user("q"), answer("a")],
                "rejected": [user("q"), answer("b")],
            },
            [user("q\n\nc")],
        ),
    ],
)
def test_a_prompt_and_completions_of_several_turns(row: dict[str, Any], asked: list[dict[str, Any]]) -> None:
    assert pairs_of(row) == [(asked, "a", "b")]


A_AND_B = {"prompt": "q", "response_a": "a", "response_b": "b"}
ONE_AND_TWO = {"prompt": "q", "response_1": "a", "response_2": "b"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (A_AND_B | {"winner": "tie"}, "tie"),
        (A_AND_B | {"winner": "tie (bothbad)"}, "tie"),
        (A_AND_B | {"winner": "both_bad"}, "tie"),
        (A_AND_B | {"label": "A=B"}, "tie"),
        (A_AND_B | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, "tie"),
        (A_AND_B | {"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0}, "unknown_label"),
        (A_AND_B | {"winner": "model_c"}, "unknown_label"),
        (A_AND_B | {"winner": None}, "unknown_label"),
        (A_AND_B | {"label": 1}, "unknown_label"),
        (ONE_AND_TWO | {"preference_strength": 0}, "tie"),
        (ONE_AND_TWO | {"preference_strength": 10**400}, "unknown_label"),
        (ONE_AND_TWO | {"label": True}, "unknown_label"),
        (ONE_AND_TWO | {"label": [1]}, "unknown_label"),
        (ONE_AND_TWO | {"preference": 0.5}, "unknown_label"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "status": "tie"}, "tie"),
        ({"prompt": "q", "chosen": "a"}, "no_rejected"),
        ({"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "a"}}, "no_rejected"),
        ({"instruction": "q", "completions": None}, "not_scored"),
        ({"prompt": "q", "answers": [{"answer": "a"}, {"answer": "b"}]}, "not_scored"),
        ({"system": "T", "prompt": [system("S"), user("q")], "chosen": "a", "rejected": "b"}, "two_systems"),
        (
            {"prompt": "p", "chosen": [user("q"), answer("a")], "rejected": [user("q"), answer("b")]},
            "prompt_differs",
        ),
        (
            {
                "instruction": "q",
                "completions": [
                    {"response": "a", "overall_score": 7.5, "custom_system_prompt": "X"},
                    {"response": "b", "overall_score": 5.0, "custom_system_prompt": "Y"},
                ],
            },
            "context_differs",
        ),
    ],
)
def test_rows_that_are_no_pair(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow) as caught:
        pairs_of(row)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "completion": "a", "label": True}, r"\(KTO\).*chosen and rejected.*sft\.data"),
        ({"messages": [user("q"), answer("a")], "kto_tag": False}, r"\(KTO\)"),
        (
            {"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 4},
            r"HelpSteer 2.*preference_strength",
        ),
    ],
)
def test_rows_of_one_answer_are_refused_by_name(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        to_comparisons(row)


CHOSEN = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "contradicting"),
    [
        (CHOSEN | {"score_chosen": 2.0, "score_rejected": 8.0}, 1),
        (CHOSEN | {"score_chosen": 8.0, "score_rejected": 2.0}, 0),
        (CHOSEN | {"metadata": {"score_chosen": 2, "score_rejected": 8}}, 1),
        (CHOSEN | {"chosen-rating": 1, "rejected-rating": 5}, 1),
        (
            CHOSEN
            | {"chosen_score": 1, "rejected_score": 5, "chosen_penalised": 0, "rejected_penalised": -9},
            0,
        ),
        (CHOSEN | {"margin": -0.5}, 1),
        (CHOSEN | {"penalised_margin": -0.5}, 1),
        (CHOSEN | {"penalised_margin": 0.5}, 0),
        (CHOSEN | {"response_a": "b", "response_b": "a", "winner": "model_a"}, 1),
        (CHOSEN | {"response_a": "a", "response_b": "b", "winner": "model_a"}, 0),
        (CHOSEN | {"response_a": "a", "response_b": "b", "winner": "?"}, 0),
        (CHOSEN | {"chosen_score": None, "rejected_score": "x"}, 0),
        (A_AND_B | {"winner": "a", "score_a": 1, "score_b": 5}, 1),
    ],
)
def test_scores_that_contradict_are_counted_and_the_pair_kept(
    tmp_path: Path, row: dict[str, Any], contradicting: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    counts = Counter[str]()
    assert list(read_preferences(path, counts)) == [([user("q")], "a", "b")]
    assert counts["contradicting_scores"] == contradicting
    assert dropped(counts) == {}
    assert counts["comparisons"] == counts["pairs"] == 1
