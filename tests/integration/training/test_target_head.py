"""Log-probabilities out of the head, without keeping logits: the same values and gradients."""

from __future__ import annotations

import json

import pytest
import torch

from rlhf.config.schema import ReferenceConfig
from rlhf.config.training import DpoConfig
from rlhf.training import memory_forecast, shared_attention, target_head
from rlhf.training.packed import pack, packed_logprobs
from rlhf.training.response_batches import batching_of
from rlhf.training.target_head import TargetHead, predicting, use_target_head
from tests.integration.training.test_packed import (
    OF_FAMILY,
    assert_equal,
    groups,
    of_family,
    one_by_one,
    values_and_gradients,
)
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs

__all__ = ["groups"]

NO_LOGITS = """
from rlhf.training import memory_forecast, target_head
memory_forecast.KEPT_LOGITS = 0
memory_forecast._CHUNK = 2**14
assert target_head.memory_forecast is memory_forecast
"""

KEEPS_ITS_LOGITS = {"cohere", "cohere2", "gemma2", "granite"}
"""Families that cap or scale logits after the head."""
CHANGES = OF_FAMILY | {"granite": {"logits_scaling": 8.0}}


@pytest.fixture
def no_logits(monkeypatch):
    """None are kept, and a chunk is a few rows."""
    monkeypatch.setattr(memory_forecast, "KEPT_LOGITS", 0)
    monkeypatch.setattr(memory_forecast, "_CHUNK", 3 * 97)


@pytest.mark.parametrize("model_type", sorted(shared_attention._TRIED))
def test_families_equal_the_plain_computation(groups, no_logits, model_type):
    is_routed = model_type in ("mixtral", "qwen2_moe", "qwen3_moe")
    model = of_family(model_type, **CHANGES.get(model_type, {}))
    model.to(torch.float32 if is_routed else torch.float64)
    model.set_attn_implementation("eager" if model_type == "gemma2" else "sdpa")
    prompts, responses = groups
    want = values_and_gradients(model, lambda: one_by_one(model, prompts, responses))
    batching_of(model, None, on_gpu=False)
    assert isinstance(model.get_output_embeddings(), TargetHead) == (model_type not in KEEPS_ITS_LOGITS)
    got = values_and_gradients(model, lambda: packed_logprobs(model, pack(prompts, responses)))
    assert_equal(got, want, 1e-5 if is_routed or model_type == "gemma2" else 1e-9)


@pytest.mark.parametrize(("kept", "rank"), [(0, 2), (2**20, 3)])
def test_logits_are_kept_while_they_are_few(groups, monkeypatch, kept, rank):
    monkeypatch.setattr(memory_forecast, "KEPT_LOGITS", kept)
    model = of_family("llama")
    use_target_head(model)
    prompts, responses = groups
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda *call: shapes.append(call[2].shape))
    packed = pack(prompts, responses)
    packed_logprobs(model, packed)
    assert [len(shape) for shape in shapes] == [rank]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradient(no_logits, dtype, bias):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 97, bias=bias).to(dtype)
    hidden = torch.randn(1, 11, 16).to(dtype).requires_grad_()
    targets = torch.randint(97, (11,))
    weights = torch.randn(11, dtype=torch.float64)

    wide = hidden.detach().double().requires_grad_()
    plain = torch.nn.Linear(16, 97, bias=bias).double()
    plain.load_state_dict({name: value.double() for name, value in head.state_dict().items()})
    want = plain(wide)[0].log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (want * weights).sum().backward()

    head.__class__ = TargetHead
    with predicting(targets):
        got = head(hidden)[0]
    (got * weights).sum().backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(got.double(), want, rtol=tolerance, atol=tolerance)
    assert torch.allclose(hidden.grad.double(), wide.grad, rtol=tolerance, atol=tolerance)
    for name, parameter in head.named_parameters():
        expected = plain.get_parameter(name).grad
        assert torch.allclose(parameter.grad.double(), expected, rtol=tolerance, atol=tolerance), name


def test_gradients_of_many_chunks_add_up_in_fp32(monkeypatch):
    """A thousand equal rows: in bf16 their sum would stop to grow at 256 times one of them."""
    monkeypatch.setattr(memory_forecast, "KEPT_LOGITS", 0)
    monkeypatch.setattr(memory_forecast, "_CHUNK", 1)
    head = torch.nn.Linear(4, 8, bias=False).bfloat16()
    head.__class__ = TargetHead
    hidden = torch.ones(1, 1000, 4, dtype=torch.bfloat16)
    with predicting(torch.zeros(1000, dtype=torch.long)):
        head(hidden).sum().backward()
    many = head.weight.grad.clone()
    head.weight.grad = None
    with predicting(torch.zeros(1, dtype=torch.long)):
        head(hidden[:, :1]).sum().backward()
    assert torch.allclose(many.float(), 1000 * head.weight.grad.float(), rtol=1e-2)


def test_frozen_heads_get_no_gradient(no_logits):
    head = torch.nn.Linear(4, 8).requires_grad_(False)
    head.__class__ = TargetHead
    hidden = torch.ones(1, 5, 4, requires_grad=True)
    with predicting(torch.zeros(5, dtype=torch.long)):
        head(hidden).sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_other_calls_get_logits(no_logits):
    model = of_family("llama")
    ids = torch.tensor([[3, 4, 5]])
    before = model(ids).logits
    use_target_head(model)
    assert torch.equal(model(ids).logits, before)
    assert target_head._targets.get() is None


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    policy = tiny_llama(folder / "policy", 1)
    pairs = write_pairs(folder / "pairs", random_pairs(16))
    inputs = {"model": policy, "pairs": pairs}
    run_here(make_job("reference", ReferenceConfig(), inputs, folder / "reference", max_length=50))
    return folder


@pytest.mark.parametrize(
    ("ranks", "stage", "config"),
    [
        (1, 2, {}),
        (2, 3, {"gradient_checkpointing": True, "batch_tokens": 200}),
        (2, 3, {"lora": {"rank": 4}}),
    ],
    ids=["zero2", "zero3", "lora"],
)
def test_the_curve_is_the_same_without_kept_logits(world, tmp_path, ranks, stage, config):
    section = DpoConfig(learning_rate=1e-3, batch_size=8, max_length=50, gradient_checkpointing=False)
    inputs = {"policy": world / "policy", "pairs": world / "pairs", "reference": world / "reference"}
    curves = []
    for name, hook in (("kept", ""), ("made_again", NO_LOGITS)):
        out = tmp_path / name
        run_ranks(make_job("dpo", section, inputs, out, compute={"zero_stage": stage}, **config), ranks, hook)
        curves.append([json.loads(line) for line in (out / "metrics.jsonl").open()])
    assert len(curves[0]) == len(curves[1]) == 4
    for kept, made_again in zip(*curves, strict=True):
        assert made_again["loss"] == pytest.approx(kept["loss"], abs=2e-6)
        assert made_again["grad_norm"] == pytest.approx(kept["grad_norm"], rel=1e-4)
