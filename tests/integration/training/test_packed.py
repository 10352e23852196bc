"""Packed groups, a prompt once for all its responses, against each sequence computed by itself."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.training import memory_forecast, shared_attention, target_logprobs
from rlhf.training.packed import first_fit, pack, packed_logprobs
from rlhf.training.response_batches import Batching, batch_logprobs, batching_of
from rlhf.training.shared_attention import NAME, share_prompts

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 7}
"""Shorter than the longest sequences below."""
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
OF_FAMILY = {
    "cohere2": WINDOW,
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOW},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOW},
    "mistral": WINDOW,
    "mixtral": EXPERTS,
    "phi3": WINDOW,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen2_moe": {"shared_expert_intermediate_size": 16, **EXPERTS},
    "qwen3": {"head_dim": 8, "use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3_moe": {"head_dim": 8, **EXPERTS},
    "starcoder2": WINDOW,
}
NOT_SHARED = {
    "bloom": {},
    "falcon": {},
    "gpt_oss": EXPERTS,
    "llama4_text": {"attention_chunk_size": 8},
    "mamba": {},
}


def of_family(model_type, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SMALL | changes))
    return AutoModelForCausalLM.from_config(config).eval()


def tokens(rng, number):
    return [rng.randrange(3, 97) for _ in range(number)]


@pytest.fixture(scope="module")
def groups():
    rng = random.Random(0)
    prompts = [tokens(rng, number) for number in (5, 12, 1)]
    lengths = [(6, 9), (20, 3, 1), (4, 0)]
    return prompts, [[tokens(rng, number) for number in its] for its in lengths]


def one_by_one(model, prompts, responses):
    values = []
    for prompt, its_responses in zip(prompts, responses, strict=True):
        for response in its_responses:
            logits = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
            logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            picked = logprobs.gather(1, torch.tensor(response, dtype=torch.long)[:, None])
            values.append(picked.sum())
    return torch.stack(values)


def values_and_gradients(model, compute):
    model.zero_grad()
    values = compute()
    # Each response with a gradient of its own size and sign.
    weights = torch.tensor([(-1) ** place * (1 + place) for place in range(len(values))])
    (values * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return values.detach(), gradients


def assert_equal(got, want, tolerance):
    assert torch.allclose(got[0], want[0], rtol=tolerance, atol=tolerance)
    assert got[1].keys() == want[1].keys()
    # The models' norms go through fp32 in any dtype.
    tolerance = max(tolerance, 1e-6)
    for name, gradient in want[1].items():
        largest = gradient.abs().max()
        assert (got[1][name] - gradient).abs().max() <= tolerance * (1 + largest), name


@pytest.mark.parametrize("model_type", sorted(shared_attention._TRIED))
def test_families_equal_the_plain_computation(groups, model_type):
    # Routed experts have no float64 kernel.
    is_routed = model_type in ("mixtral", "qwen2_moe", "qwen3_moe")
    dtype = torch.float32 if is_routed else torch.float64
    # Gemma 2's own attention takes the softmax in fp32 whatever the dtype is.
    in_fp32 = is_routed or model_type == "gemma2"
    tolerance = 1e-5 if in_fp32 else 1e-9
    model = of_family(model_type, **OF_FAMILY.get(model_type, {})).to(dtype)
    model.set_attn_implementation("eager" if model_type == "gemma2" else "sdpa")
    prompts, responses = groups
    want = values_and_gradients(model, lambda: one_by_one(model, prompts, responses))
    assert share_prompts(model) == ""
    got = values_and_gradients(model, lambda: packed_logprobs(model, pack(prompts, responses)))
    assert_equal(got, want, tolerance)


@pytest.mark.parametrize("model_type", NOT_SHARED)
def test_other_families_are_left_as_they_are(model_type):
    model = of_family(model_type, **NOT_SHARED[model_type])
    before = model.config._attn_implementation
    assert model_type in share_prompts(model)
    assert model.config._attn_implementation == before


def test_layers_of_another_kind_are_not_shared():
    model = of_family("llama")
    model.config.layer_types = ["full_attention", "conv"]
    assert "conv" in share_prompts(model)


def test_code_of_a_models_own_is_not_trusted_by_its_name():
    model = of_family("llama")
    own = type("LlamaForCausalLM", (type(model),), {"__module__": "transformers_modules.modeling"})
    model.__class__ = own
    assert "code of its own" in share_prompts(model)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mistral"])
def test_other_calls_of_the_model_stay_what_they_were(groups, model_type):
    model = of_family(model_type, **OF_FAMILY.get(model_type, {})).double()
    model.set_attn_implementation("eager" if model_type == "gemma2" else "sdpa")
    ids = torch.tensor([tokens(random.Random(1), 19), tokens(random.Random(2), 19)])
    before = model(ids).logits
    share_prompts(model)
    assert torch.allclose(model(ids).logits, before, atol=1e-6 if model_type == "gemma2" else 1e-12)


@pytest.mark.parametrize("batch", [{"attention_mask": torch.ones(1, 1, 3, 3)}, {"s_aux": torch.ones(2)}])
def test_attention_that_asks_for_more_is_refused(batch):
    mask = batch.pop("attention_mask", None)
    states = torch.ones(1, 2, 3, 4)
    with pytest.raises(shared_attention.CannotShareError):
        shared_attention.shared_prompt_attention(torch.nn.Module(), states, states, states, mask, **batch)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing(groups, checkpointing):
    model = of_family("llama").double()
    prompts, responses = groups
    want = values_and_gradients(model, lambda: one_by_one(model, prompts, responses))
    share_prompts(model)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    got = values_and_gradients(model, lambda: packed_logprobs(model, pack(prompts, responses)))
    assert_equal(got, want, 1e-9)


def test_padded_batches_give_the_same(groups):
    model = of_family("llama")
    prompts, responses = groups
    responses = [its[:2] for its in responses[:2]]
    padded = batch_logprobs(model, Batching(False, 1).batch(prompts[:2], responses))
    share_prompts(model)
    packed = batch_logprobs(model, Batching(True, 1).batch(prompts[:2], responses))
    assert torch.allclose(padded, packed, rtol=1e-5)


def test_fifty_steps_are_those_of_padded_batches():
    rng = random.Random(3)
    pairs = []
    for _ in range(60):
        lengths = [rng.randrange(1, 12) for _ in range(3)]
        pairs.append([tokens(rng, number) for number in lengths])

    def curve(packed):
        model = of_family("qwen3", head_dim=8)
        if packed:
            assert share_prompts(model) == ""
        batching = Batching(packed, 60)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for step in range(50):
            members = [pairs[(6 * step + number) % len(pairs)] for number in range(6)]
            lengths = [(len(prompt), (len(chosen), len(rejected))) for prompt, chosen, rejected in members]
            total = 0.0
            for indices in batching.bins(lengths):
                prompts = [members[index][0] for index in indices]
                batch = batching.batch(prompts, [members[index][1:] for index in indices])
                chosen_B, rejected_B = batch_logprobs(model, batch).view(-1, 2).unbind(1)
                loss = -torch.nn.functional.logsigmoid(0.1 * (chosen_B - rejected_B)).sum() / 6
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
        return losses

    packed, padded = curve(True), curve(False)
    assert packed == pytest.approx(padded, rel=1e-4)
    assert sum(packed[-10:]) < sum(packed[:10])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 150, 2**24])
def test_target_logprobs_and_their_gradient(monkeypatch, dtype, chunk):
    monkeypatch.setattr(memory_forecast, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    start = (5 * torch.randn(7, 50, generator=generator)).to(dtype).double()
    targets = torch.randint(50, (7,), generator=generator)
    weights = torch.randn(7, generator=generator).double()

    plain = start.clone().requires_grad_()
    want = plain.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (want * weights).sum().backward()

    logits = start.to(dtype).requires_grad_()
    # As a head makes them: no leaf, which must keep its values.
    got = target_logprobs.target_logprobs(logits * 1, targets)
    (got * weights).sum().backward()
    value, gradient = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 1e-5)}.get(dtype, (1e-5, 1e-2))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(got.double(), want, rtol=value, atol=value)
    assert torch.allclose(logits.grad.double(), plain.grad, rtol=gradient, atol=gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_become_their_gradient_where_they_lie(dtype):
    logits = torch.randn(3, 5).to(dtype).requires_grad_()
    made = logits * 1
    target_logprobs.target_logprobs(made, torch.tensor([0, 4, 2])).sum().backward()
    assert torch.equal(made, logits.grad)


def test_bf16_logits_are_summed_in_fp32():
    def constant(input_ids, logits_to_keep, **_):
        logits = torch.zeros(1, len(logits_to_keep), 3, dtype=torch.bfloat16)
        return type("Output", (), {"logits": logits})

    (value,) = packed_logprobs(constant, pack([[1]], [[[1] * 1001]])).tolist()
    assert value == pytest.approx(-1099.711, rel=1e-5)  # −1001 ln 3; bf16 has steps of 8 there


def test_first_fit_keeps_the_budget_and_loses_nothing():
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randrange(1, 130) for _ in range(rng.randrange(1, 40))]
        bins = first_fit(lengths, 100)
        assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
        for members in bins:
            assert len(members) == 1 or sum(lengths[item] for item in members) <= 100
        # No two bins would go into one.
        totals = sorted(sum(lengths[item] for item in members) for members in bins)
        assert len(totals) == 1 or totals[0] + totals[1] > 100


def test_first_fit_fills_a_bin_to_the_last_token():
    assert first_fit([60, 40], 100) == [[0, 1]]
    assert first_fit([60, 41], 100) == [[0], [1]]


def test_the_name_in_a_config_is_not_saved(tmp_path):
    model = of_family("llama")
    share_prompts(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("model_type", "batch_tokens", "on_gpu", "expected"),
    [
        ("llama", None, False, Batching(True, 1536)),
        ("llama", None, True, Batching(True, 16384)),
        ("llama", 77, True, Batching(True, 77)),
        ("bloom", None, False, Batching(False, 1536)),
    ],
)
def test_the_budget_suits_the_device_unless_it_is_said(model_type, batch_tokens, on_gpu, expected):
    batching, slower = batching_of(of_family(model_type), batch_tokens, on_gpu)
    assert batching == expected
    assert ("every prompt twice" in slower) != batching.packed
