"""Questions and answers in the benchmarks' own formats."""

import json
from collections import Counter

import pytest

from rlhf.answer import choose_model
from rlhf.config.tools import AnswerTool
from rlhf.data.benchmarks import alpaca_eval_answer, arena_hard_answer, read_questions
from rlhf.data.records import Candidate
from rlhf.errors import ConfigError, DataError

CANDIDATE = vars(Candidate([5, 6, 9], "four\u2028", "stop", -1.0, 0, 0.0))
ALPACA = {
    "dataset": "helpful_base",
    "instruction": " 2+2? ",
    "output": "theirs",
    "generator": "text_davinci_003",
}
V01 = {"question_id": "q1", "category": "arena-hard-v0.1", "turns": [{"content": "2+2?"}]}
# As lmarena/arena-hard-auto has v0.1 since 900183d (April 2025).
V01_NOW = {"uid": "u1", "category": "arena-hard-v0.1", "cluster": "Sums", "prompt": "2+2?"}
V20 = {"uid": "u1", "category": "hard_prompt", "subcategory": "math", "prompt": "2+2?"}


@pytest.mark.parametrize("question", [ALPACA, V01, V01_NOW, V20])
def test_every_question_is_read_twice_if_it_stands_there_twice(tmp_path, question):
    (tmp_path / "q.json").write_text(json.dumps([question, question]))
    counts = Counter()
    rows = read_questions(tmp_path / "q.json", counts)
    assert [row["messages"] for row in rows] == [[{"role": "user", "content": "2+2?"}]] * 2
    assert json.loads(rows[0]["extra"]) == question and counts == {"rows": 2}


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"turns": ["one", "two"]}, "MT-Bench"),
        ({"text": "2+2?"}, "No question found"),
        ({"instruction": " "}, "row 1"),
    ],
)
def test_what_is_no_question_is_an_error(tmp_path, question, said):
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    with pytest.raises(DataError, match=said):
        read_questions(tmp_path / "q.jsonl", Counter())


def test_an_alpaca_eval_answer():
    assert alpaca_eval_answer(ALPACA, CANDIDATE, "mine") == {
        "dataset": "helpful_base",
        "instruction": " 2+2? ",
        "output": "four\u2028",
        "generator": "mine",
    }


def test_an_arena_hard_answer_of_the_first_form():
    made = arena_hard_answer(V01, CANDIDATE, "mine")
    assert set(made) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert made["choices"] == [{"index": 0, "turns": [{"content": "four\u2028", "token_len": 2}]}]
    assert (made["question_id"], made["model_id"], len(made["answer_id"])) == ("q1", "mine", 22)


@pytest.mark.parametrize("question", [V01_NOW, V20])
def test_an_arena_hard_answer_of_the_present_form(question):
    made = arena_hard_answer(question, CANDIDATE, "mine")
    assert set(made) == {"uid", "ans_id", "model", "messages", "tstamp", "metadata"}
    assert made["messages"][-1] == {"role": "assistant", "content": {"answer": "four\u2028"}}
    assert made["metadata"] == {"token_len": 2}


def test_the_model_is_a_run_or_a_folder_and_not_both(tmp_path):
    with pytest.raises(ConfigError, match="give one of the two"):
        choose_model(AnswerTool())
    with pytest.raises(ConfigError, match="no best policy there"):
        choose_model(AnswerTool(run_dir=str(tmp_path)))
    (tmp_path / "model").mkdir()
    (tmp_path / "best").symlink_to("model")
    tool = AnswerTool(run_dir=str(tmp_path))
    assert choose_model(tool) == tmp_path.name and tool.model.path == str(tmp_path / "model")
    with pytest.raises(ConfigError, match="give one of the two"):
        choose_model(tool)
    tool.run_dir = None
    assert choose_model(tool) == "model"
