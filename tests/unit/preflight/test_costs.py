"""The formulas of a plan, by examples that were computed by hand; every number has its unit beside it."""

import pytest

from rlhf.models.shape import Shape
from rlhf.preflight import costs
from rlhf.preflight.costs import Engines, Texts, Time
from rlhf.preflight.devices import GPUS, Machine, named_machine
from rlhf.preflight.shapes import layer_parameters, shape_of

# A layer has 2·10·10 (queries, output) + 2·10·5 (keys, values) + 3·10·20 (feed-forward) = 900 parameters.
SMALL = Shape(2800, 2, 10, 20, 2, 1, 5, 100)
TEXTS = Texts(prompts=3, responses=2, prompt_tokens=10, response_tokens=4)
LLAMA = shape_of("meta-llama/Meta-Llama-3-8B-Instruct", "model.path").shape


def machine(**changes):
    values = {
        "name": "a machine",
        "num_devices": 2,
        "is_cpu": False,
        "flops": 100.0,
        "fp32_flops": 10.0,
        "memory": 80e9,
        "bandwidth": 50.0,
        "source": "",
    }
    return Machine(**(values | changes))


def test_a_prompt_is_read_once_for_its_responses_or_once_for_each():
    assert layer_parameters(SMALL) == 900
    assert TEXTS.tokens == 3 * (10 + 2 * 4) == 54
    assert TEXTS.of_responses == 24
    # 10 tokens look at 5 each on average, 8 tokens of responses at 12 each.
    assert TEXTS.attended == 3 * (50 + 96) == 438
    apart = Texts(3, 2, 10, 4, shared=False)
    assert (apart.tokens, apart.attended) == (84, 3 * (100 + 96))


def test_flops_of_the_passes():
    # Layers 2·1800·54, attention 4·2 layers·10 numbers·438, head 2·100·10 for 24 tokens.
    assert costs.forward_flops(SMALL, TEXTS, 24) == 194_400 + 35_040 + 48_000
    assert costs.training_flops(100, gradient_checkpointing=False) == 300
    assert costs.training_flops(100, gradient_checkpointing=True) == 400
    assert costs.training_flops(100, gradient_checkpointing=False, lora=True) == 200
    assert costs.training_flops(100, gradient_checkpointing=True, lora=True) == 300


def test_the_rules_of_thumb_come_out_for_a_real_model():
    assert LLAMA.parameters == pytest.approx(8.03e9, rel=1e-3)
    short = Texts(1, 1, 0, 1000)
    forward = costs.forward_flops(LLAMA, short, 1000)
    # 2·P·T without the embeddings, which are looked up, and a little for attention.
    assert 1.0 < forward / (2 * 7.50e9 * 1000) < 1.05
    assert costs.training_flops(forward, False) / forward == 3


def test_seconds_of_flops():
    time = costs.computing(machine(), 900, share=0.45, devices=2, fp32=False)
    assert (time.planned, time.floor) == (pytest.approx(10.0), 4.5)
    # Without tensor cores.
    assert costs.computing(machine(), 900, share=0.45, devices=2, fp32=True).floor == 45
    on_cpu = costs.computing(machine(is_cpu=True), 900, share=0.45, devices=1, fp32=True)
    assert (on_cpu.planned, on_cpu.floor) == (pytest.approx(90 / costs.CPU_SHARE), 90)
    assert Time(1, 2) + Time(3, 4) == Time(4, 6)


def engines(**changes):
    values = {
        "workers": 1,
        "tensor_parallel": 1,
        "memory": 72e9,
        "max_new_tokens": 550,
        "bytes_each": 2,
        "most": 256,
    }
    return Engines(**(values | changes))


def test_responses_that_are_sampled_together_are_as_many_as_fit():
    texts = Texts(1000, 8, 200, 550)
    # 2 (keys, values) · 32 layers · 8 heads · 128 numbers · 2 bytes.
    assert costs.cache_bytes(LLAMA, 2) == 131_072
    assert costs.sequences_at_once(LLAMA, texts, engines()) == 256
    # (72 − 16.06) GB over 475 tokens of 131 kB.
    assert costs.sequences_at_once(LLAMA, texts, engines(most=1024)) == pytest.approx(898.5, abs=1)
    assert costs.sequences_at_once(LLAMA, Texts(10, 4, 200, 550), engines(workers=2)) == 20
    assert costs.sequences_at_once(LLAMA, texts, engines(memory=10e9)) == 1, "weights that do not fit"


