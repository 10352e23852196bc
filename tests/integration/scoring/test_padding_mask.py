"""A causal judge is read without a padding mask and scores the same; others keep the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.scoring.classifier_judge import ClassifierJudge
from rlhf.scoring.preference_judge import PairwiseJudge
from rlhf.scoring.token_rows import sees_padding
from tests.tiny import tiny_tokenizer

CPU = torch.device("cpu")
MAX_TOKENS = 512
LENGTHS = [40, 7, 23, 39, 1, 17]
"""Of rows that share a batch; the longest is longer than any window below."""
WINDOW = {"sliding_window": 16, "head_dim": 32}
GEMMA = WINDOW | {"query_pre_attn_scalar": 32}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": MAX_TOKENS}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": MAX_TOKENS,
    "initializer_range": 0.2,
}
CAUSAL = {
    "llama": {},
    "qwen2": {},
    "mistral": WINDOW,
    "gemma2": GEMMA | {"attn_logit_softcapping": 5.0},
    "gemma3_text": GEMMA,
    "phi3": {},
    "gpt2": GPT,  # learned positions
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},  # positions counted from the mask
    "bloom": {"n_head": 2, "n_layer": 2},  # positions as a bias that is made of the mask
    "gpt_neox": {},
}
BOTH_WAYS = {"gemma3_text": GEMMA | {"use_bidirectional_attention": True}}


def save(path, model_type, extra, auto: Any = AutoModelForSequenceClassification):
    """A random model of an architecture with the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    shape: dict[str, Any] = SHAPE | extra
    if model_type == "bloom":
        del shape["num_attention_heads"], shape["num_hidden_layers"]  # other names of those it has
    ids = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer), "num_labels": 1}
    torch.manual_seed(0)
    auto.from_config(AutoConfig.for_model(model_type, **shape | ids)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(1, 400, (length,), generator=generator).tolist()) for length in LENGTHS]


def watched(judge, name, monkeypatch):
    """The names of what the model is given in each forward pass."""
    given = []
    real = getattr(judge, name)

    def forward(**inputs):
        given.append(set(inputs))
        return real(**inputs)

    monkeypatch.setattr(judge, name, forward)
    return given


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", CAUSAL)
def test_a_causal_judge_scores_the_same_to_the_bit_without_a_mask(tmp_path, monkeypatch, model_type, dtype):
    judge = ClassifierJudge(str(save(tmp_path, model_type, CAUSAL[model_type])), dtype, MAX_TOKENS)
    given = watched(judge, "_states", monkeypatch)
    scores = judge._forward(rows())
    assert given == [{"input_ids"}]
    judge._masked = True
    assert judge._forward(rows()) == scores
    assert given[1] == {"input_ids", "attention_mask"}
    assert max(scores) - min(scores) > 0.1
    # Alone, and so at the same places, a row has the same score but for rounding.
    alone = [judge._forward([row])[0] for row in rows()]
    tolerance = 1e-4 if dtype == "float32" else 0.2
    assert scores == pytest.approx(alone, abs=tolerance * max(map(abs, alone)))


@pytest.mark.parametrize("model_type", BOTH_WAYS)
def test_a_judge_that_looks_both_ways_keeps_the_mask(tmp_path, monkeypatch, model_type):
    judge = ClassifierJudge(str(save(tmp_path, model_type, BOTH_WAYS[model_type])), max_tokens=MAX_TOKENS)
    given = watched(judge, "_states", monkeypatch)
    scores = judge._forward(rows())
    assert given == [{"input_ids", "attention_mask"}]
    judge._masked = False
    unmasked = judge._forward(rows())
    assert max(abs(a - b) for a, b in zip(unmasked, scores, strict=True)) > 0.01, "or this test shows nothing"


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt2"])
def test_a_pairwise_judge_is_read_so_too(tmp_path, monkeypatch, model_type):
    path = save(tmp_path, model_type, CAUSAL[model_type], AutoModelForCausalLM)
    judge = PairwiseJudge(str(path), max_tokens=MAX_TOKENS)
    given = watched(judge, "_logits", monkeypatch)
    probabilities = judge._forward(rows())
    assert given == [{"input_ids"}]
    judge._masked = True
    assert judge._forward(rows()) == probabilities
    assert max(probabilities) - min(probabilities) > 0.01


@pytest.mark.parametrize("num_tokens", [3, 400])
def test_what_looks_back_alone_sees_no_padding_and_what_looks_ahead_does(num_tokens):
    def states(ids_1T):
        assert ids_1T.max() < num_tokens
        return ids_1T.float()[:, :, None]

    assert not sees_padding(lambda ids: states(ids).cumsum(1), num_tokens, CPU)
    assert sees_padding(lambda ids: states(ids).flip(1).cumsum(1).flip(1), num_tokens, CPU)
    assert sees_padding(lambda ids: states(ids) + 1e-6 * states(ids).mean(), num_tokens, CPU)
