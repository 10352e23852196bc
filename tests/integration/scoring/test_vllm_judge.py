"""vLLM as the second scoring engine: the same scores as the first."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from rlhf.config.choices import Engine
from rlhf.config.schema import ScoreConfig
from rlhf.config.stage_configs import ScoreStage
from rlhf.config.training import RewardModelConfig
from rlhf.data.records import Candidate
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import read_rows, shard_name, write_shard
from rlhf.errors import ModelError
from rlhf.run.engine_choice import pin_engine, pinned_engine
from rlhf.scoring.choose_judge import load_judge
from rlhf.scoring.classifier_judge import ClassifierJudge
from rlhf.scoring.vllm_judge import VllmJudge
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import tiny_llama, tiny_reward_model, tiny_tokenizer

SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # heads of 32, as vLLM wants on CPU
MAX_TOKENS = 2500


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(tiny_reward_model(tmp_path_factory.mktemp("judge"), seed=3, **SHAPE))


@pytest.fixture(scope="module")
def judge(path):
    loaded = load_judge(ScoreStage(engine=Engine.vllm, max_tokens=MAX_TOKENS), {"judge": path})
    assert isinstance(loaded, VllmJudge)
    return loaded


def items(num, words=40, repeated=1):
    """Prompts with four responses each, of many lengths; the longest prompts fill several blocks of vLLM's
    cache."""
    made = []
    for i in range(num):
        messages = [
            {"role": "user", "content": f"question {i // 4} " + "about this and that " * (i // 4 * repeated)}
        ]
        if i // 4 % 3 == 2:
            messages = [{"role": "system", "content": "be brief"}, *messages]
        made.append((messages, f"{'yes ' * (1 + (words * i) // num)}{i % 3}"))
    return made


def test_scores_are_those_of_the_classifier(judge, path):
    pairs = items(48)
    scores = judge.score(pairs).scores
    assert scores == pytest.approx(ClassifierJudge(path).score(pairs).scores, abs=1e-4)
    assert max(scores) - min(scores) > 1e-2 and min(scores) < 0  # neither all the same nor through a sigmoid


def test_long_conversations_are_cut_on_the_left_alike(judge, path):
    start = [{"role": "user", "content": "q"}]
    pairs = [(start, "abcdefghij " * length) for length in (1, 240, 250, 2000)]
    pairs += [([{"role": "user", "content": "another question"}], "abcdefghij " * 2000)]
    ours, theirs = judge.score(pairs), ClassifierJudge(path, max_tokens=MAX_TOKENS).score(pairs)
    assert ours.num_truncated == theirs.num_truncated == 2
    assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
    assert ours.scores[-1] == ours.scores[-2]  # what differed was cut away


def test_a_score_depends_neither_on_its_batch_nor_on_what_came_before(judge):
    pairs = items(32, repeated=20)
    together = judge.score(pairs).scores
    alone = [judge.score([pair]).scores[0] for pair in pairs]
    assert together == pytest.approx(alone, abs=1e-5)
    judge.score(items(60, words=90, repeated=20))
    assert judge.score(pairs).scores == together  # to the last digit: a resumed stage writes the same bytes


def test_the_head_stays_in_fp32_when_the_body_does_not(path):
    scores = VllmJudge(path, dtype="bfloat16", max_tokens=512).score(items(12)).scores
    exact = ClassifierJudge(path).score(items(12)).scores
    assert scores == pytest.approx(exact, abs=0.1)
    assert any(float(torch.tensor(score).bfloat16()) != score for score in scores)


def test_a_trained_judge_scores_the_same_in_the_pipeline_and_in_both_engines(tmp_path):
    base = tiny_llama(tmp_path / "base", seed=5, **SHAPE)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
    ):  # no spare token for padding: the vocabulary grows
        text = (base / name).read_text().replace("<|finetune_right_pad_id|>", "<|unused|>")
        (base / name).write_text(text.replace('"pad_token": "<|unused|>"', '"pad_token": "<|eot_id|>"'))
    rows = [
        [[{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": c}] for c in "ab"]
        for i in range(8)
    ]
    lines = [json.dumps({"chosen": chosen, "rejected": rejected}) + "\n" for chosen, rejected in rows]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    section = RewardModelConfig(
        learning_rate=1e-3, batch_size=4, micro_batch_size=4, gradient_checkpointing=False
    )
    inputs = {"model": base, "data": tmp_path / "data.jsonl"}
    run_ranks(make_job("reward_model", section, inputs, tmp_path / "out"))
    folder = str(tmp_path / "out" / "model")

    from transformers import pipeline

    pipe = pipeline("text-classification", model=folder, function_to_apply="none", batch_size=1)
    tokenizer = pipe.tokenizer
    assert tokenizer.pad_token == "<pad>" and len(tokenizer) == len(tiny_tokenizer()) + 1
    pairs = items(16)
    texts = [
        tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        for messages, answer in pairs
    ]
    plain = [result["score"] for result in pipe([text.removeprefix(tokenizer.bos_token) for text in texts])]
    assert len({round(score, 3) for score in plain}) > 8
    assert ClassifierJudge(folder).score(pairs).scores == pytest.approx(plain, abs=1e-4)
    assert VllmJudge(folder, max_tokens=512).score(pairs).scores == pytest.approx(plain, abs=1e-4)


@pytest.fixture
def candidates(tmp_path):
    folder = tmp_path / "candidates"
    folder.mkdir()
    said = [Candidate([], text, "stop", math.nan, 0, math.nan) for text in ("yes", "no")]
    row = {"id": "1", "messages": [{"role": "user", "content": "q"}], "prompt_token_ids": []}
    write_shard(folder / shard_name(0), CANDIDATES_SCHEMA, [row | {"candidates": [vars(c) for c in said]}])
    return folder


@pytest.fixture
def every_work_is_enough(monkeypatch):
    monkeypatch.setattr("rlhf.scoring.auto_engine._SMALL_WORK", -1e12)


def auto_job(path, candidates, out, **told):
    section = ScoreConfig(**told)
    assert section.engine is Engine.auto
    return make_job("score", section, {"candidates": candidates, "judge": Path(path)}, out, rule=None)


def scores_in(folder):
    (row,) = read_rows(folder / shard_name(0))
    return row["scores"]


def test_auto_says_which_engine_it_took_and_their_scores_agree(path, candidates, tmp_path, monkeypatch):
    small = run_here(auto_job(path, candidates, tmp_path / "small"))
    assert small.metrics["engine"] == "transformers (so little work is not worth vLLM's start)"
    assert pinned_engine(tmp_path / "small") is Engine.transformers
    monkeypatch.setattr("rlhf.scoring.auto_engine._SMALL_WORK", -1e12)
    large = run_here(auto_job(path, candidates, tmp_path / "large", max_tokens=512))
    assert large.metrics["engine"] == "vllm" and pinned_engine(tmp_path / "large") is Engine.vllm
    assert scores_in(tmp_path / "large") == pytest.approx(scores_in(tmp_path / "small"), abs=1e-4)


@pytest.mark.usefixtures("every_work_is_enough")
def test_a_worker_takes_the_engine_of_the_one_before_it_or_says_why_not(path, candidates, tmp_path):
    for name in ("transformers", "vllm"):
        (tmp_path / name).mkdir()
        pin_engine(tmp_path / name, Engine(name))
    # This one would take vLLM, where the other has begun without.
    outcome = run_here(auto_job(path, candidates, tmp_path / "transformers", max_tokens=512))
    assert outcome.metrics["engine"] == "transformers (as another worker)"
    # This one cannot have vLLM, and does not go on with what it can have.
    with pytest.raises(
        ModelError, match=r"(?s)begun this stage with vllm .*max_tokens=9000.* One engine scores a"
    ):
        run_here(auto_job(path, candidates, tmp_path / "vllm", max_tokens=9000))
    assert not (tmp_path / "vllm" / shard_name(0)).exists()


@pytest.mark.usefixtures("every_work_is_enough")
def test_a_judge_that_vllm_fails_on_in_any_way_is_scored_by_transformers(
    path, candidates, tmp_path, monkeypatch
):
    def load(**arguments):
        raise KeyError("score.bias")

    monkeypatch.setattr("vllm.LLM", load)
    outcome = run_here(auto_job(path, candidates, tmp_path / "scores"))
    assert "vLLM refuses" in outcome.metrics["engine"] and "score.bias" in outcome.metrics["engine"]
    assert pinned_engine(tmp_path / "scores") is Engine.transformers


@pytest.mark.usefixtures("every_work_is_enough")
def test_what_cannot_be_served_names_the_other_engine(path, candidates, tmp_path):
    with pytest.raises(ModelError, match=r"score\.max_tokens=9000 .* score\.engine=transformers"):
        VllmJudge(path, max_tokens=9000)
    outcome = run_here(auto_job(path, candidates, tmp_path / "scores", max_tokens=9000))
    assert outcome.metrics["engine"].startswith(
        "transformers, since vLLM refuses: "
    )  # which the console shows
    assert "score.max_tokens=9000" in outcome.metrics["engine"]
    two = tiny_reward_model(tmp_path / "two", **SHAPE)
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps(config | {"id2label": {"0": "good", "1": "bad"}}))
    with pytest.raises(ModelError, match="2 labels"):
        VllmJudge(str(two))
    unknown = tiny_reward_model(tmp_path / "unknown", **SHAPE)
    config = json.loads((unknown / "config.json").read_text())
    # Transformers goes by the model's type, vLLM by its class.
    config["architectures"] = ["NobodyKnowsForSequenceClassification"]
    (unknown / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"score\.engine=transformers"):
        VllmJudge(str(unknown))


def test_on_a_gpu_it_takes_the_share_of_memory_that_it_was_given(path, monkeypatch):
    given = {}

    def load(**arguments):
        given.update(arguments)
        raise ValueError("there is no GPU here")

    monkeypatch.setattr("vllm.LLM", load)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = ScoreStage(engine=Engine.vllm, gpu_memory_utilization=0.35, tensor_parallel_size=2)
    with pytest.raises(ModelError, match="there is no GPU here"):
        load_judge(config, {"judge": path})
    assert (given["gpu_memory_utilization"], given["tensor_parallel_size"]) == (0.35, 2)
