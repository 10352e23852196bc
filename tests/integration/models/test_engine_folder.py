"""What vLLM wants to know of a model's class, it finds out in the worker's own process."""

import json

import pytest
from transformers import LlamaConfig, Qwen2Config
from vllm.config import ModelConfig
from vllm.model_executor.models import registry

from rlhf.models.engine_folder import import_classes

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize(
    ("config_type", "architecture", "runner"),
    [
        (LlamaConfig, "LlamaForCausalLM", "generate"),
        (LlamaConfig, "LlamaForSequenceClassification", "pooling"),
        (Qwen2Config, "Qwen2ForCausalLM", "generate"),
        (Qwen2Config, "Qwen2ForSequenceClassification", "pooling"),
    ],
)
def test_the_first_use_of_an_architecture_starts_no_process(
    tmp_path, monkeypatch, config_type, architecture, runner
):
    def refuse(function):
        pytest.fail("vLLM starts a process that imports all of vLLM")

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_run_in_subprocess", refuse)
    # As on a machine, and in a process, that has never used it.
    monkeypatch.setattr(registry.ModelRegistry, "models", dict(registry.ModelRegistry.models))
    registry._try_inspect_model_cls.cache_clear()
    folder = tmp_path / "model"
    config_type(**SIZES, num_labels=1, architectures=[architecture]).save_pretrained(folder)
    import_classes(str(folder))
    config = ModelConfig(model=str(folder), runner=runner, skip_tokenizer_init=True, dtype="float32")
    assert config.architectures == [architecture]
    assert not (tmp_path / "cache" / "modelinfos").exists()


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": ["Unheard"]}])
def test_what_vllm_does_not_know_is_left_to_it(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    known = dict(registry.ModelRegistry.models)
    import_classes(str(tmp_path))
    assert registry.ModelRegistry.models.keys() == known.keys()
