"""The formulas of what `dpo` and `reference` hold: what each setting changes, and by how much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf.models.shape import Shape
from rlhf.training.memory_forecast import (
    FP32,
    KEPT_LOGITS,
    HowTrained,
    default_tokens,
    dpo_memory,
    reference_memory,
    rows_of_chunk,
    trained_parameters,
)

EIGHT = Shape(8.03e9, 32, 4096, 14336, 32, 8, 128, 128_256)
SMALL = Shape(1e6, 2, 64, 128, 4, 4, 16, 100)
ON_GPUS = HowTrained(2, 16384, 4096, ranks=8, on_gpu=True)
HERE = HowTrained(4, 2048, 1024)


def test_weights_gradients_and_adam_are_shared_out():
    two = dpo_memory(EIGHT, ON_GPUS)
    three = dpo_memory(EIGHT, replace(ON_GPUS, zero_stage=3))
    assert two.weights == 2 * 8.03e9
    assert three.weights == 2 * 8.03e9 / 8
    assert two.gradients == three.gradients == 4 * 8.03e9 / 8
    assert two.adam == three.adam == 12 * 8.03e9 / 8
    assert three.buffers > two.buffers


def test_the_outside_estimate_of_a_default_iteration_is_met():
    """54 to 58 GB a GPU in DPO of an 8B model on eight of them, with the logits of 16384 tokens kept or not."""
    assert 40e9 < dpo_memory(EIGHT, ON_GPUS).peak < 60e9


def test_an_offloaded_optimizer_takes_nothing_of_a_gpu():
    offloaded = dpo_memory(EIGHT, replace(ON_GPUS, offload_optimizer=True))
    assert (offloaded.gradients, offloaded.adam, offloaded.step) == (0, 0, 0)
    # On a CPU it lies in the same memory as before.
    assert dpo_memory(SMALL, replace(HERE, offload_optimizer=True)) == dpo_memory(SMALL, HERE)


def test_adapters_leave_the_weights_alone():
    lora = replace(ON_GPUS, lora_rank=32)
    memory = dpo_memory(EIGHT, lora)
    # As peft counts them for Llama-3-8B with all linear layers.
    assert trained_parameters(EIGHT, lora) == 83_886_080
    assert memory.adam == 12 * 83_886_080 / 8
    assert memory.weights == 2 * 8.03e9


@pytest.mark.parametrize("on_gpu", [True, False])
def test_checkpointing_keeps_a_layers_input_alone(on_gpu):
    kept = replace(HERE, gradient_checkpointing=False, on_gpu=on_gpu)
    again = replace(HERE, on_gpu=on_gpu)
    deep = replace(SMALL, layers=50)
    assert dpo_memory(deep, again).activations < dpo_memory(deep, kept).activations / 2
    per_layer = dpo_memory(replace(SMALL, layers=51), again).activations - dpo_memory(deep, again).activations
    assert (per_layer == 2048 * 4 * 64) == on_gpu  # on a CPU fragments come on top


def test_a_pass_is_as_large_as_the_longest_pair_at_least():
    assert HERE.tokens == 2048
    assert dpo_memory(SMALL, replace(HERE, longest_pair=5000)).activations == pytest.approx(
        dpo_memory(SMALL, HERE).activations * 5000 / 2048
    )


def test_logits_stop_growing_where_they_are_not_kept():
    def logits(vocabulary, tokens=2048):
        return dpo_memory(replace(SMALL, vocabulary=vocabulary), replace(HERE, batch_tokens=tokens)).logits

    limit = KEPT_LOGITS // FP32 // 2048
    head = 4 * 64
    assert logits(limit) - logits(limit - 1000) == pytest.approx(1000 * (4 * 2048 + head), rel=0.2)
    assert logits(limit + 1) < logits(limit) - 0.7 * KEPT_LOGITS
    assert logits(200_000, 1_000_000) == logits(200_000)


def test_logits_that_a_model_changes_are_kept_however_many():
    capped = replace(SMALL, vocabulary=200_000, changes_logits=True)
    assert dpo_memory(capped, HERE).logits > 3 * 4 * 2048 * 200_000
    assert reference_memory(capped, HERE).logits > 4 * 2048 * 200_000


def test_half_precision_adds_up_the_heads_gradient_in_fp32():
    wide = replace(SMALL, vocabulary=500_000)
    half = replace(HERE, bytes_per_weight=2)
    assert dpo_memory(wide, half).logits - dpo_memory(wide, HERE).logits == 2 * 500_000 * 64


def test_chunks_of_logits():
    assert rows_of_chunk(2**10, False) == 2**14
    assert rows_of_chunk(2**30, False) == 1
    assert rows_of_chunk(2**30, True) == 2048


def test_the_reference_keeps_nothing():
    memory = reference_memory(EIGHT, replace(ON_GPUS, ranks=1))
    assert memory.gradients == memory.adam == memory.step == memory.buffers == 0
    assert memory.weights == 2 * 8.03e9
    assert memory.peak < 25e9
    sharded = reference_memory(EIGHT, replace(ON_GPUS, zero_stage=3))
    assert sharded.weights == 2 * 8.03e9 / 8
    assert sharded.buffers > 0


def test_the_peak_is_of_a_pass_or_of_the_optimizers_step():
    memory = dpo_memory(SMALL, HERE)
    in_a_pass = memory.buffers + memory.activations + memory.logits
    assert memory.peak == memory.held + max(in_a_pass, memory.step + memory.fragments)
    large = dpo_memory(replace(SMALL, parameters=1e9), HERE)
    assert large.peak == large.held + large.step + large.fragments


def test_a_device_has_a_budget_that_suits_it():
    assert (default_tokens(False), default_tokens(True)) == (1536, 16384)
