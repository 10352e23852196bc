"""How large models are, by their folder or their name."""

import json

import pytest

from rlhf.errors import ConfigError, ModelError
from rlhf.preflight.shapes import _TABLE, WORLD_MODEL, shape_of
from tests.unit.refusals import model

# As the models' cards and their weights' headers have them; norms and biases are left out here.
PARAMETERS = {
    "Llama-3-8B": 8.030e9,
    "Llama-3-70B": 70.55e9,
    "Llama-3.2-1B": 1.236e9,
    "Llama-3.2-3B": 3.213e9,
    "Qwen2.5-0.5B": 0.494e9,
    "Qwen2.5-1.5B": 1.544e9,
    "Qwen2.5-3B": 3.086e9,
    "Qwen2.5-7B": 7.616e9,
    "Qwen2.5-14B": 14.77e9,
    "Qwen2.5-32B": 32.76e9,
    "Qwen2.5-72B": 72.71e9,
    "Qwen3-0.6B": 0.596e9,
    "Qwen3-1.7B": 1.721e9,
    "Qwen3-4B": 4.022e9,
    "Qwen3-8B": 8.191e9,
    "Qwen3-14B": 14.77e9,
    "Qwen3-32B": 32.76e9,
    "Mistral-7B": 7.242e9,
    "Gemma-2-2B": 2.614e9,
    "Gemma-2-9B": 9.242e9,
    "Phi-3-mini": 3.821e9,
    "SmolLM2-135M": 0.1345e9,
}


def test_the_table_has_the_parameters_of_the_models():
    assert {name: pytest.approx(shape.parameters, rel=2e-3) for name, (_, shape) in _TABLE.items()} == (
        PARAMETERS
    )
    assert WORLD_MODEL.parameters == pytest.approx(0.86e6, rel=0.01)


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Llama-3-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3-8B"),
        ("RLHFlow/pair-preference-model-LLaMA3-8B", "Llama-3-8B"),
        ("RLHFlow/LLaMA3-SFT", "Llama-3-8B"),
        ("sfairXC/FsfairX-LLaMA3-RM-v0.1", "Llama-3-8B"),
        ("meta-llama/Llama-3.2-1B-Instruct", "Llama-3.2-1B"),
        ("meta-llama/Llama-3.3-70B-Instruct", "Llama-3-70B"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-7B"),
        ("Qwen/Qwen2-1.5B", "Qwen2.5-1.5B"),
        ("Skywork/Skywork-Reward-V2-Qwen3-0.6B", "Qwen3-0.6B"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B"),
        ("google/gemma-2-9b-it", "Gemma-2-9B"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M"),
        ("me/my_llama_3_8b_tuned", "Llama-3-8B"),
    ],
)
def test_a_model_that_is_not_here_is_known_by_its_name(path, entry):
    found = shape_of(path, "model.path")
    assert found.shape == _TABLE[entry][1]
    assert found.assumed.startswith(f"model.path={path}: shape of {entry} (")


def test_a_scalar_judge_has_no_head_over_the_vocabulary():
    judge = shape_of("sfairXC/FsfairX-LLaMA3-RM-v0.1", "reward_model.path", one_logit=True).shape
    assert judge.parameters == pytest.approx(7.505e9, rel=1e-3)
    tied = shape_of("Qwen/Qwen3-0.6B", "reward_model.path", one_logit=True).shape
    assert tied == _TABLE["Qwen3-0.6B"][1], "a tied head is the embeddings"


def test_a_size_in_the_name_is_a_size():
    found = shape_of("someone/strange-13B-chat", "model.path")
    assert found.shape.parameters == 13e9
    assert found.assumed.endswith("13 billion parameters, built like Qwen3-14B")
    assert found.shape.layers == 35, "of 40, as many as make it so large"


def test_a_folder_is_counted(tmp_path):
    folder = model(tmp_path / "m", hidden_size=4, num_hidden_layers=3, num_attention_heads=2, vocab_size=9)
    found = shape_of(str(folder), "model.path")
    assert (found.assumed, found.shape.parameters, found.shape.layers) == ("", 8, 3)


def test_of_a_folder_without_weights_the_name_tells(tmp_path):
    folder = tmp_path / "llama-2B"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    found = shape_of(str(folder), "model.path")
    assert found.shape.parameters == 2e9 and "built like" in found.assumed
    config = {"hidden_size": 4, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 9}
    (folder / "config.json").write_text(json.dumps(config))
    assert shape_of(str(folder), "model.path").shape.layers == 3


@pytest.mark.parametrize("path", ["foo/bar", "gpt", "", "/nowhere/at/all", "x/model-4bit", "."])
def test_what_tells_nothing_is_refused_with_the_ways_out(path):
    with pytest.raises(ConfigError) as error:
        shape_of(path, "reward_model.path")
    assert f"reward_model.path={path}: " in str(error.value) and "=my-8B" in str(error.value)


def test_a_damaged_folder_is_named(tmp_path):
    folder = model(tmp_path / "m")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        shape_of(str(folder), "model.path")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no weights"):
        shape_of(str(empty), "model.path")
