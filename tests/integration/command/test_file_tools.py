"""The tools on plain files: the real commands on tiny models, and what becomes of every row."""

import json
import signal
import time

import pytest

from tests.commands import called, started
from tests.tiny import tiny_llama, tiny_reward_model

SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # heads of 32, as vLLM wants on CPU
SEPARATOR = "one\u2028two\u0085three"


def tool(name, folder, *overrides):
    return called(folder, f"rlhf.{name}", *overrides)


def write(path, rows):
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def read(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy, a judge, and prompts with everything that must be counted."""
    folder = tmp_path_factory.mktemp("tools")
    tiny_llama(folder / "policy", seed=1, **SHAPE)
    tiny_reward_model(folder / "judge", seed=2, **SHAPE)
    rows = [{"prompt": f"Say {i} in words"} for i in range(16)]
    rows += [
        {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": SEPARATOR}]}
    ]
    rows += [{"instruction": " Say 0 in words "}, {"prompt": "  "}, {"prompt": "long " * 2000}]
    write(folder / "prompts.jsonl", rows)
    return folder


GENERATE = ["model.path=policy", "input=prompts.jsonl", "generate.engine=transformers"]
GENERATE += ["generate.max_new_tokens=48", "generate.shard_size=3"]


@pytest.fixture(scope="module")
def candidates(folder):
    code, said = tool("generate", folder, *GENERATE, "output=candidates.jsonl")
    assert code == 0, said
    return folder / "candidates.jsonl", said


@pytest.fixture(scope="module")
def scored(folder, candidates):
    request = ["reward_model.path=judge", f"input={candidates[0]}", "output=scored.jsonl"]
    code, said = tool("score", folder, *request)
    assert code == 0, said
    return folder / "scored.jsonl", said


def test_candidates_are_rlhflows_rows_in_the_inputs_order(folder, candidates):
    path, said = candidates
    assert "20 rows = 17 kept + 3 dropped (duplicate 1, empty 1, prompt_too_long 1); 17 written" in said
    rows = read(path)
    assert [row["prompt"][-1]["content"] for row in rows] == [
        *(f"Say {i} in words" for i in range(16)),
        SEPARATOR,
    ]
    assert rows[-1]["prompt"][0] == {"role": "system", "content": "Be brief"}
    for row in rows:
        assert all(len(row[key]) == 8 for key in ("responses", "finish_reasons", "temperatures", "seeds"))
        assert row["temperatures"] == [1.0] * 4 + [0.7] * 4 and set(row["finish_reasons"]) <= {
            "stop",
            "length",
        }
    assert not list(folder.glob(".*.work"))


def test_scores_stand_beside_the_responses_and_the_rest_is_carried_along(folder, candidates, scored):
    from rlhf.scoring.classifier_judge import ClassifierJudge

    before, after = read(candidates[0]), read(scored[0])
    assert [{key: value for key, value in row.items() if key != "rewards"} for row in after] == before
    expected = ClassifierJudge(str(folder / "judge")).score(
        [(after[-1]["prompt"], t) for t in after[-1]["responses"]]
    )
    assert after[-1]["rewards"] == pytest.approx(expected.scores, abs=1e-5)


def test_pairs_are_what_trl_reads(folder, scored):
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    said = tool("pair", folder, f"input={scored[0]}", "output=pairs.jsonl", "pair.truncated=allow")[1]
    assert "17 rows = 17 kept + 0 dropped; 17 written" in said
    for row, pair in zip(read(scored[0]), read(folder / "pairs.jsonl"), strict=True):
        assert pair["prompt"] == row["prompt"]
        assert pair["chosen"] == [{"role": "assistant", "content": row["responses"][best(row["rewards"])]}]
        assert (pair["chosen_score"], pair["rejected_score"]) == (max(row["rewards"]), min(row["rewards"]))
        assert pair["penalised_margin"] == pair["chosen_score"] - pair["rejected_score"]
    loaded = load_dataset(
        "json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=str(folder / "hf")
    )
    assert is_conversational(loaded[0]) and len(loaded) == 17


def best(values):
    return max(range(len(values)), key=lambda i: values[i])


def test_truncated_responses_are_never_chosen_unless_allowed(tmp_path):
    row = {"prompt": "a", "responses": ["x", "y", "z"], "rewards": [3, 2, 1]}
    write(tmp_path / "in.jsonl", [row | {"finish_reasons": ["length", "stop", None]}])
    assert tool("pair", tmp_path, "input=in.jsonl", "output=out.jsonl")[0] == 0
    [pair] = read(tmp_path / "out.jsonl")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("y", "z")


def test_a_foreign_file_of_prompts_responses_and_rewards(tmp_path):
    plain = {
        "prompt": [{"role": "user", "content": "q"}],
        "responses": [SEPARATOR, "bad"],
        "rewards": [2, 1.0],
    }
    unusable = [
        plain,
        plain | {"rewards": [1.0]},
        plain | {"rewards": [True, 1]},
        plain | {"responses": ["a", None]},
        plain | {"responses": []},
        plain | {"finish_reasons": ["stop"]},
        plain | {"prompt": ""},
        plain | {"responses": ["a", "b"], "rewards": [None, 1.0]},
        plain | {"responses": ["\ud800", "b"]},
    ]
    body = json.dumps([plain, *unusable, plain | {"rewards": [1.0, 2.0]}])
    (tmp_path / "in.json").write_text(body)
    code, said = tool("pair", tmp_path, "input=in.json", "output=out.jsonl")
    assert code == 0, said
    assert "11 rows = 2 kept + 9 dropped (duplicate 1, empty 1, finish_reasons_do_not_match 1, " in said
    assert (
        "invalid_unicode 1, no_responses 1, non_finite 1, response_not_text 1, rewards_do_not_match 1, "
        in said
    )
    assert "rewards_not_numbers 1); 2 written" in said
    first, second = read(tmp_path / "out.jsonl")
    assert first["chosen"][0]["content"] == SEPARATOR == second["rejected"][0]["content"]


def test_an_existing_output_is_never_touched(tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": "a", "responses": ["x", "y"], "rewards": [2, 1]}])
    (tmp_path / "out.jsonl").write_text("precious")
    code, said = tool("pair", tmp_path, "input=in.jsonl", "output=out.jsonl")
    assert code == 2 and "exists already" in said and "rm " in said
    assert (tmp_path / "out.jsonl").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["output=out.jsonl"], "input=… is missing"),
        (["input=in.jsonl", "output=out.csv"], "this tool writes .jsonl"),
        (["input=nowhere.jsonl", "output=out.jsonl"], "no such file"),
        (
            ["input=in.jsonl", "output=out.jsonl", "pair.num_candidates=1"],
            "pair.num_candidates=1: a pair needs two",
        ),
        (["input=in.jsonl", "output=out.jsonl", "+pair.nonsense=1"], "nonsense"),
        (["input=in.jsonl", "output=out.jsonl"], "No rewards"),
    ],
)
def test_a_wrong_request_ends_with_exit_code_2_and_leaves_nothing(tmp_path, overrides, said):
    write(tmp_path / "in.jsonl", [{"prompt": "a", "responses": ["x", "y"]}])
    code, text = tool("pair", tmp_path, *overrides)
    assert code == 2 and said in text and "Traceback" not in text, text
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_begun_work_goes_on_and_a_change_of_input_is_refused(tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": "a", "responses": ["x", "y"], "rewards": [2, 1]}])
    request = ["input=in.jsonl", "output=out.jsonl"]
    code, said = tool("pair", tmp_path, *request, "pair.min_margin=5")
    assert code == 2 and "below_margin" in said
    before = (tmp_path / "in.jsonl").read_bytes()
    write(tmp_path / "in.jsonl", [{"prompt": "b", "responses": ["x", "y"], "rewards": [2, 1]}])
    code, said = tool("pair", tmp_path, *request)
    assert code == 2 and "inputs.file" in said and "output=<another file>" in said and "rm -r" in said
    (tmp_path / "in.jsonl").write_bytes(before)
    code, said = tool("pair", tmp_path, *request)
    assert code == 0 and "1 stages are finished, 1 to do" in said
    assert len(read(tmp_path / "out.jsonl")) == 1


def test_a_killed_command_ends_as_an_undisturbed_one(folder, candidates):
    request = [*GENERATE, "output=killed.jsonl"]
    # One engine is imported faster than all of them.
    process = started(folder, "rlhf.generate", *request, "compute.preload=false")
    first = folder / ".killed.jsonl.work" / ".generate.partial" / "shard_00000.parquet"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert first.exists() and not (folder / "killed.jsonl").exists()
    code, said = tool("generate", folder, *request, "generate.n=4")
    assert code == 2 and "config.n: 8 there, 4 now" in said
    code, said = tool("generate", folder, *request)
    assert code == 0 and "1 stages are finished, 1 to do" in said, said
    assert (folder / "killed.jsonl").read_bytes() == candidates[0].read_bytes()
    assert not list(folder.glob(".*.work"))


def test_a_runs_best_policy_answers_alpaca_eval_with_vllm(folder):
    (folder / "myrun").mkdir()
    (folder / "myrun" / "best").symlink_to("../policy")
    asked = [
        {"dataset": "vicuna", "instruction": f"{SEPARATOR} {i}", "output": "", "generator": "x"}
        for i in "010"
    ]
    (folder / "alpaca_eval.json").write_text(json.dumps(asked))
    request = [
        "run_dir=myrun",
        "benchmark=alpaca_eval",
        "input=alpaca_eval.json",
        "output=answers.json",
    ]
    code, said = tool("answer", folder, *request, "generate.max_new_tokens=8")
    assert code == 0 and "3 rows = 3 kept + 0 dropped; 3 written" in said, said
    answers = json.loads((folder / "answers.json").read_text())
    assert [answer["instruction"] for answer in answers] == [question["instruction"] for question in asked]
    assert {(answer["generator"], answer["dataset"]) for answer in answers} == {("myrun", "vicuna")}
    assert answers[0]["output"] == answers[2]["output"] != answers[1]["output"]
    code, said = tool("answer", folder, *request)
    assert code == 2 and "exists already" in said
