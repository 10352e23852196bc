"""A packed row in one call of FlashAttention against the same row sequence by sequence, on a GPU; else skipped."""

from __future__ import annotations

import pytest
import torch

from rlhf.launch.machine import visible_gpus
from rlhf.training import shared_attention
from rlhf.training.fused_norms import use_fused_norms
from rlhf.training.packed import pack, packed_logprobs
from rlhf.training.segment_attention import why_not_one_call
from rlhf.training.shared_attention import share_prompts
from tests.integration.training.test_packed import OF_FAMILY, of_family, one_by_one, values_and_gradients
from tests.integration.training.test_segment_attention import some_groups

pytestmark = pytest.mark.skipif(not visible_gpus(), reason="no NVIDIA GPU is visible")

WIDER = {"hidden_size": 64, "head_dim": 16}


def off_by(got, want):
    """The norm of what differs, as a share."""
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "mistral", "gemma3_text"])
def test_one_call_is_as_exact_as_sequence_by_sequence(monkeypatch, model_type):
    device = torch.device("cuda")
    if torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("the GPU is older than FlashAttention")
    calls = []
    prompts, responses = some_groups()
    exact_model = of_family(model_type, **(OF_FAMILY.get(model_type, {}) | WIDER)).to(device)
    model = of_family(model_type, **(OF_FAMILY.get(model_type, {}) | WIDER)).to(device, torch.bfloat16)
    with torch.device(device):
        exact = values_and_gradients(exact_model, lambda: one_by_one(exact_model, prompts, responses))
    assert share_prompts(model) == ""

    def computed(why):
        monkeypatch.setattr(shared_attention, "why_not_one_call", why)
        packed = pack(prompts, responses).to(device)
        with torch.device(device):
            return values_and_gradients(model, lambda: packed_logprobs(model, packed))

    def counted(*arguments, **named):
        calls.append(why_not_one_call(*arguments, **named))
        return calls[-1]

    at_once = computed(counted)
    assert calls and not any(calls)
    one_by_another = computed(lambda *arguments, **named: "to compare with")
    for got in (at_once, one_by_another):
        assert off_by(got[0].float(), exact[0].float()) < 0.01
    for name, gradient in exact[1].items():
        error = off_by(at_once[1][name].float(), gradient)
        assert error < 0.02 + 1.5 * off_by(one_by_another[1][name].float(), gradient), name


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_fused_norms_are_as_exact_as_the_models_own(model_type):
    device = torch.device("cuda")
    prompts, responses = some_groups()
    exact_model = of_family(model_type, **(OF_FAMILY.get(model_type, {}) | WIDER)).to(device)
    model = of_family(model_type, **(OF_FAMILY.get(model_type, {}) | WIDER)).to(device, torch.bfloat16)
    packed = pack(prompts, responses).to(device)
    assert share_prompts(model) == ""
    with torch.device(device):
        exact = values_and_gradients(exact_model, lambda: one_by_one(exact_model, prompts, responses))
        own = values_and_gradients(model, lambda: packed_logprobs(model, packed))
        assert use_fused_norms(model) > 0
        fused = values_and_gradients(model, lambda: packed_logprobs(model, packed))
    assert off_by(fused[0].float(), exact[0].float()) < 0.01
    for name, gradient in exact[1].items():
        error = off_by(fused[1][name].float(), gradient)
        assert error < 0.02 + 1.5 * off_by(own[1][name].float(), gradient), name
