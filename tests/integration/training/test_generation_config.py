"""A generation_config.json that transformers refuses ends no run: whatever writes a model keeps it as it
was."""

from __future__ import annotations

import json
import shutil

import pytest

from rlhf.config.schema import ReferenceConfig
from rlhf.config.stage_configs import ExportStage
from rlhf.config.training import DpoConfig, LoraConfig, RewardModelConfig, SftConfig
from rlhf.loop import card
from rlhf.models.chat_template import load_tokenizer, stop_token_ids
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, tiny_reward_model, write_pairs

REFUSED = {
    "temperature alone": {"eos_token_id": [401, 404], "temperature": 0.9, "top_p": 0.6},
    "refused at loading": {"eos_token_id": 401, "num_return_sequences": 4},
    "a number that is none": {"eos_token_id": 401, "temperature": "0.9", "max_new_tokens": -1},
    "unknown names": {"eos_token_id": 401, "cache_implementation": "nope", "watermarking_config": {"a": 1}},
}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def model(folder, settings, make=tiny_llama):
    """A model with these settings, odd spaces in the file, and templates beside the main one."""
    make(folder)
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=5))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATE)
    return folder


def export(source, out, dtype, monkeypatch):
    monkeypatch.setattr(card, "text", lambda facts, dtype: "a card")
    return run_here(make_job("export", None, {"model": source}, out, cls=ExportStage, dtype=dtype))


def assert_kept(source, out):
    for name in ("generation_config.json", "additional_chat_templates/tool_use.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert load_tokenizer(out).chat_template["tool_use"] == TEMPLATE


@pytest.mark.parametrize("kind", REFUSED)
def test_stop_tokens_are_read(tmp_path, kind):
    folder = model(tmp_path / "policy", REFUSED[kind])
    assert 401 in stop_token_ids(load_tokenizer(folder), folder)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", REFUSED)
def test_dpo_and_export_keep_it(tmp_path, kind, rank, monkeypatch):
    policy = model(tmp_path / "policy", REFUSED[kind])
    inputs = {"model": policy, "pairs": write_pairs(tmp_path / "pairs", random_pairs(8))}
    run_here(make_job("reference", ReferenceConfig(), inputs, tmp_path / "reference", max_length=99))
    inputs = {"policy": policy, "pairs": tmp_path / "pairs", "reference": tmp_path / "reference"}
    # A checkpoint after every step saves the model too.
    section = DpoConfig(batch_size=4, max_length=99, save_steps=1, lora=LoraConfig(rank=rank))
    outcome = run_ranks(make_job("dpo", section, inputs, tmp_path / "dpo", gradient_checkpointing=False))
    assert outcome.counts["steps"] == 4
    assert_kept(policy, tmp_path / "dpo" / "model")
    for dtype in ("float32", "bfloat16"):
        export(tmp_path / "dpo" / "model", tmp_path / dtype, dtype, monkeypatch)
        assert_kept(policy, tmp_path / dtype / "model")


def test_sft_keeps_it(tmp_path):
    policy = model(tmp_path / "policy", REFUSED["refused at loading"])
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "red"}]
    (tmp_path / "data.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 4)
    section = SftConfig(batch_size=2, micro_batch_size=2, packing=False, held_out_share=0.0)
    inputs = {"model": policy, "data": tmp_path / "data.jsonl"}
    run_ranks(make_job("sft", section, inputs, tmp_path / "sft", gradient_checkpointing=False))
    assert_kept(policy, tmp_path / "sft" / "model")


@pytest.mark.parametrize("make", [tiny_llama, tiny_reward_model])
def test_a_judge_keeps_it(tmp_path, make):
    base = model(tmp_path / "base", REFUSED["refused at loading"], make)
    rows = [{"prompt": f"q {i}", "chosen": "red", "rejected": "cat"} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = RewardModelConfig(batch_size=4, micro_batch_size=4, held_out_share=0.0)
    inputs = {"model": base, "data": tmp_path / "data.jsonl"}
    run_ranks(make_job("reward_model", section, inputs, tmp_path / "out", gradient_checkpointing=False))
    assert_kept(base, tmp_path / "out" / "model")


def test_sampling_settings_in_config_json_end_nothing_either(tmp_path):
    """Without the file transformers takes what an old config.json has of it."""
    from transformers import AutoModelForCausalLM

    from rlhf.training.weights import export_model, load_model

    policy = tiny_llama(tmp_path / "policy")
    (policy / "generation_config.json").unlink()
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(config | {"temperature": 0.9, "top_k": 3}))
    export_model(load_model(policy, "float32"), policy, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id
    assert stop_token_ids(load_tokenizer(policy), policy) == stop_token_ids(
        load_tokenizer(tmp_path / "out"), tmp_path / "out"
    )


def test_templates_that_the_tokenizer_lists_outlive_a_new_main_one(tmp_path):
    """With sft.chat_template the tokenizer is saved anew, and would forget the others."""
    from rlhf.training.weights import export_model, load_model

    policy = tiny_llama(tmp_path / "policy")
    main = (policy / "chat_template.jinja").read_text()
    (policy / "chat_template.jinja").unlink()
    settings = json.loads((policy / "tokenizer_config.json").read_text())
    listed = [{"name": "default", "template": main}, {"name": "rag", "template": TEMPLATE}]
    listed.append({"name": "../../escaped", "template": TEMPLATE})
    (policy / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": listed}))
    trained = load_model(policy, "float32")
    export_model(trained, policy, tmp_path / "as_it_was")
    assert load_tokenizer(tmp_path / "as_it_was").chat_template == load_tokenizer(policy).chat_template
    new = load_tokenizer(policy, chat_template=main + "{# new #}")
    export_model(trained, policy, tmp_path / "new", tokenizer=new)
    templates = load_tokenizer(tmp_path / "new").chat_template
    assert templates == {"default": main + "{# new #}", "rag": TEMPLATE}
    assert not list(tmp_path.glob("**/escaped*"))


def test_an_export_holds_the_weights_once(tmp_path, monkeypatch):
    policy = tiny_llama(tmp_path / "policy")
    for name in ("consolidated.safetensors", "pytorch_model.bin", "model.gguf", "flax_model.msgpack"):
        shutil.copy(policy / "model.safetensors", policy / name)
    assert export(policy, tmp_path / "out", "bfloat16", monkeypatch).counts == {"weights": 1}
    exported = {path.name for path in (tmp_path / "out" / "model").iterdir()}
    assert "tokenizer.json" in exported and not exported & {
        path.name for path in policy.glob("*model.[bgm]*")
    }
    assert "consolidated.safetensors" not in exported
