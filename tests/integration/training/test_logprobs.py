"""Response log-probabilities, and the reference stage that writes them."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.config.schema import ReferenceConfig
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, sum_counts, write_shard
from rlhf.models.batches import bins_by_tokens
from rlhf.training import logprobs
from rlhf.training.weights import load_model
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, torch.float32).eval()


def by_hand(model, prompt, response):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double()
    picked = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return sum(picked[i, token].item() for i, token in enumerate(response))


def test_batches_agree_with_one_at_a_time(model):
    rows = random_pairs(12, seed=3)
    prompts, responses = [r["prompt_token_ids"] for r in rows], [r["chosen_token_ids"] for r in rows]
    with torch.no_grad():
        together = logprobs.response_logprobs(model, logprobs.collate(prompts, responses))
    for value, prompt, response in zip(together.tolist(), prompts, responses, strict=True):
        assert value == pytest.approx(by_hand(model, prompt, response), abs=2e-4)


def test_chunks_change_neither_value_nor_gradient(model, monkeypatch):
    rows = random_pairs(6, seed=4)
    batch = logprobs.collate([r["prompt_token_ids"] for r in rows], [r["chosen_token_ids"] for r in rows])

    def run():
        model.zero_grad()
        values = logprobs.response_logprobs(model, batch)
        values.sum().backward()
        return values.detach(), [p.grad.clone() for p in model.parameters()]

    whole = run()
    monkeypatch.setattr(logprobs, "_CHUNK", 1)
    pieces = run()
    assert torch.allclose(whole[0], pieces[0], atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole[1], pieces[1], strict=True))


def test_bf16_logits_are_summed_in_fp32():
    class Constant:
        def __call__(self, input_ids, logits_to_keep, use_cache):
            logits = torch.zeros(1, logits_to_keep, 3, dtype=torch.bfloat16)
            return type("Output", (), {"logits": logits})

    (value,) = logprobs.response_logprobs(Constant(), logprobs.collate([[1]], [[1] * 1001])).tolist()
    assert value == pytest.approx(-1001 * math.log(3), rel=1e-5)  # bf16 has steps of 8 there


def test_bins_keep_the_budget_and_lose_nothing():
    lengths = [3, 50, 7, 7, 49, 200, 8, 3]
    bins = bins_by_tokens(lengths, 100, per_item=2)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or 2 * len(b) * max(lengths[i] for i in b) <= 100 for b in bins)
    assert [5] in bins
    assert len(bins) < len(lengths)


def test_pairs_are_cut_to_their_own_budget(folder, model, tmp_path):
    rows = random_pairs(5, seed=5, prompt=(10, 10), response=(20, 20))
    rows[2]["prompt_token_ids"] = list(range(10, 40))
    rows[3]["prompt_token_ids"] = list(range(10, 35))
    job = make_job(
        "reference",
        ReferenceConfig(),
        {"model": folder, "pairs": write_pairs(tmp_path / "p", rows, 2)},
        tmp_path / "o",
        max_length=30,
    )
    run_here(job)
    written = list(read_all_rows(tmp_path / "o"))
    assert [row["id"] for row in written] == [row["id"] for row in rows]
    assert sum_counts(tmp_path / "o") == {"rows": 5, "responses": 8, "long_prompts": 1}
    assert all(math.isnan(value) for value in written[2]["logprobs"])
    assert written[0]["logprobs"][1] == pytest.approx(
        by_hand(model, rows[0]["prompt_token_ids"], rows[0]["rejected_token_ids"]), abs=2e-4
    )
    assert written[3]["logprobs"][0] == pytest.approx(
        by_hand(model, rows[3]["prompt_token_ids"], rows[3]["chosen_token_ids"][:5]), abs=2e-4
    )


@pytest.mark.parametrize(("num_ranks", "dtype"), [(1, "float32"), (2, "float32"), (2, "bfloat16")])
def test_weights_that_are_shared_out_say_the_same(folder, tmp_path, num_ranks, dtype):
    """More bins than ranks, fewer than ranks, a shard without a row, and a pair that DPO drops."""
    rows = random_pairs(11, seed=7, prompt=(5, 30), response=(1, 30))
    rows[9]["prompt_token_ids"] = list(range(10, 60))
    pairs = write_pairs(tmp_path / "p", rows, 10)
    write_pairs(tmp_path / "empty", [])
    (tmp_path / "empty" / shard_name(0)).rename(pairs / shard_name(2))
    told = {"max_length": 50, "batch_tokens": 130, "dtype": dtype}
    inputs = {"model": folder, "pairs": pairs}
    run_here(make_job("reference", ReferenceConfig(), inputs, tmp_path / "whole", **told))
    count = """
from rlhf.training import reference
load = reference.load_sharded
def counted(*args):
    engine = load(*args)
    held = sum(p.ds_tensor.numel() for p in engine.module.parameters())
    assert held <= sum(p.ds_numel for p in engine.module.parameters()) / SHARE + 99 * 50, held
    return engine
reference.load_sharded = counted
from tests.stage_runner import FakeWorker
FakeWorker.progress = lambda self, done, total, note: print("progress in", note, flush=True)
""".replace("SHARE", str(num_ranks))
    job = make_job("reference", ReferenceConfig(), inputs, tmp_path / "z3", compute={"zero_stage": 3}, **told)
    run_ranks(job, num_ranks, count)
    # The driver takes a worker that is silent for long for one that hangs.
    for rank in range(1, num_ranks):
        assert (tmp_path / "z3" / f"rank{rank}.log").read_text().count("progress in shards") == 3
    whole, shared = (list(read_all_rows(tmp_path / name)) for name in ("whole", "z3"))
    assert [row["id"] for row in shared] == [row["id"] for row in whole]
    for ours, theirs in zip(shared, whole, strict=True):
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-5, nan_ok=True)
    assert sum_counts(tmp_path / "z3") == sum_counts(tmp_path / "whole")


def test_candidates_are_scored_as_sampled_and_shards_match(folder, model, tmp_path):
    rows = [
        {
            "id": pair["id"],
            "messages": pair["messages"],
            "prompt_token_ids": pair["prompt_token_ids"],
            "candidates": [
                {
                    "token_ids": ids,
                    "text": "",
                    "finish_reason": "stop",
                    "logprob": 0.0,
                    "seed": 0,
                    "temperature": 1.0,
                }
                for ids in (pair["chosen_token_ids"], pair["rejected_token_ids"], [])
            ],
        }
        for pair in random_pairs(3, seed=6)
    ]
    (tmp_path / "c").mkdir()
    write_shard(tmp_path / "c" / shard_name(0), CANDIDATES_SCHEMA, rows)
    write_shard(tmp_path / "c" / shard_name(1), CANDIDATES_SCHEMA, [])
    run_here(
        make_job(
            "reference", ReferenceConfig(), {"model": folder, "candidates": tmp_path / "c"}, tmp_path / "o"
        )
    )
    written = list(read_all_rows(tmp_path / "o"))
    assert (tmp_path / "o" / shard_name(1)).exists()
    assert sum_counts(tmp_path / "o")["responses"] == 9
    assert [len(row["logprobs"]) for row in written] == [3, 3, 3]
    assert written[1]["logprobs"][2] == 0
    assert written[1]["logprobs"][0] == pytest.approx(
        by_hand(model, rows[1]["prompt_token_ids"], rows[1]["candidates"][0]["token_ids"]), abs=2e-4
    )
