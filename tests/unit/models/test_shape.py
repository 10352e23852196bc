"""What config.json says of a model's shape, under whichever names."""

from __future__ import annotations

import json

import pytest

from rlhf.errors import ModelError
from rlhf.models.shape import Shape, read_shape

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def shape_of(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_shape(tmp_path, 7.0)


def test_llama(tmp_path):
    assert shape_of(tmp_path, LLAMA) == Shape(7.0, 32, 4096, 14336, 32, 8, 128, 128256)
    # Gemma and Qwen 3 say the size of a head themselves.
    assert shape_of(tmp_path, LLAMA | {"head_dim": 256}).head_size == 256


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"final_logit_softcapping": 30.0}, True),
        ({"logit_scale": 0.0625}, True),
        ({"logits_scaling": 8}, True),
        ({"logits_scaling": 1.0, "final_logit_softcapping": None}, False),
    ],
)
def test_logits_that_are_not_the_heads_own(tmp_path, changes, expected):
    assert shape_of(tmp_path, LLAMA | changes).changes_logits is expected


def test_gpt2(tmp_path):
    config = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "vocab_size": 50257}
    assert shape_of(tmp_path, config) == Shape(7.0, 12, 768, 3072, 12, 12, 64, 50257)


def test_the_language_model_of_one_that_also_sees(tmp_path):
    config = {"model_type": "gemma3", "text_config": LLAMA, "vision_config": {"hidden_size": 5}}
    assert shape_of(tmp_path, config).hidden == 4096
    # Some say the vocabulary in the outer config alone: the two are not mixed.
    inner = {name: value for name, value in LLAMA.items() if name != "vocab_size"}
    assert shape_of(tmp_path, {"text_config": inner, "vocab_size": 5}) is None


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [None, "many", 0, -1, [4]])
def test_none_where_a_number_is_not_known(tmp_path, name, value):
    assert shape_of(tmp_path, LLAMA | {name: value}) is None


def test_a_broken_config_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json.*cannot be read"):
        read_shape(tmp_path, 1)
