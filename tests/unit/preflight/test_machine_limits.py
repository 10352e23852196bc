"""Estimates of disk and memory, what a CPU can do, and usual settings: each number at its boundary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.config.choices import Device, Dtype, Engine
from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.config.training import OtherJudge
from rlhf.errors import ConfigError
from rlhf.preflight import capacity, hardware
from rlhf.preflight import memory as memory_check
from rlhf.preflight.findings import Level, collect, finding, refusal, table
from rlhf.preflight.hyperparameters import hyperparameters
from tests.unit.refusals import model

OK, WARNING, ERROR = Level.ok, Level.warning, Level.error
LARGE = 1_000_000_000


def changed(settings):
    """The default config with other values at dotted keys."""
    cfg = Config()
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        setattr(value_at(cfg, section) if section else cfg, name, value)
    return cfg


def said(findings, text):
    """The level of the one finding that says so."""
    (one,) = [each for each in findings if text in each.text]
    return one.level


NONE = {"compute.device": Device.cpu}


@pytest.mark.parametrize(
    ("settings", "size", "text", "level"),
    [
        ({"dpo.learning_rate": 1e-8}, LARGE, "dpo.learning_rate=1e-08", OK),
        ({"dpo.learning_rate": 0.99e-8}, LARGE, "dpo.learning_rate=9.9e-09", WARNING),
        ({"dpo.learning_rate": 1e-5}, LARGE, "dpo.learning_rate=1e-05", OK),
        ({"dpo.learning_rate": 1.01e-5}, LARGE, "dpo.learning_rate=1.01e-05", WARNING),
        ({"dpo.learning_rate": 1.01e-5}, LARGE - 1, "dpo.learning_rate=1.01e-05", OK),
        ({"dpo.lora.rank": 1, "dpo.learning_rate": 1e-6}, 0, "dpo.learning_rate=1e-06 with LoRA", OK),
        ({"dpo.lora.rank": 1, "dpo.learning_rate": 0.9e-6}, 0, "dpo.learning_rate=9e-07 with LoRA", WARNING),
        ({"dpo.lora.rank": 1, "dpo.learning_rate": 1e-3}, 0, "dpo.learning_rate=0.001 with LoRA", OK),
        ({"dpo.lora.rank": 1, "dpo.learning_rate": 1.1e-3}, 0, "dpo.learning_rate=0.0011 with L", WARNING),
        ({"sft.data": "d", "sft.learning_rate": 1e-7}, LARGE, "sft.learning_rate=1e-07", OK),
        ({"sft.data": "d", "sft.learning_rate": 0.9e-7}, LARGE, "sft.learning_rate=9e-08", WARNING),
        ({"sft.data": "d", "sft.learning_rate": 1e-4}, LARGE, "sft.learning_rate=0.0001", OK),
        ({"sft.data": "d", "sft.learning_rate": 1.1e-4}, LARGE, "sft.learning_rate=0.00011", WARNING),
        ({"reward_model.data": "d", "reward_model.learning_rate": 1e-7}, LARGE, "reward_model.l", OK),
        ({"reward_model.data": "d", "reward_model.learning_rate": 0.9e-7}, LARGE, "reward_model.l", WARNING),
        ({"reward_model.data": "d", "reward_model.learning_rate": 1e-4}, LARGE, "reward_model.l", OK),
        ({"reward_model.data": "d", "reward_model.learning_rate": 1.1e-4}, LARGE, "reward_model.l", WARNING),
        ({"score.max_tokens": 1, "reward_model.rule": "a:b"}, 0, "score.max_tokens=1", OK),
    ],
)
def test_usual_settings(settings, size, text, level):
    sizes = {"model.path": size, "reward_model.path": size}
    assert said(hyperparameters(changed(NONE | settings), sizes), text) is level


@pytest.mark.parametrize(
    ("settings", "size", "is_said"),
    [
        ({}, LARGE, True),
        ({}, LARGE - 1, False),
        ({"dpo.lora.rank": 1}, LARGE, False),
        ({"dpo.learning_rate": 6e-7}, LARGE, False),
    ],
)
def test_the_recipes_batch_goes_with_its_rate(settings, size, is_said):
    found = hyperparameters(changed(NONE | settings), {"model.path": size})
    assert any("at the recipe's learning rate" in each.text for each in found) == is_said


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("owner/Llama-3-8B-Instruct", 8e9),
        ("owner/phi_1.5b_chat", 1.5e9),
        ("owner/Mixtral-8x7B", 7e9),
        ("owner/8B", 8e9),
        ("8B/model", None),
        ("owner/model-4bit", None),
        ("owner/v2.8beta", None),
        ("owner/small", None),
    ],
)
def test_a_name_says_how_large_a_model_is(path, size):
    assert capacity.approximate_size(path) == size


def test_weights_that_are_here_are_counted(tmp_path):
    assert capacity.approximate_size(str(model(tmp_path / "tiny-8B"))) == 8.0


SMALL = {"model.path": "o/a-1B", "reward_model.path": "o/b-2B"}


@pytest.mark.parametrize(
    ("settings", "gpus", "named"),
    [
        (SMALL, [], None),
        (SMALL | {"reward_model.path": "o/b-2.1B"}, [], ["reward_model.path=o/b-2.1B (about 2.1 billion"]),
        (SMALL | {"reward_model.path": "o/b-2.1B"}, ["0"], None),
        (SMALL | {"reward_model.path": "o/b-2.1B", "compute.device": Device.cpu}, [], None),
        (SMALL | {"reward_model.path": "o/b-2.1B", "compute.device": Device.cuda}, [], None),
        (SMALL | {"reward_model.path": "o/b-8B", "reward_model.url": "http://h"}, [], None),
        (SMALL | {"reward_model.path": "o/b-8B", "reward_model.rule": "a:b"}, [], None),
        (SMALL | {"model.path": "@world/8B"}, [], None),
        (SMALL | {"model.path": "o/unknown"}, [], None),
        (
            SMALL | {"model.path": "o/a-8B", "reward_model.path": "o/b-3B"},
            [],
            ["o/a-8B (about 8", " and rew"],
        ),
        (
            SMALL | {"reward_model.others": {"s": OtherJudge(path="o/c-3B"), "r": OtherJudge(rule="a:b")}},
            [],
            ["reward_model.others.s.path=o/c-3B"],
        ),
        (SMALL | {"evaluate.judges": {"e": "o/c-70B"}}, [], None),
    ],
)
def test_what_is_too_large_without_a_gpu(monkeypatch, settings, gpus, named):
    monkeypatch.setattr(capacity, "visible_gpus", lambda: gpus)
    if named is None:
        capacity.check_capacity(changed(settings))
        return
    with pytest.raises(ConfigError) as error:
        capacity.check_capacity(changed(settings))
    assert [phrase for phrase in named if phrase not in str(error.value)] == []


@pytest.fixture
def machine(monkeypatch):
    """A machine of 100 GB: set the number of GPUs and memory."""

    def of(gpus=0, memory=100e9):
        monkeypatch.setattr(memory_check, "check_capacity", lambda cfg: None)
        monkeypatch.setattr(memory_check, "gpus_of_run", lambda compute: ["0"] * gpus)
        monkeypatch.setattr(memory_check, "num_gpus_of_run", lambda compute: gpus)
        monkeypatch.setattr(memory_check, "memory", lambda devices: memory)

    return of


def needs(cfg, sizes, folders=None):
    """What each stage needs of what there is, as text."""
    folders = folders or dict.fromkeys(sizes, Path("nowhere"))
    found = list(memory_check.memory_of_stages(cfg, sizes, folders))
    texts = [each.text for each in found if each.text.startswith("memory for ")]
    return {text.split(",")[0].removeprefix("memory for "): text.split(": ")[1] for text in texts}


BOTH = {"model.path": 1e9, "reward_model.path": 3e9}


@pytest.mark.parametrize(
    ("settings", "gpus", "wanted"),
    [
        ({}, 0, {"generate": "2 GB of 100 GB", "score": "6 GB of 100 GB"}),
        ({}, 2, {"generate": "2 GB of 90 GB", "score": "6 GB of 100 GB"}),
        ({"model.dtype": Dtype.float32}, 0, {"generate": "4 GB of 100 GB"}),
        ({"reward_model.dtype": Dtype.float32}, 0, {"score": "12 GB of 100 GB"}),
        (
            {"generate.tensor_parallel_size": 2, "score.tensor_parallel_size": 3},
            2,
            {"generate": "1 GB of 90 GB"},
        ),
        ({"score.tensor_parallel_size": 3}, 2, {"score": "2 GB of 100 GB"}),
        ({"compute.num_inference_workers": 2}, 0, {"generate": "4 GB of 100 GB", "score": "12 GB of 100 GB"}),
        ({"compute.num_inference_workers": 2}, 2, {"generate": "2 GB of 90 GB"}),
    ],
)
def test_bytes_to_load(machine, settings, gpus, wanted):
    machine(gpus)
    loaded = needs(changed(settings), BOTH)
    assert {stage: loaded[stage] for stage in wanted} == wanted


def test_a_judge_elsewhere_and_one_of_unknown_size_need_nothing_here(machine):
    machine()
    assert "score" not in needs(changed({"reward_model.url": "http://h"}), BOTH)
    assert list(needs(Config(), {"reward_model.path": 1e9})) == ["score"]


def test_weights_that_are_here_say_their_dtype(tmp_path, machine):
    machine()
    folders = {"model.path": model(tmp_path / "policy")}
    assert needs(Config(), {"model.path": 1e9}, folders)["generate"] == "4 GB of 100 GB"


@pytest.mark.parametrize(
    ("memory", "level"), [(20e9, OK), (20e9 * 0.999, WARNING), (17e9, WARNING), (17e9 * 0.999, ERROR)]
)
def test_memory_that_nearly_fits_gets_a_warning(machine, memory, level):
    machine(1, memory)
    cfg = changed({"dpo.lora.rank": 1, "generate.gpu_memory_utilization": 1.0})
    found = memory_check.memory_of_stages(cfg, {"model.path": 8.5e9}, {"model.path": Path("nowhere")})
    assert said(found, "memory for generate") is level


def test_memory_of_unknown_size_is_said(machine):
    machine(memory=None)
    found = list(
        memory_check.memory_of_stages(Config(), {"model.path": 1e15}, {"model.path": Path("nowhere")})
    )
    assert found[0].level is WARNING and found[0].text == "0 GPUs"
    assert {each.level for each in found[1:]} == {OK}


def test_ranks_are_those_asked_for_else_the_gpus_else_one(machine):
    machine(4)
    assert memory_check.num_training_ranks(changed({"compute.num_training_ranks": 3})) == 3
    assert memory_check.num_training_ranks(Config()) == 4
    machine(0)
    assert memory_check.num_training_ranks(Config()) == 1


@pytest.mark.parametrize(
    ("least", "installed", "level"),
    [
        ("2.3", "2.3", OK),
        ("2.3", "2.3.0", OK),
        ("2.3", "2.2.9", WARNING),
        ("2.3", "2.10", OK),
        (None, "0.1", OK),
    ],
)
def test_a_version_is_held_against_the_lower_bound(tmp_path, monkeypatch, least, installed, level):
    monkeypatch.setattr(hardware, "VERSIONS", ("some",))
    monkeypatch.setattr(hardware, "_PYPROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(hardware, "_installed", lambda package: installed)
    if least is not None:
        hardware._PYPROJECT.write_text(f'"some>={least}"')
    cfg = changed({"generate.engine": Engine.transformers})
    assert [each.level for each in hardware.versions(cfg)] == [level]


@pytest.mark.parametrize("key", ["generate.engine", "score.engine"])
def test_vllm_is_looked_for_where_it_is_the_engine(monkeypatch, key):
    monkeypatch.setattr(hardware, "VERSIONS", ())
    monkeypatch.setattr(hardware, "_installed", lambda package: None)
    others = {"generate.engine": Engine.transformers, "score.engine": Engine.transformers}
    (found,) = hardware.versions(changed(others | {key: Engine.vllm}))
    assert found.text == "vllm is not installed" and "set generate.engine" in found.way_out
    assert list(hardware.versions(changed(others))) == []


def test_engine_arguments_are_looked_at_where_there_are_some(machine):
    machine()
    assert list(hardware.engine_arguments(Config())) == []
    arguments = {"generate.vllm_args": {"enforce_eager": True, "max_num_seqs": 4}}
    (found,) = hardware.engine_arguments(changed(arguments))
    assert (found.level, found.text) == (OK, "generate.vllm_args: enforce_eager, max_num_seqs")
    assert (
        list(hardware.engine_arguments(changed(arguments | {"generate.engine": Engine.transformers}))) == []
    )


def test_an_error_ends_at_its_first_sentence_outside_of_parentheses():
    found = refusal("a.json (see b. Then c) is wrong. Mend it.", WARNING)
    assert (found.text, found.way_out) == ("a.json (see b. Then c) is wrong.", "Mend it.")
    assert (found.level, refusal("Only one").text, refusal("x").level) == (WARNING, "Only one", ERROR)


def test_what_was_found_before_an_error_is_kept_under_its_subject():
    def check():
        yield finding(True, "fine", "never said")
        yield finding(False, "odd", "line one\nline two")
        raise ConfigError("Wrong. Way out.")

    found = collect("disk", check())
    assert [each.level for each in found] == [OK, WARNING, ERROR]
    assert {each.subject for each in found} == {"disk"}
    assert table(found).splitlines() == [
        "disk",
        "  ✓ fine",
        "  ⚠ odd",
        "      line one",
        "      line two",
        "  ✗ Wrong.",
        "      Way out.",
    ]


def test_lower_bounds_are_those_of_this_project():
    assert set(hardware.VERSIONS) <= set(hardware._least_versions())
    assert hardware._least_versions()["torch"] == "2.13"


LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.fixture
def eight(tmp_path):
    """What is known of an 8B model on the Hub: its config.json, and how many parameters it has."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return {"model.path": 8.03e9}, {"model.path": tmp_path}


