"""Judges as people have them: labels and heads told by the weights, and conversations longer than the
context."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.config.schema import ScoreConfig
from rlhf.config.stage_configs import ComparisonStage, PreflightStage
from rlhf.data.records import Candidate
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import shard_name, sum_counts, write_shard
from rlhf.errors import ModelError
from rlhf.preflight.look import Level
from rlhf.run.job import Job
from rlhf.scoring.classifier_judge import ClassifierJudge
from tests.commands import called
from tests.stage_runner import config_of, make_job, run_here
from tests.tiny import tiny_llama, tiny_reward_model, tiny_tokenizer

MESSAGES = [{"role": "user", "content": "Name a colour"}]
LONG = " ".join(map(str, range(200)))
ITEMS = [(MESSAGES, "Red."), (MESSAGES, "Cat.")]


def change(folder, without=(), **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    for key in without:
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def unnamed(folder):
    """Without what config.json says of labels, which it never says of two: those transformers takes by
    itself."""
    return change(folder, ["id2label", "label2id", "num_labels"])


def renamed_head(folder, *names):
    """The score head under other names."""
    weights = load_file(folder / "model.safetensors")
    head = weights.pop("score.weight")
    for name in names:
        weights[name] = head.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny_gpt2(folder, context=64):
    """A judge with learned positions."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    tokenizer = tiny_tokenizer()
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": context, "num_labels": 1}
    config = GPT2Config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape)
    torch.manual_seed(0)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check(folder, **score):
    """What the preflight finds odd in a judge."""
    from rlhf.config.schema import Config

    cfg = config_of(Config)
    cfg.score = config_of(ScoreConfig, cfg.score, **score)
    config = PreflightStage(cfg, {"reward_model.path": str(folder)}, [])
    findings = run_here(Job("preflight", "preflight", config, {}, "", 1)).metrics["findings"]
    return [(item.level, item.text) for item in findings if item.level is not Level.ok]


def score(tmp_path, judge, responses, cls=None, **section):
    candidates = tmp_path / "candidates"
    candidates.mkdir(exist_ok=True)
    said = [vars(Candidate([], text, "stop", 0.0, 0, 1.0)) for text in responses]
    row = {"id": "1", "messages": MESSAGES, "prompt_token_ids": [], "candidates": said}
    write_shard(candidates / shard_name(0), CANDIDATES_SCHEMA, [row])
    out = tmp_path / "scores"
    inputs = {"candidates": candidates, "judge": judge}
    outcome = run_here(make_job("score", ScoreConfig(**section), inputs, out, cls=cls))
    return outcome.metrics, sum_counts(out)


def test_the_number_of_labels_comes_from_the_weights(tmp_path):
    judge = tiny_reward_model(tmp_path / "judge")
    expected = ClassifierJudge(str(judge)).score(ITEMS).scores
    assert ClassifierJudge(str(unnamed(judge))).score(ITEMS).scores == expected
    assert check(judge) == []
    five = unnamed(tiny_reward_model(tmp_path / "five"))
    weights = load_file(five / "model.safetensors")
    weights["score.weight"] = weights["score.weight"].repeat(5, 1)
    save_file(weights, five / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="5 labels"):
        ClassifierJudge(str(five))
    ((level, text),) = check(five)
    assert level is Level.error and "5 labels" in text
    with pytest.raises(ModelError, match="one label, and the score head has 5 rows"):
        ClassifierJudge(str(change(five, id2label={"0": "reward"})))


