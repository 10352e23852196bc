"""The head that makes a model a judge, and how many tokens it can hold: told from headers and JSON alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf.errors import ModelError
from rlhf.models import context, heads
from rlhf.models.weight_files import INDEX


def folder(tmp_path, weights=None, **config):
    """A model folder: a config, and weights of zeros by name and shape."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    if weights:
        arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in weights.items()}
        save_file(arrays, tmp_path / "model.safetensors")
    return tmp_path


def index_only(tmp_path, *names, **config):
    """What the checks before a run have of a model on the Hub."""
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    return folder(tmp_path, **config)


OWN_CODE = {"auto_map": {"AutoModelForSequenceClassification": "modeling.Judge"}}


@pytest.mark.parametrize(
    ("weights", "config", "rows"),
    [
        ({"score.weight": (1, 4)}, {}, 1),
        ({"model.norm.weight": (4,), "base.score.weight": (3, 4)}, {}, 3),
        ({"score.weight": (3, 4)}, {"num_labels": 1}, None),
        ({"score.weight": (3, 4)}, {"id2label": {"0": "reward"}}, None),
        ({"score.weight": (3, 4)}, OWN_CODE, None),
        ({"myscore.weight": (3, 4)}, {}, None),
        (None, {}, None),
    ],
)
def test_labels_are_the_rows_of_the_head_where_the_config_names_none(
    tmp_path, monkeypatch, weights, config, rows
):
    path = folder(tmp_path, weights, **config)
    assert heads.unnamed_labels(path) == rows
    loaded = SimpleNamespace(num_labels=2)
    monkeypatch.setattr(heads, "load_config", lambda path, trust: loaded)
    assert heads.judge_config(path).num_labels == (2 if rows is None else rows)


@pytest.mark.parametrize(
    ("weights", "config", "num_labels", "phrase"),
    [
        ({"score.weight": (1, 4)}, OWN_CODE, 1, "computed by Python code that comes with it"),
        ({"score.weight": (2, 4)}, {}, 2, "has 2 labels, and which"),
        ({"score.weight": (0, 4)}, {}, 0, "has 0 labels, and which"),
        ({"score.weight": (2, 4)}, {"num_labels": 1}, 1, "the score head has 2 rows"),
        (
            {"score.dense.weight": (4, 4), "score.out.weight": (1, 4)},
            {},
            1,
            "(score.dense.weight, score.out.w",
        ),
        ({"classifier.weight": (1, 4)}, {}, 1, "called `classifier`, as encoders"),
        ({"v_head.summary.weight": (1, 4)}, {}, 1, "called `v_head`: a value head"),
        ({"lm_head.weight": (9, 4)}, {}, 1, "no score head (LlamaForCausalLM)"),
    ],
)
def test_a_judge_without_one_logit_is_refused(tmp_path, weights, config, num_labels, phrase):
    loaded = SimpleNamespace(num_labels=num_labels, architectures=["LlamaForCausalLM"])
    with pytest.raises(ModelError) as error:
        heads.require_one_logit(folder(tmp_path, weights, **config), loaded)
    assert phrase in str(error.value)


def test_a_judge_with_one_logit_is_taken(tmp_path):
    heads.require_one_logit(folder(tmp_path, {"score.weight": (1, 4)}), SimpleNamespace(num_labels=1))


@pytest.mark.parametrize(
    ("config", "num_labels", "is_refused"),
    [({}, 2, False), ({"num_labels": 1}, 1, False), ({"num_labels": 2}, 2, True)],
)
def test_of_a_judge_on_the_hub_only_what_is_known_is_held_against_it(
    tmp_path, config, num_labels, is_refused
):
    path = index_only(tmp_path, "model.score.weight", **config)
    loaded = SimpleNamespace(num_labels=num_labels)
    if is_refused:
        with pytest.raises(ModelError, match="2 labels"):
            heads.require_one_logit(path, loaded)
    else:
        heads.require_one_logit(path, loaded)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 8}, 8),
        ({"max_position_embeddings": 8, "seq_length": 4}, 4),
        ({"max_position_embeddings": -1, "n_ctx": 1}, 1),
        ({"max_position_embeddings": 0}, None),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": 1e30}, None),
        ({"text_config": {"n_ctx": 5}, "max_position_embeddings": 9}, 5),
        ({"text_config": {"a": 1}, "max_position_embeddings": 9}, 9),
    ],
)
def test_the_smallest_limit_counts(tmp_path, config, length):
    assert context.context_length(folder(tmp_path, **config)) == length


def test_transformers_default_counts_where_the_config_says_nothing(tmp_path):
    language_model = SimpleNamespace(n_positions=7)
    loaded = SimpleNamespace(get_text_config=lambda: language_model)
    assert context.loaded_context(folder(tmp_path), loaded) == 7
    assert context.loaded_context(folder(tmp_path, n_ctx=5), loaded) == 5


@pytest.mark.parametrize(
    ("weights", "max_tokens", "is_refused"),
    [
        ({"transformer.wpe.weight": (16, 4)}, 16, False),
        ({"transformer.wpe.weight": (16, 4)}, 17, True),
        # OPT's and BART's positions begin at 2; what is much longer is another table.
        ({"decoder.embed_positions.weight": (24, 4)}, 17, True),
        ({"decoder.embed_positions.weight": (25, 4)}, 17, False),
        ({"decoder.embed_positions.weight": (15, 4)}, 17, False),
        ({"wpe.weight": (16,)}, 17, False),
        ({"vision.embed_positions.weight": (16, 4)}, 17, False),
        ({"model.norm.weight": (16, 4)}, 17, False),
    ],
)
def test_only_a_table_of_positions_ends(tmp_path, weights, max_tokens, is_refused):
    path = folder(tmp_path, weights, n_positions=16)
    if is_refused:
        with pytest.raises(
            ModelError, match=r"score\.max_tokens=17, and this judge has learned 16 positions"
        ):
            context.judge_context(path, None, max_tokens)
    else:
        assert context.judge_context(path, None, max_tokens) == 16


def test_a_table_of_positions_in_the_index_alone_is_told_by_its_name(tmp_path):
    with pytest.raises(ModelError, match="learned 16"):
        context.judge_context(index_only(tmp_path, "a.weight", "wpe.weight", n_ctx=16), None, 17)


def test_a_judge_that_says_no_limit_has_none(tmp_path):
    loaded = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    path = folder(tmp_path, {"wpe.weight": (16, 4)})
    assert context.judge_context(path, loaded, 10**6) is None