def of_stage(found, stage):
    (one,) = [each for each in found if each.text.startswith(f"memory for {stage}, ")]
    return one


@pytest.mark.parametrize(
    ("settings", "gpus", "memory", "text", "level"),
    [
        # Above 85 % a smaller budget is taken; here the default one fits.
        ({}, 8, 85e9, "16384 tokens at a time: ", OK),
        ({}, 8, 56e9, "8192 tokens at a time: ", OK),
        # Nothing but the longest pair, whose 4048 tokens are 1000 of the prompt and less than two responses.
        ({}, 8, 36e9, "3096 tokens at a time: ", WARNING),
        ({}, 8, 30e9, " tokens at a time: ", ERROR),
        ({"dpo.batch_tokens": 60000}, 8, 85e9, "60000 tokens at a time: ", WARNING),
        ({"dpo.batch_tokens": 100}, 8, 85e9, "3096 tokens at a time: ", OK),
        ({"dpo.gradient_checkpointing": False, "dpo.batch_tokens": 16384}, 8, 85e9, "16384 tokens", WARNING),
        ({"compute.zero_stage": 3}, 8, 85e9, "16384 tokens at a time: ", OK),
        ({"compute.num_training_ranks": 2}, 0, 1000e9, "3096 tokens at a time: ", OK),
    ],
)
def test_memory_of_dpo_counts_what_batches_take(machine, eight, settings, gpus, memory, text, level):
    machine(gpus, memory)
    cfg = changed({"dpo.max_length": 2048, "generate.max_new_tokens": 1048} | settings)
    found = of_stage(memory_check.memory_of_stages(cfg, *eight), "dpo")
    assert text in found.text
    assert found.level is level


