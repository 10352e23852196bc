"""Models of several weight files: what is trained from one is written as several, and everything reads them."""

from __future__ import annotations

import gc
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

import rlhf.training.weights as weights
from rlhf.config.choices import Engine
from rlhf.config.schema import ReferenceConfig
from rlhf.config.stage_configs import ExportStage, GenerateStage
from rlhf.config.training import DpoConfig, RewardModelConfig, SftConfig
from rlhf.generation.choose_engine import load_sampler
from rlhf.generation.request import Request, Sampling
from rlhf.models.kinds import check_folder
from rlhf.models.weight_files import num_parameters, saved_dtype, second_copies, weight_files, weight_names
from rlhf.scoring.classifier_judge import ClassifierJudge
from rlhf.stages import export
from rlhf.training.weights import export_model, load_model, write_model
from tests.stage_runner import FakeWorker, make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, tiny_reward_model, write_pairs

LIMIT = 20_000
SMALL_FILES = f"import rlhf.training.weights as w; w.SHARD_BYTES = {LIMIT}"


def in_several_files(source, out, monkeypatch, **how):
    """A model folder written anew, in several files."""
    with monkeypatch.context() as patched:
        patched.setattr(weights, "SHARD_BYTES", LIMIT)
        export_model(load_model(source, torch.float32, **how), source, out)
    assert len(weight_files(out)) > 3
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    whole = tiny_llama(folder / "whole", 1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        policy = in_several_files(whole, folder / "policy", monkeypatch)
    inputs = {"model": policy, "pairs": write_pairs(folder / "pairs", random_pairs(8))}
    run_here(make_job("reference", ReferenceConfig(), inputs, folder / "reference", max_length=99))
    return folder


def all_weights(folder):
    """Every weight of the files that are loaded, each from one file alone."""
    values = {}
    for path in weight_files(folder):
        found = load_file(path)
        assert not values.keys() & found.keys()
        values |= found
    return values


def test_what_is_known_of_several_files_is_what_is_known_of_one(world):
    whole, policy = world / "whole", world / "policy"
    check_folder(policy, "model.path")
    assert (num_parameters(policy), saved_dtype(policy)) == (num_parameters(whole), "float32")
    assert weight_names(policy) == weight_names(whole) and second_copies(policy) == []
    index = json.loads((policy / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * num_parameters(whole)}
    expected = all_weights(whole)
    for name, value in all_weights(policy).items():
        assert torch.equal(value, expected[name]), name
    for path in weight_files(policy):
        largest = max(value.nbytes for value in load_file(path).values())
        assert path.stat().st_size < max(LIMIT, largest) + 4000


def test_a_model_below_the_limit_stays_one_file_with_the_bytes_it_always_had(world, tmp_path):
    model = load_model(world / "whole", torch.float32)
    model.save_pretrained(tmp_path / "as_ever")
    export_model(model, world / "whole", tmp_path / "now")
    names = [path.name for path in (tmp_path / "now").glob("*.safetensors*")]
    assert names == ["model.safetensors"]
    written = (tmp_path / "now" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "as_ever" / "model.safetensors").read_bytes()


def test_dpo_reads_and_writes_several_files_the_same_ones_under_zero_3(world, tmp_path):
    section = DpoConfig(learning_rate=1e-50, batch_size=8, max_length=99, gradient_checkpointing=False)
    inputs = {name: world / name for name in ("policy", "pairs", "reference")}
    for zero_stage in (2, 3):
        job = make_job(
            "dpo",
            section,
            inputs,
            tmp_path / str(zero_stage),
            compute={"zero_stage": zero_stage},
            dtype="bfloat16",  # so that the fp32 weights come from the files
            num_epochs=1,
        )
        run_ranks(job, hook=SMALL_FILES)
        for path in (world / "policy").glob("*.safetensors*"):
            written = tmp_path / str(zero_stage) / "model" / path.name
            assert written.read_bytes() == path.read_bytes(), path.name


def test_sft_and_a_judge_of_several_files(world, tmp_path):
    asked, answers = [{"role": "user", "content": "say"}], [{"role": "assistant", "content": "yes"}]
    other = [{"role": "assistant", "content": "no"}]
    rows = {
        "sft": {"messages": asked + answers},
        "reward_model": {"chosen": asked + answers, "rejected": asked + other},
    }
    sections = {"sft": SftConfig(packing=False), "reward_model": RewardModelConfig()}
    for stage, row in rows.items():
        (tmp_path / f"{stage}.jsonl").write_text(4 * (json.dumps(row) + "\n"))
        inputs = {"model": world / "policy", "data": tmp_path / f"{stage}.jsonl"}
        job = make_job(stage, sections[stage], inputs, tmp_path / stage, batch_size=4, num_epochs=1)
        run_ranks(job, hook=SMALL_FILES)
        assert len(weight_files(tmp_path / stage / "model")) > 3
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model" / "model")
    expected = all_weights(tmp_path / "reward_model" / "model")
    assert torch.equal(loaded.score.weight, expected["score.weight"])


def test_a_tokenizer_that_was_loaded_offline_gives_the_same_bytes(world, tmp_path):
    written = []
    for is_offline in (False, True):
        out = tmp_path / f"offline {is_offline}"
        tokenizer = AutoTokenizer.from_pretrained(world / "policy", local_files_only=is_offline)
        write_model(world / "policy", out, lambda folder: None, tokenizer=tokenizer)
        written.append((out / "tokenizer_config.json").read_bytes())
    assert written[0] == written[1]


def test_the_export_for_people_says_how_large_the_weights_are_now(world, tmp_path, monkeypatch):
    monkeypatch.setattr(export.card, "text", lambda card, dtype: "")
    job = make_job("export", ExportStage(), {"model": world / "policy"}, tmp_path, dtype="bfloat16")
    export.run(job, FakeWorker())
    exported = tmp_path / "model"
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * num_parameters(world / "policy")
    assert {value.dtype for value in all_weights(exported).values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert torch.equal(model.model.norm.weight, all_weights(exported)["model.norm.weight"])


def test_a_judge_scores_the_same(tmp_path, monkeypatch):
    whole = tiny_reward_model(tmp_path / "whole", 1)
    parts = in_several_files(whole, tmp_path / "parts", monkeypatch, reward_model=True)
    items = [([{"role": "user", "content": "Hi"}], answer) for answer in ("Hello!", "Go away", "")]
    assert ClassifierJudge(str(parts)).score(items) == ClassifierJudge(str(whole)).score(items)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_engine_samples_the_same(tmp_path, monkeypatch, engine):
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    whole = tiny_llama(tmp_path / "whole", 1, **shape)
    parts = in_several_files(whole, tmp_path / "parts", monkeypatch)
    config = GenerateStage(engine=Engine(engine), max_prompt_tokens=64, max_new_tokens=8)
    said = []
    for folder in (whole, parts):
        sampler = load_sampler(config, str(folder), 0, 64)
        requests = [Request([5, 6, token], 1.0, token) for token in range(10, 16)]
        said.append([candidate.token_ids for candidate in sampler.sample(requests, Sampling(8, 1.0, 0, [7]))])
        # Before the next one: an engine that is taken down takes vLLM's process groups along.
        del sampler
        gc.collect()
    assert said[0] == said[1]