def test_sampling_reads_all_weights_and_caches_for_every_token():
    texts = Texts(32, 8, 0, 550)
    time = costs.sampling(named_machine("1xH100"), LLAMA, texts, engines())
    # 550 steps of 256 responses: 16.06 GB of weights and 256 · 275 tokens · 131 kB, over 3.35 TB/s.
    floor = 550 * (16.06e9 + 256 * 275 * 131_072) / 3.35e12
    assert time.floor == pytest.approx(floor, rel=1e-3) == pytest.approx(4.15, abs=0.01)
    host = 550 * (costs.SAMPLING_STEP_SECONDS + 256 * costs.SAMPLING_SEQUENCE_SECONDS)
    # 256 tokens' products are 1.92 TFLOP, at 0.45 of 989 TFLOP/s 8.6 ms; the weights take 8.0 ms at 0.6.
    busy = 550 * (256 * 2 * 7.504e9 / (0.45 * 989.4e12) + 256 * 275 * 131_072 / (0.6 * 3.35e12))
    assert time.planned == pytest.approx(busy + host, rel=1e-3)


def test_the_longest_response_is_waited_for():
    texts = Texts(32, 8, 0, 550)
    to_the_end = costs.sampling(named_machine("1xH100"), LLAMA, texts, engines(max_new_tokens=2048))
    without = costs.sampling(named_machine("1xH100"), LLAMA, texts, engines())
    step = 16.06e9 / (0.6 * 3.35e12) + costs.SAMPLING_STEP_SECONDS + costs.SAMPLING_SEQUENCE_SECONDS
    assert to_the_end.planned - without.planned == pytest.approx(1498 * step, rel=1e-2)
    assert to_the_end.floor == without.floor


def test_engines_of_a_gpu_are_their_own_and_those_of_a_cpu_share_it():
    texts = Texts(32, 8, 10, 50)
    one = costs.sampling(named_machine("2xH100"), LLAMA, texts, engines())
    two = costs.sampling(named_machine("2xH100"), LLAMA, texts, engines(workers=2))
    assert two.floor < one.floor
    cpu = named_machine("2xcpu")
    alone = costs.sampling(cpu, LLAMA, texts, engines(bytes_each=4, memory=100e9))
    shared = costs.sampling(cpu, LLAMA, texts, engines(bytes_each=4, memory=100e9, workers=2))
    assert shared.floor >= alone.floor * 0.99


def test_files_starts_and_steps():
    # 112 GB: 12 bytes of fp32 weights and Adam's moments, 2 of bf16; the latter not under ZeRO-3.
    assert costs.checkpoint_bytes(LLAMA, 2, zero_stage=2) == pytest.approx(112.4e9, rel=1e-3)
    assert costs.checkpoint_bytes(LLAMA, 2, zero_stage=3) == pytest.approx(96.4e9, rel=1e-3)
    assert costs.writing(1.9e9).planned == pytest.approx(1.9 + 1.0)
    assert costs.writing(1.9e9, cores=2).planned == pytest.approx(1.9 + 0.5)
    assert costs.starting(machine(), "sampling", 4e9).planned == costs.START_SECONDS["sampling"] + 2
    assert costs.starting(machine(is_cpu=True), "single").planned == costs.START_SECONDS_CPU["single"]
    assert costs.num_steps(320, 16, 2) == 40 and costs.num_steps(321, 16, 2) == 42


@pytest.mark.parametrize(
    ("hardware", "most"),
    [("1xH100", 1024), ("1xH200", 1024), ("1xA100-80", 256), ("1xL40S", 256), ("2xcpu", 512)],
)
def test_responses_together_are_limited_as_vllm_does(hardware, most):
    assert costs.most_sequences(named_machine(hardware)) == most


def test_the_figures_of_the_data_sheets():
    assert {name: (gpu.flops, gpu.memory, gpu.bandwidth) for name, gpu in GPUS.items()} == {
        "A100-40": (312e12, 40e9, 1.555e12),
        "A100-80": (312e12, 80e9, 2.039e12),
        "H100": (989.4e12, 80e9, 3.35e12),
        "H200": (989.4e12, 141e9, 4.8e12),
        "L40S": (362.05e12, 48e9, 0.864e12),
        "RTX4090": (165.2e12, 24e9, 1.008e12),
    }
    assert all(gpu.source for gpu in GPUS.values())
