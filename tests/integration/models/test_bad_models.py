"""Models that cannot be used are refused by the stage that loads them, with one clear error."""

from __future__ import annotations

import json
import math

import pytest
from safetensors.torch import load_file, save_file

from rlhf.config.schema import GenerateConfig, ScoreConfig
from rlhf.data.records import prompt_id
from rlhf.data.schemas import CANDIDATES_SCHEMA, PROMPT_SCHEMA
from rlhf.data.shards import shard_name, write_shard
from rlhf.errors import DataError, ModelError
from tests.stage_runner import make_job, run_here
from tests.tiny import tiny_llama, tiny_reward_model

MESSAGES = [{"role": "user", "content": "Say 3 in words"}]


def generate(tmp_path, policy, **config):
    (tmp_path / "prompts").mkdir()
    row = {"id": prompt_id(MESSAGES), "messages": MESSAGES}
    write_shard(tmp_path / "prompts" / shard_name(0), PROMPT_SCHEMA, [row])
    section = {"engine": "transformers", "iteration": 0, "slice": None, "max_new_tokens": 4} | config
    inputs = {"policy": policy, "prompts": tmp_path / "prompts"}
    return run_here(make_job("generate", GenerateConfig(), inputs, tmp_path / "out", **section))


def score(tmp_path, judge):
    (tmp_path / "candidates").mkdir()
    candidate = {"token_ids": [], "text": "three", "finish_reason": "stop", "logprob": 0.0, "seed": 0}
    row = {"id": prompt_id(MESSAGES), "messages": MESSAGES, "prompt_token_ids": []}
    rows = [row | {"candidates": [candidate | {"temperature": 1.0}]}]
    write_shard(tmp_path / "candidates" / shard_name(0), CANDIDATES_SCHEMA, rows)
    inputs = {"judge": judge, "candidates": tmp_path / "candidates"}
    return run_here(make_job("score", ScoreConfig(), inputs, tmp_path / "out"))


def change(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


def no_end_of_turn(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    change(folder, "tokenizer_config.json", eos_token=None)


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": 1}')


def few_embeddings(folder):
    change(folder, "config.json", vocab_size=300)


def other_shape(folder):
    change(folder, "config.json", intermediate_size=48)


def own_code(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\nclass Config: pass\n")
    change(folder, "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})


def weights_missing(folder):
    edit_weights(folder, lambda weights: weights.pop("model.layers.0.mlp.up_proj.weight"))


def no_head(folder):
    change(tiny_llama(folder), "config.json", id2label={"0": "reward"}, label2id={"reward": 0})
    return folder


def two_logits(folder):
    change(tiny_reward_model(folder), "config.json", id2label={"0": "good", "1": "bad"})
    return folder


def not_numbers(folder):
    edit_weights(folder, lambda weights: weights["model.norm.weight"].fill_(math.nan))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_template, ["no chat template", "instruct version"]),
        (no_end_of_turn, ["nothing marks the end", "tokenizer.eos_token"]),
        (broken_tokenizer, ["no usable tokenizer", "tokenizer.save_pretrained"]),
        (few_embeddings, ["300 embeddings", "resize_token_embeddings"]),
        (other_shape, ["cannot be loaded as CausalLM", "config.json"]),
        (own_code, ["trust_remote_code=true"]),
        (
            weights_missing,
            ["1 weights of LlamaForCausalLM are not", "layers.0.mlp.up_proj.weight", "save it anew"],
        ),
        (not_numbers, ["no numbers (NaN)", "Save the model anew"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_policy_is_refused(tmp_path, damage, said):
    policy = tiny_llama(tmp_path / "policy")
    damage(policy)
    with pytest.raises(ModelError) as refusal:
        generate(tmp_path, policy)
    assert not [phrase for phrase in [str(policy), *said] if phrase not in str(refusal.value)], refusal.value
    assert not (policy / "executed").exists() and not list((tmp_path / "out").glob("shard_*"))


def test_its_code_does_not_run_where_transformers_knows_the_model(tmp_path):
    policy = tiny_llama(tmp_path / "policy")
    own_code(policy)
    change(policy, "config.json", model_type="llama")
    assert generate(tmp_path, policy).counts == {}
    assert not (policy / "executed").exists()


@pytest.mark.parametrize(
    ("limit", "said"),
    [({"max_prompt_tokens": 3}, "more than 3 tokens"), ({"max_new_tokens": 8190}, "2 tokens")],
)
def test_prompts_that_do_not_fit_are_refused(tmp_path, limit, said):
    with pytest.raises(DataError, match=said + r".*max_prompt_tokens.*shorter prompts"):
        generate(tmp_path, tiny_llama(tmp_path / "policy"), **limit)


def test_a_context_without_room_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"context of 8192 .*max_new_tokens=9000.*longer context"):
        generate(tmp_path, tiny_llama(tmp_path / "policy"), max_new_tokens=9000)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (two_logits, ["2 labels", "one logit"]),
        (tiny_llama, ["no score head (LlamaForCausalLM)", "one logit", "reward_model.data", "pairwise"]),
        (no_head, ["no score head (LlamaForCausalLM)", "one logit"]),
    ],
    ids=["two logits", "causal LM", "one label and no head"],
)
def test_a_judge_is_refused(tmp_path, make, said):
    judge = make(tmp_path / "judge")
    with pytest.raises(ModelError) as refusal:
        score(tmp_path, judge)
    assert not [phrase for phrase in [str(judge), *said] if phrase not in str(refusal.value)], refusal.value
