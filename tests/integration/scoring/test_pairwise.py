"""A pairwise preference model: how it reads, what it says, trained, and behind every interface of a judge."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch

from rlhf.config.schema import ScoreConfig
from rlhf.config.stage_configs import ComparisonStage, PreferenceModelStage
from rlhf.config.training import RewardModelConfig
from rlhf.data.records import prompt_id
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, sum_counts, write_shard
from rlhf.errors import ModelError
from rlhf.models.comparison import answer_ids, comparison_text, render_comparison
from rlhf.scoring.preference_judge import PairwiseJudge
from rlhf.scoring.tournament import Group, Tournament
from tests.commands import loop
from tests.integration.command.test_judging_tools import run
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import tiny_llama, tiny_reward_model, tiny_tokenizer

TALK = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "b"},
]
PUBLISHED = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
"""The context's template on the model card of RLHFlow/pair-preference-model-LLaMA3-8B."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("judge") / "judge", seed=5)


def comparisons(num):
    return [
        ([{"role": "user", "content": f"question {i}"}], "one " * (1 + i % 5), "two " * (1 + i % 7))
        for i in range(num)
    ]


def test_the_context_is_the_published_one():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = PUBLISHED
    for talk in (TALK, TALK[:1]):
        context = tokenizer.apply_chat_template(talk, tokenize=False)
        assert comparison_text(talk, "r1", "r2") == f"[CONTEXT] {context} [RESPONSE A] r1 [RESPONSE B] r2 \n"