def test_where_the_longest_pair_does_not_fit_every_way_out_is_named(machine, eight):
    machine(8, 36e9)
    cfg = changed({"dpo.max_length": 2048, "generate.max_new_tokens": 1048})
    found = of_stage(memory_check.memory_of_stages(cfg, *eight), "dpo")
    for way_out in ("offload_optimizer", "zero_stage=3", "lora.rank=32", "dpo.max_length", "ranks"):
        assert way_out in found.way_out


def test_memory_of_the_reference_counts_what_batches_take(machine, eight):
    machine(1, 80e9)
    found = of_stage(memory_check.memory_of_stages(Config(), *eight), "reference")
    assert "16384 tokens at a time" in found.text and found.level is OK
    machine(1, 17e9)
    found = of_stage(memory_check.memory_of_stages(Config(), *eight), "reference")
    assert "2048 tokens at a time" in found.text and found.level is WARNING


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, 2 * 2048),
        ({"generate.max_new_tokens": 500}, 1000 + 2 * 500),
        ({"generate.max_new_tokens": 1500}, 548 + 2 * 1500),
        ({"generate.max_new_tokens": 500, "generate.max_prompt_tokens": 100}, 100 + 2 * 500),
        ({"generate.max_new_tokens": 500, "pair.data": "pairs.jsonl"}, 2 * 2048),
    ],
)
def test_the_longest_pair_that_settings_allow(settings, tokens):
    assert memory_check.longest_pair(changed(settings)) == tokens
