"""RMSNorm in one kernel beside transformers' own: values and gradients, and which models have it."""

from __future__ import annotations

import pytest
import torch

from rlhf.training.fused_norms import FusedRMSNorm, use_fused_norms
from tests.integration.training.test_packed import OF_FAMILY, of_family

SAME = ["llama", "mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"]
OTHERS = ["gemma", "gemma2", "gemma3_text", "gpt2", "cohere"]
IDS = [[5, 9, 33, 7, 2, 61, 12, 50]]


def of_type(model_type):
    model = of_family(model_type, **OF_FAMILY.get(model_type, {}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # A norm's weights are ones at first, which would hide what they are multiplied with.
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def logits_and_gradients(model):
    model.zero_grad()
    logits = model(torch.tensor(IDS), use_cache=False).logits
    logits.float().logsumexp(-1).sum().backward()
    gradients = {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    return logits.detach(), gradients


def norms(model):
    return sum(type(module).__name__.endswith("RMSNorm") for module in model.modules())


@pytest.mark.parametrize("model_type", SAME)
def test_values_and_gradients_are_those_of_the_models_own(model_type):
    tolerance = 1e-5
    model = of_type(model_type)
    logits, gradients = logits_and_gradients(model)
    names = list(model.state_dict())
    number = norms(model)
    assert number > 0
    assert use_fused_norms(model) == number
    assert list(model.state_dict()) == names
    fused_logits, fused_gradients = logits_and_gradients(model)
    torch.testing.assert_close(fused_logits, logits, rtol=tolerance, atol=tolerance)
    assert fused_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            fused_gradients[name], gradient, rtol=0, atol=10 * tolerance * max(scale, 1e-3)
        )


def test_bf16_is_rounded_once():
    model = of_type("llama").to(torch.bfloat16)
    norm = next(module for module in model.modules() if type(module).__name__ == "LlamaRMSNorm")
    hidden = torch.randn(64, len(norm.weight), dtype=torch.bfloat16)
    exact = torch.nn.functional.rms_norm(
        hidden.double(), norm.weight.shape, norm.weight.double(), norm.variance_epsilon
    )
    twice = (norm(hidden).double() - exact).abs().mean()
    use_fused_norms(model)
    assert isinstance(norm, FusedRMSNorm)
    once = (norm(hidden).double() - exact).abs().mean()
    assert norm(hidden).dtype == torch.bfloat16
    assert once <= twice


@pytest.mark.parametrize("model_type", OTHERS)
def test_norms_of_another_formula_are_left_as_they_are(model_type):
    model = of_type(model_type)
    logits, _ = logits_and_gradients(model)
    assert use_fused_norms(model) == 0
    assert torch.equal(logits_and_gradients(model)[0], logits)


def test_code_of_a_models_own_is_not_trusted_by_its_name():
    class LlamaRMSNorm(torch.nn.Module):
        pass

    model = torch.nn.Sequential(LlamaRMSNorm())
    assert use_fused_norms(model) == 0