def test_vllm_takes_the_number_from_the_weights_too(tmp_path):
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    from rlhf.scoring.vllm_judge import VllmJudge

    judge = tiny_reward_model(
        tmp_path / "judge", hidden_size=64, num_attention_heads=2, num_key_value_heads=1
    )
    (judge / "generation_config.json").write_text('{"max_new_tokens": -1}')
    save_file({"other": torch.zeros(3)}, judge / "consolidated.safetensors")
    scores = VllmJudge(str(unnamed(judge)), max_tokens=512).score(ITEMS).scores
    assert scores == pytest.approx(ClassifierJudge(str(judge)).score(ITEMS).scores, abs=1e-4)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["classifier.weight"], ["`classifier`", "no linear head named `score`", "decoder"]),
        (["classifier.dense.weight", "classifier.out_proj.weight"], ["`classifier`", "decoder"]),
        (["v_head.summary.weight", "v_head.summary.bias"], ["`v_head`", "value head", "score.weight"]),
        (["value_head.weight"], ["`value_head`", "value head", "score.weight"]),
        (["score.0.weight", "score.2.weight"], ["no single linear layer", "score.0.weight, score.2.weight"]),
        (["lm_head.weight"], ["no score head", "reward_model.data", "reward_model.kind=pairwise"]),
        ([], ["no score head"]),
    ],
    ids=lambda value: value[0] if value else "none",
)
@pytest.mark.parametrize("make", [lambda folder: folder, unnamed], ids=["named", "unnamed"])
def test_other_heads_are_told(tmp_path, names, said, make):
    judge = make(renamed_head(tiny_reward_model(tmp_path / "judge"), *names))
    with pytest.raises(ModelError) as refusal:
        ClassifierJudge(str(judge))
    assert not [phrase for phrase in [str(judge), *said] if phrase not in str(refusal.value)], refusal.value
    ((level, text),) = check(judge)
    assert level is Level.error and said[0] in text


def test_a_judge_on_the_hub_is_looked_at_without_its_weights(tmp_path):
    """Of sharded weights the index is there, of others nothing is known."""
    judge = unnamed(tiny_reward_model(tmp_path / "judge"))
    (judge / "model.safetensors").unlink()
    assert check(judge) == []
    index = {"weight_map": {"score.weight": "a.safetensors", "model.norm.weight": "a.safetensors"}}
    (judge / "model.safetensors.index.json").write_text(json.dumps(index))
    assert check(judge) == []
    index["weight_map"].pop("score.weight")
    (judge / "model.safetensors.index.json").write_text(json.dumps(index))
    ((level, text),) = check(judge)
    assert level is Level.error and "no score head" in text


def test_learned_positions_are_refused_before_a_crash(tmp_path):
    judge = tiny_gpt2(tmp_path / "judge")
    with pytest.raises(
        ModelError, match=r"score\.max_tokens=100.*learned 64 positions.*score\.max_tokens=64"
    ):
        score(tmp_path, judge, ["Red.", LONG], max_tokens=100)
    ((level, text),) = check(judge, max_tokens=100)
    assert level is Level.error and "learned 64 positions" in text
    assert check(judge, max_tokens=64) == []
    metrics, counts = score(tmp_path, judge, ["Red.", LONG], max_tokens=64)
    assert counts["cut_on_the_left"] == 1 and "over_context" not in counts
    assert "1 inputs of the judge are longer than score.max_tokens=64" in metrics["warning"]


def test_rows_over_a_rotary_context_are_counted_and_said(tmp_path):
    judge = tiny_reward_model(tmp_path / "judge", max_position_embeddings=64)
    metrics, counts = score(tmp_path, judge, ["Red.", LONG, LONG + " 5"], max_tokens=4096)
    assert counts["over_context"] == 2 and counts["cut_on_the_left"] == 0
    assert "2 inputs are longer than the judge's context" in metrics["warning"]
    assert "set score.max_tokens=64" in metrics["warning"]
    ((level, text),) = check(judge, max_tokens=4096)
    assert level is Level.warning and "score.max_tokens=4096 of 64" in text


def test_a_pairwise_judge_counts_them_too(tmp_path):
    judge = tiny_llama(tmp_path / "judge", max_position_embeddings=64)
    metrics, counts = score(tmp_path, judge, ["Red.", LONG], cls=ComparisonStage, max_tokens=4096)
    assert counts["over_context"] == counts["judge_calls"] == 2
    assert "set score.max_tokens=64" in metrics["warning"]


def test_nothing_is_said_of_conversations_that_fit(tmp_path):
    metrics, counts = score(tmp_path, tiny_reward_model(tmp_path / "judge"), ["Red.", "Cat."])
    assert "warning" not in metrics and "over_context" not in counts


def test_the_tool_says_it_once(tmp_path):
    judge = tiny_reward_model(tmp_path / "judge", max_position_embeddings=64)
    line = {"prompt": MESSAGES, "responses": ["Red.", LONG]}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    files = ["input=in.jsonl", "output=out.jsonl"]
    code, said = called(tmp_path, "rlhf.score", f"reward_model.path={judge}", *files, "compute.device=cpu")
    assert code == 0, said
    assert "1 over context" in said
    assert said.count("⚠ 1 inputs are longer than the judge's context") == 1, said