def test_the_judge_reads_its_own_template_without_bos():
    tokenizer = tiny_tokenizer()
    ids = render_comparison(tokenizer, TALK, "r1", "r2")
    turn = [{"role": "user", "content": comparison_text(TALK, "r1", "r2")}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert tokenizer.bos_token_id not in ids
    assert ids == tokenizer(text.replace(tokenizer.bos_token, ""), add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([index]) for index in answer_ids(tokenizer)] == ["A", "B"]


def test_probability_is_the_softmax_of_two_logits_over_both_orders(model):
    from transformers import AutoModelForCausalLM

    lm, tokenizer = AutoModelForCausalLM.from_pretrained(model), tiny_tokenizer()
    shown = []
    for order in (("yes", "no no"), ("no no", "yes")):
        ids = render_comparison(tokenizer, TALK, *order)
        with torch.no_grad():
            logits = lm(torch.tensor([ids])).logits[0, -1]
        shown.append(float(logits[list(answer_ids(tokenizer))].softmax(-1)[0]))
    compared = PairwiseJudge(str(model)).compare([(TALK, "yes", "no no")])
    assert compared.probabilities == pytest.approx([(shown[0] + 1 - shown[1]) / 2], abs=1e-6)
    assert compared.num_calls == 2
    assert abs(shown[0] - (1 - shown[1])) > 1e-3  # the orders differ, or their mean would show nothing


def test_exchanged_responses_exchange_the_probability(model):
    judge, given = PairwiseJudge(str(model)), comparisons(12)
    ahead = judge.compare(given).probabilities
    swapped = judge.compare([(messages, b, a) for messages, a, b in given]).probabilities
    assert ahead == pytest.approx([1 - p for p in swapped], abs=1e-6)
    assert max(ahead) - min(ahead) > 1e-4


def test_a_probability_does_not_depend_on_its_batch(model):
    alone = PairwiseJudge(str(model), batch_tokens=1).compare(comparisons(12)).probabilities
    together = PairwiseJudge(str(model), batch_tokens=10**6).compare(comparisons(12)).probabilities
    assert together == pytest.approx(alone, abs=1e-5)


def test_long_inputs_lose_context_on_the_left_and_are_counted(model):
    judge = PairwiseJudge(str(model), max_tokens=80)
    one, other = ([{"role": "user", "content": f"{start} " + "word " * 200}] for start in ("this", "that"))
    compared = judge.compare([(one, "r1", "r2"), (other, "r1", "r2")])
    assert compared.num_truncated == 4
    assert compared.probabilities[0] == pytest.approx(compared.probabilities[1], abs=1e-6)


def test_the_head_is_fp32_when_the_body_is_not(model):
    exact = PairwiseJudge(str(model)).compare(comparisons(8)).probabilities
    judge = PairwiseJudge(str(model), dtype="bfloat16")
    assert judge._model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert judge._model.get_output_embeddings().weight.dtype == torch.float32
    rough = judge.compare(comparisons(8)).probabilities
    assert rough == pytest.approx(exact, abs=0.03)


def test_a_classifier_and_letters_of_many_tokens_are_refused(tmp_path):
    with pytest.raises(ModelError, match="kind=scalar"):
        PairwiseJudge(str(tiny_reward_model(tmp_path / "judge")))

    class Bytes:
        name_or_path = "bytes"

        def encode(self, text, add_special_tokens):
            return [1, 2]

    with pytest.raises(ModelError, match="one token each"):
        answer_ids(Bytes())


def write_candidates(folder, texts_by_prompt):
    folder.mkdir()
    rows = []
    for number, texts in enumerate(texts_by_prompt):
        messages = [{"role": "user", "content": f"question {number}"}]
        plain = {"token_ids": [1], "finish_reason": "stop", "logprob": 0.0, "seed": 0, "temperature": 1.0}
        row = {"id": prompt_id(messages), "messages": messages, "prompt_token_ids": [1]}
        rows.append(row | {"candidates": [plain | {"text": text} for text in texts]})
    write_shard(folder / shard_name(0), CANDIDATES_SCHEMA, rows)
    return folder


def score(folder, model, **inputs):
    job = make_job("score", ScoreConfig(), inputs | {"judge": model}, folder, cls=ComparisonStage)
    run_here(job)
    return [row["scores"] for row in read_all_rows(folder)], sum_counts(folder)


def test_the_score_stage_with_and_without_another_policy(tmp_path, model):
    ours, theirs = [["a", "b b", "c"], ["d", "d", "e"]], [["x", "y y"], ["e", "z"]]
    candidates = write_candidates(tmp_path / "ours", ours)
    against = write_candidates(tmp_path / "theirs", theirs)
    scores, counts = score(tmp_path / "one", model, candidates=candidates)
    assert [sum(row) for row in scores] == pytest.approx([1.5, 1.5])
    assert scores[1][0] == scores[1][1] != scores[1][2]
    assert counts["judge_calls"] == 2 * (3 + 1) and counts["responses"] == 6
    held, counts = score(tmp_path / "two", model, candidates=candidates, against=against)
    groups = [
        Group([{"role": "user", "content": f"question {i}"}], *texts)
        for i, texts in enumerate(zip(ours, theirs, strict=True))
    ]
    expected = Tournament(PairwiseJudge(str(model))).score_groups(groups).scores
    assert [value for row in held for value in row] == pytest.approx(expected, abs=1e-6)
    assert counts["judge_calls"] == 2 * (3 * 2 + 3)  # d twice is one text, e with e is a tie


def test_what_was_scored_before_is_not_asked_again(tmp_path, model):
    against = write_candidates(tmp_path / "theirs", [["x", "y y"], ["e", "z"]])
    before = write_candidates(tmp_path / "before", [["a", "b b", "c"], ["d", "d", "e"]])
    known, _ = score(tmp_path / "known", model, candidates=before, against=against)
    earlier = {"known_candidates.1": before, "known_scores.1": tmp_path / "known"}
    now = write_candidates(tmp_path / "now", [["c", "new", "a"], ["e", "d", "d"]])
    found, counts = score(tmp_path / "again", model, candidates=now, against=against, **earlier)
    plain, all_counts = score(tmp_path / "plain", model, candidates=now, against=against)
    assert [found[0][0], found[0][2], *found[1]] == [known[0][2], known[0][0], known[1][2], *known[1][:2]]
    assert [value for row in found for value in row] == pytest.approx(
        [v for row in plain for v in row], abs=1e-6
    )
    assert (counts["scored_before"], counts["judge_calls"], counts["responses"]) == (5, 2 * 2, 6)
    assert all_counts["scored_before"] == 0 and all_counts["judge_calls"] > 4
    _, counts = score(tmp_path / "same", model, candidates=before, against=against, **earlier)
    assert (counts["scored_before"], counts["judge_calls"]) == (6, 0)


def preferences(num, seed):
    rng = random.Random(seed)
    for _ in range(num):
        ask = {"role": "user", "content": f"say {rng.randrange(1000)}"}
        word = rng.choice(["red", "blue", "green"])
        answers = (f"yes {word}", f"no {word}")
        chosen, rejected = ([ask, {"role": "assistant", "content": text}] for text in answers)
        yield {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_learns_which_is_better_wherever_it_stands(tmp_path, num_ranks):
    model = tiny_llama(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preferences(400, seed=1)))
    section = RewardModelConfig(
        learning_rate=5e-3,
        batch_size=16,
        micro_batch_size=8,
        gradient_checkpointing=False,
        held_out_share=0.1,
        num_epochs=2,
        max_length=200,
    )
    inputs = {"model": model, "data": tmp_path / "data.jsonl"}
    job = make_job("reward_model", section, inputs, tmp_path / "out", cls=PreferenceModelStage)
    outcome = run_ranks(job, num_ranks)
    assert (outcome.counts["pairs"], outcome.counts["held_out"]) == (360, 40)
    assert 160 < outcome.counts["chosen_first"] < 240
    assert outcome.metrics["held_out_accuracy"] > 0.9, outcome.metrics
    judge = PairwiseJudge(str(tmp_path / "out" / "model"))
    fresh = [
        (row["chosen"][:1], row["chosen"][1]["content"], row["rejected"][1]["content"])
        for row in preferences(30, seed=2)
    ]
    found = judge.compare(fresh).probabilities
    assert sum(p > 0.5 for p in found) > 27


def test_rewardbench_with_a_pairwise_judge(tmp_path, model):
    rows = [
        {
            "id": i,
            "prompt": f"q {i}",
            "chosen": f"good {i}",
            "rejected": f"bad {i}",
            "subset": "alpacaeval-easy",
        }
        for i in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = (f"reward_model.path={model}", "reward_model.kind=pairwise", "input=rows.jsonl")
    code, said = run("rlhf.rewardbench", *judge, "output=o.json", cwd=tmp_path)
    assert code == 0, said
    found = json.loads((tmp_path / "o.json").read_text())
    asked = [([{"role": "user", "content": row["prompt"]}], row["chosen"], row["rejected"]) for row in rows]
    expected = PairwiseJudge(str(model)).compare(asked).probabilities
    assert [row["chosen"] for row in found["rows"]] == pytest.approx(expected, abs=1e-5)
    assert [row["rejected"] for row in found["rows"]] == pytest.approx([1 - p for p in expected], abs=1e-5)
    right = sum(p > 0.5 for p in expected)
    assert found["current"]["Chat"] == pytest.approx(25 * right)
    code, said = run("rlhf.rewardbench", *judge, "score.engine=vllm", "output=p.json", cwd=tmp_path)
    assert code == 2 and "score.engine=transformers only" in said


def test_the_loop_trains_a_pairwise_judge_and_holds_iterates_against_the_initial_policy(tmp_path):
    policy = tiny_llama(tmp_path / "policy", seed=1)
    asks = [{"prompt": f"Say {i} in words"} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asks))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preferences(40, seed=1)))
    judge = f"path={policy} kind=pairwise data={tmp_path}/data.jsonl batch_size=8 learning_rate=1e-3"
    rest = (
        "generate.n=4 generate.engine=transformers generate.max_new_tokens=8 "
        "pair.truncated=allow score.opponents=2"
    )
    size = (
        "prompts.num_per_iteration=12 prompts.num_held_out=6 num_iterations=1 evaluate.n=2 dpo.batch_size=4"
    )
    code, said = loop(
        tmp_path / "run",
        f"model.path={policy}",
        f"prompts.path={tmp_path / 'prompts.jsonl'}",
        *(f"reward_model.{word}" for word in judge.split()),
        *rest.split(),
        *size.split(),
    )
    assert code == 0, said
    made = {name: json.loads((tmp_path / "run" / name / "artifact.json").read_text()) for name in SCORED}
    assert made["reward_model"]["metrics"]["held_out_accuracy"] is not None
    # n = 4 with 2 opponents or more each: a ring of 3, so all 6 pairs in both orders; equal texts need no
    # call
    assert 0 < made["iteration_001/score"]["counts"]["judge_calls"] <= 12 * 6 * 2
    assert 0 < made["iteration_001/held_out/score"]["counts"]["judge_calls"] <= 6 * 2 * 2 * 2
    assert "against" in json.dumps(made["iteration_001/held_out/score"]["identity"]["inputs"])
    first, last = json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"]
    assert first["mean_score"] == pytest.approx(0.5)
    assert last["win_rate"] == pytest.approx(last["mean_score"]) != pytest.approx(0.5, abs=1e-9)
    assert 0 <= last["win_rate_low"] <= last["win_rate"] <= last["win_rate_high"] <= 1


SCORED = ("reward_model", "iteration_001/score", "iteration_001/held_out/score")
